//! Every way in which a task can leave its memory is refused, before anything is touched.
//!
//! Held to the naive tier, whose slices would catch what slips through, but with other words:
//! "This is a bug" is what `check` says.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::task::{Block, Conv, Element, KStep, Store};
use super::super::{Crew, Kernels, Memory, Tier, no_hook};
use super::case::{Built, Case};
use super::tiers;

/// Everything a task consists of, to be spoilt.
struct Task<'a> {
    ksteps: &'a mut Vec<KStep>,
    blocks: &'a mut Vec<Block>,
    rows: usize,
    width: usize,
    odd: bool,
    store: Store,
}

/// A sound task at the end of its memory, but for what `spoil` does to it.
fn attempt(case: &Case, kernels: &Kernels, spoil: impl Fn(&mut Task<'_>)) -> Result<(), String> {
    let mut built = case.build(kernels.tier().element());
    let Built { arena, packed, ksteps, blocks, .. } = &mut built;
    let Case { rows, width, odd, store, act, .. } = *case;
    let mut task = Task { ksteps, blocks, rows, width, odd, store };
    spoil(&mut task);
    let Task { rows, width, odd, store, .. } = task;
    let task = Conv { ksteps, blocks, rows, width, odd, store, act };
    run(kernels, arena, packed.bytes(), &task)
}

fn run(
    kernels: &Kernels,
    arena: &mut Memory,
    packed: &[u8],
    task: &Conv<'_>,
) -> Result<(), String> {
    let before = arena.bytes().to_vec();
    let result = catch_unwind(AssertUnwindSafe(|| kernels.conv(arena, packed, task)));
    result.map_err(|panic| {
        assert_eq!(arena.bytes(), before, "something was written before the task was refused");
        let plain = panic.downcast_ref::<&str>().map(|&text| text.to_owned());
        plain.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}

fn refused(case: &Case, words: &str, spoil: impl Fn(&mut Task<'_>)) {
    for kernels in [Tier::Reference, Tier::Avx512Bf16].into_iter().filter_map(Kernels::new) {
        assert_eq!(attempt(case, &kernels, |_| ()), Ok(()), "{case:?}");
        let said = attempt(case, &kernels, &spoil).expect_err("it ran");
        assert!(said.contains(words) && said.ends_with("This is a bug."), "{said}");
    }
}

/// A task whose `part` (0 input, 1 output, 2 residual, 3 sums to begin with) ends the arena.
fn ending_with(part: usize, store: Store) -> Case {
    Case {
        residual: true,
        init: true,
        odd: true,
        gap: 0,
        store,
        turn: (part + 1) % 4,
        ..Case::default()
    }
}

const ARENA: &str = "leaves the arena";
const WEIGHTS: &str = "leaves the packed weights";
const ALIGNED: &str = "not aligned";

#[test]
fn more_pixels_than_there_are() {
    for part in 0..4 {
        refused(&ending_with(part, Store::Element), ARENA, |task| task.width += 1);
    }
}

#[test]
fn more_rows_than_there_are() {
    for part in 0..4 {
        refused(&ending_with(part, Store::Element), ARENA, |task| task.rows += 2);
    }
}

#[test]
fn an_odd_first_row_reads_one_row_of_sums_more() {
    let case = Case { odd: false, ..ending_with(3, Store::Element) };
    refused(&case, ARENA, |task| task.odd = true);
}

#[test]
fn inputs_beyond_the_arena() {
    let case = ending_with(0, Store::Element);
    let last = |task: &mut Task<'_>, change: fn(&mut KStep)| {
        change(task.ksteps.last_mut().unwrap());
    };
    refused(&case, ARENA, |task| last(task, |k| k.from.at += 4));
    refused(&case, ARENA, |task| last(task, |k| k.from.row += 4));
    refused(&case, ARENA, |task| last(task, |k| k.from.px += 4));
    refused(&case, ARENA, |task| last(task, |k| k.count += 2));
    for far in [usize::MAX, usize::MAX / 4 * 4, 1 << 63, 1 << 62] {
        for change in 0..4 {
            refused(&case, "This is a bug", |task| {
                let k = task.ksteps.last_mut().unwrap();
                match change {
                    0 => k.from.at = far,
                    1 => k.from.row = far,
                    2 => k.from.px = far,
                    _ => k.count = far,
                }
            });
        }
    }
}

#[test]
fn inputs_that_are_no_whole_units() {
    let case = ending_with(1, Store::Element);
    refused(&case, "no whole number of units", |task| task.ksteps[0].from.px -= 2);
    let f32s = Kernels::new(Tier::Reference).unwrap();
    for change in 0..2 {
        let said = attempt(&case, &f32s, |task| match change {
            0 => task.ksteps[0].from.at += 2,
            _ => task.ksteps[0].from.row -= 2,
        });
        assert!(said.unwrap_err().contains("This is a bug."));
    }
    if let Some(kernels) = Kernels::new(Tier::Avx512Bf16) {
        let said = attempt(&case, &kernels, |task| task.ksteps[0].count = 1).unwrap_err();
        assert!(said.contains("This is a bug."), "{said}");
        let said = attempt(&case, &kernels, |task| task.ksteps[0].from.at += 1).unwrap_err();
        assert!(said.contains("This is a bug."), "{said}");
    }
}

#[test]
fn outputs_beyond_the_arena() {
    for store in [Store::Element, Store::F32, Store::F32Twice] {
        let case = ending_with(1, store);
        refused(&case, ARENA, |task| task.blocks[0].out.at += 128);
        refused(&case, ARENA, |task| task.blocks[0].out.row += 128);
        refused(&case, ARENA, |task| task.blocks[0].out.px += 128);
        for far in [usize::MAX, usize::MAX / 128 * 128, 1 << 63] {
            refused(&case, ARENA, |task| task.blocks[0].out.at = far);
            refused(&case, ARENA, |task| task.blocks[0].out.row = far);
            refused(&case, ARENA, |task| task.blocks[0].out.px = far);
        }
    }
}

#[test]
fn results_wider_than_their_place() {
    let element = ending_with(1, Store::Element);
    refused(&element, "This is a bug", |task| {
        // What fits as bf16 or once does not fit as f32 twice.
        task.blocks[0].out.px *= 2;
        task.store = Store::F32Twice;
    });
}

#[test]
fn outputs_that_are_not_aligned() {
    for store in [Store::Element, Store::F32, Store::F32Twice] {
        let case = ending_with(0, store);
        refused(&case, ALIGNED, |task| task.blocks[0].out.at += 16);
        refused(&case, ALIGNED, |task| task.blocks[0].out.row -= 16);
        refused(&case, ALIGNED, |task| task.blocks[0].out.px -= 16);
    }
    refused(&ending_with(0, Store::F32Twice), ALIGNED, |task| task.blocks[0].out.px -= 64);
}

#[test]
fn residuals_beyond_the_arena_or_not_aligned() {
    let spoilt = |case: &Case, words: &str, change: fn(&mut super::super::task::Place)| {
        refused(case, words, |task| change(task.blocks[0].residual.as_mut().unwrap()));
    };
    let last = ending_with(2, Store::Element);
    spoilt(&last, ARENA, |place| place.at += 64);
    spoilt(&last, ARENA, |place| place.row += 64);
    spoilt(&last, ARENA, |place| place.px += 64);
    spoilt(&last, ARENA, |place| place.at = usize::MAX);
    let inner = ending_with(0, Store::Element);
    spoilt(&inner, ALIGNED, |place| place.at -= 16);
    spoilt(&inner, ALIGNED, |place| place.row -= 16);
    spoilt(&inner, ALIGNED, |place| place.px -= 16);
}

#[test]
fn sums_beyond_the_arena_or_not_aligned() {
    let spoilt = |case: &Case, words: &str, change: fn(&mut super::super::task::Place)| {
        refused(case, words, |task| change(task.blocks[0].init.as_mut().unwrap()));
    };
    let last = ending_with(3, Store::Element);
    spoilt(&last, ARENA, |place| place.at += 64);
    spoilt(&last, ARENA, |place| place.row += 64);
    spoilt(&last, ARENA, |place| place.px += 64);
    spoilt(&last, ARENA, |place| place.at = usize::MAX);
    let inner = ending_with(0, Store::Element);
    spoilt(&inner, ALIGNED, |place| place.at -= 32);
    spoilt(&inner, ALIGNED, |place| place.row -= 32);
    spoilt(&inner, ALIGNED, |place| place.px -= 32);
}

#[test]
fn lanes_that_no_kernel_has() {
    for lanes in [0, 1, 8, 17, 48, 64, usize::MAX] {
        refused(&Case::default(), "lanes", |task| task.blocks[0].lanes = lanes);
    }
    let half = Case { blocks: vec![16], turn: 1, ..Case::default() };
    refused(&half, "This is a bug", |task| task.blocks[0].lanes = 32);
}

#[test]
fn weights_and_biases_beyond_their_memory() {
    // With an even turn the weights come last, with an odd one the biases.
    let weights = Case { turn: 0, ..Case::default() };
    refused(&weights, WEIGHTS, |task| task.blocks[0].weights += 64);
    refused(&weights, WEIGHTS, |task| task.blocks[0].weights = usize::MAX / 64 * 64);
    refused(&weights, WEIGHTS, |task| {
        let again = task.ksteps[0];
        task.ksteps.push(again);
    });
    let biases = Case { turn: 1, ..Case::default() };
    refused(&biases, WEIGHTS, |task| task.blocks[0].bias += 64);
    refused(&biases, WEIGHTS, |task| task.blocks[0].bias = usize::MAX / 64 * 64);
}

#[test]
fn weights_and_biases_that_are_not_aligned() {
    refused(&Case { turn: 1, ..Case::default() }, WEIGHTS, |task| task.blocks[0].weights += 32);
    refused(&Case { turn: 0, ..Case::default() }, WEIGHTS, |task| task.blocks[0].bias += 32);
}

#[test]
fn packed_weights_in_other_memory() {
    let case = Case::default();
    for kernels in tiers() {
        let mut built = case.build(kernels.tier().element());
        let whole = built.packed.bytes().to_vec();
        let mut moved = Memory::new(whole.len() + 64).unwrap();
        moved.bytes_mut()[4..whole.len() + 4].copy_from_slice(&whole);
        let Built { arena, packed, ksteps, blocks, .. } = &mut built;
        let Case { rows, width, odd, store, act, .. } = case;
        let task = Conv { ksteps, blocks, rows, width, odd, store, act };
        let said = run(&kernels, arena, &moved.bytes()[4..whole.len() + 4], &task).unwrap_err();
        assert!(said.contains(ALIGNED), "{said}");
        let short = &packed.bytes()[..whole.len() - 1];
        let said = run(&kernels, arena, short, &task).unwrap_err();
        assert!(said.contains(WEIGHTS), "{said}");
        let said = run(&kernels, arena, &[], &task).unwrap_err();
        assert!(said.ends_with("This is a bug."), "{said}");
    }
}

/// So many elements that their weights' bytes do not fit a number.
#[test]
fn more_weights_than_can_be_counted() {
    let step = KStep { count: usize::MAX / 8, ..KStep::default() };
    let ksteps = [step; 64];
    let task = Conv { ksteps: &ksteps, ..empty() };
    assert_eq!(task.weight_bytes(32, Element::F32), usize::MAX);
}

type Change = fn(&mut Vec<KStep>, &mut Vec<Block>);

/// Threads may share a task only where nobody reads or writes what another one writes.
#[test]
fn tasks_that_threads_cannot_share() {
    let crew = Crew::new(std::num::NonZeroUsize::new(2).unwrap(), || ()).unwrap();
    let mut lead = crew.team().lead(&no_hook).unwrap();
    let mut scratch = Memory::new(1).unwrap();
    let mut told = |case: &Case, spoil: Change| {
        let mut said = Vec::new();
        for kernels in tiers().filter(|k| !matches!(k.tier(), Tier::Portable | Tier::Reference)) {
            let mut built = case.build(kernels.tier().element());
            let Built { arena, packed, ksteps, blocks, .. } = &mut built;
            spoil(ksteps, blocks);
            let Case { rows, width, odd, store, act, .. } = *case;
            let task = Conv { ksteps, blocks, rows, width, odd, store, act };
            let run = || kernels.conv_team(&mut lead, arena, packed.bytes(), &mut scratch, &task);
            said.push(catch_unwind(AssertUnwindSafe(run)).is_err());
        }
        said
    };
    for store in [Store::Element, Store::F32, Store::F32Twice] {
        let blocks = vec![32, 16];
        let case = Case {
            rows: 3,
            residual: true,
            init: true,
            odd: true,
            store,
            blocks,
            ..Case::default()
        };
        let changes: [Change; 8] = [
            |_, blocks| blocks[0].out.px /= 2,
            |_, blocks| blocks[0].out.row -= 2 * blocks[0].out.px,
            |_, blocks| blocks[0].out.row = 0,
            |_, blocks| blocks[1].out = blocks[0].out,
            |_, blocks| blocks[1].out.at = blocks[0].out.at + 64,
            |_, blocks| blocks[1].residual.as_mut().unwrap().at = blocks[0].out.at,
            |_, blocks| blocks[1].init.as_mut().unwrap().at = blocks[0].out.at,
            |ksteps, blocks| ksteps[0].from.at = blocks[0].out.at,
        ];
        assert!(told(&case, |_, _| ()).iter().all(|&refused| !refused), "{case:?}");
        for (index, &change) in changes.iter().enumerate() {
            let refused = told(&case, change).iter().all(|&refused| refused);
            assert!(refused, "change {index} was taken: {case:?}");
        }
    }
}

fn empty() -> Conv<'static> {
    let act = super::super::task::Activation::None;
    Conv { ksteps: &[], blocks: &[], rows: 1, width: 1, odd: false, act, store: Store::Element }
}
