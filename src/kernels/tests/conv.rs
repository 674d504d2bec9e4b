//! Convolutions of every tier.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::super::task::{Activation, Block, Conv, Element, Place, Store};
use super::super::{Crew, Kernels, Lead, Memory, Tier, math, no_hook};
use super::case::{Built, Case, get};
use super::{Noise, same, tiers};

/// What a tier may differ by from the reference, for sums of about 1.
fn tolerance(kernels: &Kernels, stored: Element, act: Activation) -> impl Fn(f32, f32) -> bool {
    let tier = kernels.tier();
    let joint = if act == Activation::Silu { 3e-3 } else { 0.0 };
    move |ours: f32, theirs: f32| {
        let (apart, large) = ((ours - theirs).abs(), theirs.abs());
        match (tier, stored) {
            (Tier::Avx512 | Tier::Avx2 | Tier::Reference, _) => same(ours, theirs),
            (Tier::Avx512Bf16, Element::Bf16) => {
                apart <= large / 128.0 + 1e-4 + joint * (1.0 + large)
            }
            (Tier::Avx512Bf16, Element::F32) => apart <= (2e-5 + joint) * (1.0 + large),
            _ => apart <= 2e-5 * large.max(1.0),
        }
    }
}

/// Runs a case on one tier and on its reference.
fn hold(kernels: &Kernels, case: &Case) {
    let exact = kernels.tier().numeric_class() == "f32";
    if case.wild && !exact {
        // Infinities appear at other steps when products are rounded otherwise.
        return;
    }
    let element = kernels.tier().element();
    let mut ours = case.build(element);
    let mut theirs = case.build(element);
    let before = ours.arena.bytes().to_vec();
    assert_eq!(before, theirs.arena.bytes());
    kernels.conv(&mut ours.arena, theirs.packed.bytes(), &case.task(&theirs));
    let Built { arena, packed, .. } = &mut theirs;
    let task = Conv { ksteps: &ours.ksteps, blocks: &ours.blocks, ..case.task(&ours) };
    kernels.conv_reference(arena, packed.bytes(), &task);

    let stored = case.stored(kernels);
    let close = tolerance(kernels, stored, case.act);
    let mut inside = vec![false; before.len()];
    for &(at, lanes) in &theirs.writes {
        inside[at..at + lanes * stored.bytes()].fill(true);
        for lane in 0..lanes {
            let at = at + lane * stored.bytes();
            let (a, b) =
                (get(ours.arena.bytes(), at, stored), get(theirs.arena.bytes(), at, stored));
            assert!(close(a, b), "{} at byte {at}: {a:e} {b:e}\n{case:?}", kernels.tier());
        }
    }
    for (at, was) in before.iter().enumerate().filter(|&(at, _)| !inside[at]) {
        let now = (ours.arena.bytes()[at], theirs.arena.bytes()[at]);
        assert_eq!(now, (*was, *was), "{} wrote byte {at}\n{case:?}", kernels.tier());
    }
}

/// Whatever the number of threads, the bits are those of one.
fn hold_team(kernels: &Kernels, lead: &mut Lead<'_>, case: &Case) {
    let element = kernels.tier().element();
    let (mut alone, mut together) = (case.build(element), case.build(element));
    kernels.conv(&mut alone.arena, together.packed.bytes(), &case.task(&together));
    let Built { arena, packed, .. } = &mut together;
    let task = Conv { ksteps: &alone.ksteps, blocks: &alone.blocks, ..case.task(&alone) };
    let scratch = &mut Memory::new(1).unwrap();
    kernels.conv_team(lead, arena, packed.bytes(), scratch, &task);
    let same = alone.arena.bytes() == together.arena.bytes();
    assert!(same, "{} pieces of {}\n{case:?}", lead.pieces(), kernels.tier());
}

fn hold_all(case: &Case) {
    for kernels in tiers().filter(|kernels| kernels.tier() != Tier::Reference) {
        hold(&kernels, case);
    }
}

/// Every number of pixels that a register block can be left with.
fn widths() -> impl Iterator<Item = usize> {
    (1..=33).chain([40, 80])
}

#[test]
fn every_width_of_a_3x3() {
    for width in widths() {
        for (turn, lanes) in [16, 32].into_iter().enumerate() {
            let case = Case {
                width,
                rows: 1 + width % 3,
                inputs: vec![(lanes, lanes)],
                blocks: vec![lanes],
                turn: turn + width,
                ..Case::default()
            };
            hold_all(&case);
        }
    }
}

#[test]
fn every_width_of_a_1x1_over_several_planes() {
    for width in widths() {
        let case = Case {
            width,
            rows: 1,
            kernel: 1,
            inputs: vec![(32, 32), (16, 16), (32, 32)],
            blocks: vec![32, 16],
            gap: 0,
            turn: width,
            ..Case::default()
        };
        hold_all(&case);
    }
}

#[test]
fn every_width_of_the_picture_and_of_stride_2() {
    for width in widths() {
        for (turn, lanes) in [3, 16, 32].into_iter().enumerate() {
            let case = Case {
                width,
                rows: 2,
                stride: 2,
                inputs: vec![(lanes, lanes)],
                blocks: vec![16],
                turn: turn + width,
                ..Case::default()
            };
            hold_all(&case);
        }
    }
}

#[test]
fn everything_that_can_follow_a_sum() {
    let mut turn = 0;
    for act in [Activation::None, Activation::Silu] {
        for store in [Store::Element, Store::F32, Store::F32Twice] {
            for (residual, init) in [(false, false), (true, false), (false, true), (true, true)] {
                for (rows, odd) in [(1, false), (1, true), (2, true), (3, false), (3, true)] {
                    turn += 1;
                    let case = Case {
                        width: 1 + turn % 14,
                        rows,
                        kernel: 1,
                        inputs: vec![(16, 16), (32, 32)],
                        blocks: vec![32, 16],
                        residual,
                        init,
                        odd,
                        act,
                        store,
                        turn,
                        seed: turn as u64,
                        ..Case::default()
                    };
                    hold_all(&case);
                }
            }
        }
    }
}

/// Planes that are not full are read tap by tap, and only as far as they are used.
#[test]
fn planes_with_unused_lanes() {
    for (turn, used) in [1, 2, 7, 8, 15].into_iter().enumerate() {
        for stride in [1, 2] {
            let inputs = vec![(16, used), (32, 32), (32, 16 + used)];
            let case = Case { stride, inputs, turn, blocks: vec![16, 32], ..Case::default() };
            hold_all(&case);
            let mut last = case.clone();
            last.inputs.rotate_left(1);
            hold_all(&last);
        }
    }
}

/// NaN, infinities, denormals and the largest numbers, in every place a number can come from.
#[test]
fn hard_numbers() {
    for seed in 0..40 {
        let case = Case {
            width: 1 + seed % 14,
            kernel: [1, 3][seed % 2],
            inputs: vec![(32, 32), (16, 5)],
            blocks: vec![32, 16],
            residual: seed % 3 == 0,
            init: seed % 4 == 0,
            act: [Activation::Silu, Activation::None][seed % 5 % 2],
            wild: true,
            turn: seed,
            seed: seed as u64,
            ..Case::default()
        };
        hold_all(&case);
    }
}

#[test]
fn threads_change_no_bit() {
    for threads in [1, 2, 3, 5] {
        let crew = Crew::new(NonZeroUsize::new(threads).unwrap(), || ()).unwrap();
        let mut lead = crew.team().lead(&no_hook).unwrap();
        for (turn, rows) in [1, 2, 3, 7, 20, 41].into_iter().enumerate() {
            for blocks in [vec![32], vec![16, 32], vec![32; 9]] {
                for store in [Store::Element, Store::F32Twice] {
                    let case = Case {
                        width: 1 + turn * 3,
                        rows,
                        kernel: 1,
                        blocks: blocks.clone(),
                        residual: turn % 2 == 0,
                        init: turn % 3 == 0,
                        odd: turn % 2 == 1,
                        store,
                        turn,
                        ..Case::default()
                    };
                    for kernels in tiers().filter(|kernels| kernels.tier() != Tier::Reference) {
                        hold_team(&kernels, &mut lead, &case);
                    }
                }
            }
        }
    }
}

/// Nothing to do is done without harm.
#[test]
fn no_rows_no_pixels_no_blocks() {
    for kernels in tiers() {
        let case = Case::default();
        let mut built = case.build(kernels.tier().element());
        let before = built.arena.bytes().to_vec();
        let Built { ksteps, blocks, packed, arena, .. } = &mut built;
        let whole = Conv { ksteps, blocks, ..case.task_of() };
        for task in
            [Conv { rows: 0, ..whole }, Conv { width: 0, ..whole }, Conv { blocks: &[], ..whole }]
        {
            kernels.conv(arena, packed.bytes(), &task);
        }
        assert_eq!(arena.bytes(), before);
    }
}

impl Case {
    fn task_of(&self) -> Conv<'static> {
        Conv {
            ksteps: &[],
            blocks: &[],
            rows: self.rows,
            width: self.width,
            odd: self.odd,
            act: self.act,
            store: self.store,
        }
    }
}

/// The reference itself, against the definition in double precision and by other indices.
#[test]
fn the_reference_is_a_convolution() {
    const WIDTH: usize = 5;
    const HEIGHT: usize = 4;
    for (kernel, stride) in [(1, 1), (3, 1), (3, 2)] {
        let (cin, cout) = (16, 16);
        let (out_w, out_h) = (WIDTH.div_ceil(stride), HEIGHT.div_ceil(stride));
        let pad = kernel / 2;
        let mut noise = Noise(7);
        let image: Vec<f32> = (0..cin * HEIGHT * WIDTH).map(|_| noise.unit()).collect();
        let weight: Vec<f32> =
            (0..cout * cin * kernel * kernel).map(|_| noise.unit() / 8.0).collect();
        let bias: Vec<f32> = (0..cout).map(|_| noise.unit()).collect();

        // Into a plane with a border of zeros, as the executor lays it out.
        let pitch = WIDTH + 2;
        let input_bytes = (HEIGHT + 2) * pitch * cin * 4;
        let mut arena = Memory::new(input_bytes + out_w * out_h * cout * 4).unwrap();
        for c in 0..cin {
            for y in 0..HEIGHT {
                for x in 0..WIDTH {
                    arena.floats_mut()[((y + 1) * pitch + x + 1) * cin + c] =
                        image[(c * HEIGHT + y) * WIDTH + x];
                }
            }
        }
        let mut packed = Memory::new(64 + kernel * kernel * cin * cout * 4).unwrap();
        packed.floats_mut()[..cout].copy_from_slice(&bias);
        let mut k = 0;
        let mut ksteps = Vec::new();
        for ky in 0..kernel {
            for kx in 0..kernel {
                for c in 0..cin {
                    for o in 0..cout {
                        packed.floats_mut()[16 + k * cout + o] =
                            weight[((o * cin + c) * kernel + ky) * kernel + kx];
                    }
                    k += 1;
                }
                let at = ((1 + ky - pad) * pitch + 1 + kx - pad) * cin * 4;
                let from = Place { at, row: stride * pitch * cin * 4, px: stride * cin * 4 };
                ksteps.push(super::super::task::KStep { from, count: cin });
            }
        }
        let out = Place { at: input_bytes, row: out_w * cout * 4, px: cout * 4 };
        let block = Block { weights: 64, bias: 0, lanes: cout, out, residual: None, init: None };
        let task = Conv {
            ksteps: &ksteps,
            blocks: &[block],
            rows: out_h,
            width: out_w,
            odd: false,
            act: Activation::Silu,
            store: Store::F32,
        };
        let kernels = Kernels::new(Tier::Reference).unwrap();
        kernels.conv(&mut arena, packed.bytes(), &task);

        for o in 0..cout {
            for y in 0..out_h {
                for x in 0..out_w {
                    let mut sum = f64::from(bias[o]);
                    for c in 0..cin {
                        for ky in 0..kernel {
                            for kx in 0..kernel {
                                let iy = (y * stride + ky).checked_sub(pad);
                                let ix = (x * stride + kx).checked_sub(pad);
                                let (Some(iy), Some(ix)) = (iy, ix) else { continue };
                                if iy < HEIGHT && ix < WIDTH {
                                    let a = image[(c * HEIGHT + iy) * WIDTH + ix];
                                    let w = weight[((o * cin + c) * kernel + ky) * kernel + kx];
                                    sum += f64::from(a) * f64::from(w);
                                }
                            }
                        }
                    }
                    let expected = sum / (1.0 + (-sum).exp());
                    let ours = f64::from(get(arena.bytes(), out.of(y, x) + 4 * o, Element::F32));
                    assert!((ours - expected).abs() < 1e-5, "{ours} {expected}");
                }
            }
        }
    }
}

/// The activation of every tier over all exponents: `init` passes numbers through unchanged.
#[test]
fn silu_is_the_same_function_everywhere() {
    let mut values = Vec::new();
    for high in 0..=u16::MAX {
        for low in [0u32, 1, 0x7FFF, 0x8000, 0xFFFF] {
            values.push(f32::from_bits(u32::from(high) << 16 | low));
        }
    }
    let mut x = -130.0f32;
    while x < 130.0 {
        values.push(x);
        x += 0.000_3;
    }
    values.resize(values.len().next_multiple_of(16), 0.0);
    let pixels = values.len() / 16;
    let bytes = values.len() * 4;
    let packed = Memory::new(64).unwrap();
    for kernels in tiers() {
        let mut arena = Memory::new(2 * bytes).unwrap();
        arena.floats_mut()[..values.len()].copy_from_slice(&values);
        let init = Some(Place { at: 0, row: bytes, px: 64 });
        let out = Place { at: bytes, row: bytes, px: 64 };
        let block = Block { weights: 0, bias: 0, lanes: 16, out, residual: None, init };
        let task = Conv {
            ksteps: &[],
            blocks: &[block],
            rows: 1,
            width: pixels,
            odd: false,
            act: Activation::Silu,
            store: Store::F32,
        };
        kernels.conv(&mut arena, packed.bytes(), &task);
        let exact = kernels.tier() != Tier::Portable;
        for (&x, &ours) in values.iter().zip(&arena.floats()[values.len()..]) {
            let expected = match kernels.tier().element() {
                Element::F32 => math::silu(x),
                Element::Bf16 => math::silu_coarse(x),
            };
            let close = (ours - expected).abs() <= 1e-6 * expected.abs().max(1e-3);
            assert!(
                same(ours, expected) || (!exact && close),
                "{}: silu({x:e}) is {ours:e} instead of {expected:e}",
                kernels.tier()
            );
        }
    }
}

fn input() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        Just((3, 3)),
        Just((16, 16)),
        Just((32, 32)),
        (1..16usize).prop_map(|n| (16, n)),
        (17..32usize).prop_map(|n| (32, n))
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1..40usize, 1..4usize, 0..3usize, prop::collection::vec(input(), 1..4));
    let outputs = prop::collection::vec(prop_oneof![Just(16usize), Just(32)], 1..4);
    let epilogue = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0..3usize);
    let memory = (0..3usize, 0..9usize, any::<bool>(), any::<u64>());
    (shape, outputs, epilogue, memory).prop_map(|(shape, blocks, epilogue, memory)| {
        let (width, rows, kind, mut inputs) = shape;
        let (residual, init, odd, silu, store) = epilogue;
        let (gap, turn, wild, seed) = memory;
        let (kernel, stride) = [(1, 1), (3, 1), (3, 2)][kind];
        if stride == 1 {
            // Three bf16 are no whole number of pairs: only every second pixel begins one.
            inputs.iter_mut().filter(|(lanes, _)| *lanes == 3).for_each(|input| *input = (16, 3));
        }
        let act = if silu { Activation::Silu } else { Activation::None };
        let store = [Store::Element, Store::F32, Store::F32Twice][store];
        Case {
            width,
            rows,
            kernel,
            stride,
            inputs,
            blocks,
            gap,
            residual,
            init,
            odd,
            act,
            store,
            wild,
            turn,
            seed,
        }
    })
}

/// PROPTEST_CASES may ask for fewer: under valgrind, say.
fn few() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases.min(150), ..usual }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn any_task(case in cases()) {
        hold_all(&case);
    }
}
