//! Winograd's scheme: held to its reference bit for bit, and that to a plain convolution.

use std::array::from_fn;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::math::{A, B, from_bf16, silu, to_bf16};
use super::super::task::{Activation, Block, Element, KStep, Place, Winograd};
use super::super::{ALIGN, Crew, Kernels, Memory, Tier, no_hook};
use super::{Noise, same, tiers};

struct Case {
    width: usize,
    rows: usize,
    planes: Vec<usize>,
    blocks: Vec<usize>,
    residual: bool,
    act: Activation,
    wild: bool,
    seed: u64,
}

struct Built {
    arena: Memory,
    packed: Memory,
    planes: Vec<KStep>,
    blocks: Vec<Block>,
    /// By block: kernels as (output lane, input channel, ky, kx).
    kernels: Vec<Vec<f32>>,
}

/// G g Gᵀ for one kernel of 3 × 3, by the definition: its values at the points, each divided by the
/// distances to the others; and what it is at infinity.
fn transform(g: &[f32]) -> [f32; 36] {
    const POINTS: [f64; 5] = [0.0, A as f64, -(A as f64), B as f64, -(B as f64)];
    let rows = |v: [f64; 3]| -> [f64; 6] {
        from_fn(|i| match POINTS.get(i) {
            Some(p) => {
                let distances = POINTS.iter().filter(|q| *q != p).map(|q| p - q);
                (v[0] + p * v[1] + p * p * v[2]) / distances.product::<f64>()
            }
            None => v[2],
        })
    };
    let columns = [0, 1, 2].map(|x| rows([0, 1, 2].map(|y| f64::from(g[3 * y + x]))));
    let mut out = [0.0; 36];
    for i in 0..6 {
        for (j, value) in rows([0, 1, 2].map(|x| columns[x][i])).into_iter().enumerate() {
            out[6 * i + j] = value as f32;
        }
    }
    out
}

impl Case {
    /// Inputs first, then residuals, then outputs, which end the arena; or all in reverse.
    fn build(&self, element: Element, reverse: bool) -> Built {
        let mut noise = Noise(self.seed);
        let size = element.bytes();
        let (in_w, in_h) = (self.width + 2, self.rows + 2);
        let mut sizes: Vec<usize> =
            self.planes.iter().map(|lanes| in_w * in_h * lanes * size).collect();
        let outs: Vec<usize> =
            self.blocks.iter().map(|l| self.width * self.rows * l * size).collect();
        sizes.extend(&outs);
        sizes.extend(&outs);
        let mut at = vec![0; sizes.len()];
        let mut next = 0;
        for i in 0..sizes.len() {
            let i = if reverse { sizes.len() - 1 - i } else { i };
            at[i] = next;
            next += sizes[i].next_multiple_of(ALIGN);
        }
        let mut arena = Memory::new(next).unwrap();
        let wild = self.wild;
        let mut value = move || if wild { noise.wild() } else { noise.unit() };
        match element {
            Element::F32 => arena.floats_mut().iter_mut().for_each(|v| *v = value()),
            Element::Bf16 => arena.halves_mut().iter_mut().for_each(|v| *v = to_bf16(value())),
        }

        let channels: usize = self.planes.iter().sum();
        let bytes = |lanes: usize| 4 * lanes + 36 * channels * lanes * 4;
        let all = self.blocks.iter().map(|&lanes| bytes(lanes).next_multiple_of(ALIGN)).sum();
        let mut packed = Memory::new(all).unwrap();
        let (mut blocks, mut kernels, mut next) = (Vec::new(), Vec::new(), 0);
        for (i, &lanes) in self.blocks.iter().enumerate() {
            let (bias, weights) = (next, next + (4 * lanes).next_multiple_of(ALIGN));
            next += bytes(lanes).next_multiple_of(ALIGN);
            for lane in 0..lanes {
                packed.floats_mut()[bias / 4 + lane] = value();
            }
            let scale = 1.0 / (9.0 * channels as f32).sqrt();
            let kernel: Vec<f32> = (0..lanes * channels * 9).map(|_| value() * scale).collect();
            for lane in 0..lanes {
                for c in 0..channels {
                    let g = &kernel[(lane * channels + c) * 9..][..9];
                    for (position, u) in transform(g).into_iter().enumerate() {
                        let to = (position * channels + c) * lanes + lane;
                        packed.floats_mut()[weights / 4 + to] = u;
                    }
                }
            }
            let place = |at| Place { at, row: self.width * lanes * size, px: lanes * size };
            let (residual, out) =
                (at[self.planes.len() + i], at[self.planes.len() + self.blocks.len() + i]);
            let residual = self.residual.then(|| place(residual));
            blocks.push(Block { weights, bias, lanes, out: place(out), residual, init: None });
            kernels.push(kernel);
        }
        let plane = |(i, &lanes): (usize, &usize)| KStep {
            from: Place { at: at[i], row: in_w * lanes * size, px: lanes * size },
            count: lanes,
        };
        let planes = self.planes.iter().enumerate().map(plane).collect();
        Built { arena, packed, planes, blocks, kernels }
    }

    fn task<'a>(&self, planes: &'a [KStep], blocks: &'a [Block]) -> Winograd<'a> {
        Winograd { planes, blocks, rows: self.rows, width: self.width, act: self.act }
    }

    fn scratch(&self) -> Memory {
        let mut memory = Memory::new(4 * Winograd::scratch(self.planes.iter().sum())).unwrap();
        memory.bytes_mut().fill(0xFF);
        memory
    }
}

impl Built {
    /// The arena as numbers.
    fn numbers(&self, element: Element) -> Vec<f32> {
        match element {
            Element::F32 => self.arena.floats().to_vec(),
            Element::Bf16 => self.arena.halves().iter().map(|&half| from_bf16(half)).collect(),
        }
    }
}

fn cases() -> impl Iterator<Item = Case> {
    (1..=40).map(|i| Case {
        // The last ones have more tiles than a chunk.
        width: if i < 36 { i } else { 4 * i },
        rows: [1, 2, 3, 4, 7, 9][i % 6],
        planes: [vec![32], vec![16], vec![32, 32, 16], vec![16, 32]][i % 4].clone(),
        blocks: [vec![16], vec![32, 16], vec![32]][i % 3].clone(),
        residual: i % 2 == 0,
        act: if i % 7 < 4 { Activation::Silu } else { Activation::None },
        wild: i % 7 == 5,
        seed: i as u64,
    })
}

fn with() -> impl Iterator<Item = Kernels> {
    tiers().filter(|kernels| kernels.tier().has_winograd() && kernels.tier() != Tier::Reference)
}

/// Of `portable`, the reference's to a tolerance, as it may round twice where the others fuse.
#[test]
fn every_tier_gives_the_bits_of_the_reference() {
    for case in cases() {
        for kernels in with() {
            let (tier, element) = (kernels.tier(), kernels.tier().element());
            for reverse in [false, true] {
                let (mut ours, mut theirs) =
                    (case.build(element, reverse), case.build(element, reverse));
                let task = case.task(&theirs.planes, &theirs.blocks);
                kernels.winograd(&mut ours.arena, ours.packed.bytes(), &mut case.scratch(), &task);
                kernels.winograd_reference(&mut theirs.arena, ours.packed.bytes(), &task);
                let pairs = ours.numbers(element).into_iter().zip(theirs.numbers(element));
                for (at, (a, b)) in pairs.enumerate() {
                    let fine = match (tier, element) {
                        (Tier::Portable, _) if case.wild => a.is_finite() == b.is_finite(),
                        (Tier::Portable, _) => (a - b).abs() <= 2e-5 * b.abs().max(1.0),
                        // What rounds to bf16 takes denormals for zero.
                        (_, Element::Bf16) => {
                            same(a, b) || a.abs().max(b.abs()) < f32::MIN_POSITIVE
                        }
                        (_, Element::F32) => same(a, b),
                    };
                    assert!(fine, "{tier} {}x{} number {at}: {a} {b}", case.width, case.rows);
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for threads in [1, 2, 3] {
        let crew = Crew::new(NonZeroUsize::new(threads).unwrap(), || ()).unwrap();
        let mut lead = crew.team().lead(&no_hook).unwrap();
        for case in cases() {
            for kernels in with() {
                let element = kernels.tier().element();
                let (mut alone, mut together) =
                    (case.build(element, true), case.build(element, true));
                let (planes, blocks) = (together.planes.clone(), together.blocks.clone());
                let task = case.task(&planes, &blocks);
                let Built { arena, packed, .. } = &mut alone;
                kernels.winograd(arena, packed.bytes(), &mut case.scratch(), &task);
                let (scratch, arena) = (&mut case.scratch(), &mut together.arena);
                kernels.winograd_team(&mut lead, arena, packed.bytes(), scratch, &task);
                // Chunks are others, and so is the order of an instruction's operands, perhaps.
                let (alone, together) = (alone.numbers(element), together.numbers(element));
                let fine = alone.into_iter().zip(together).all(|(a, b)| same(a, b));
                assert!(fine, "{}", kernels.tier());
            }
        }
    }
}

/// The reference, in either element, against the definition in double precision; and it writes
/// nothing else.
#[test]
fn the_reference_is_a_convolution() {
    let references = [Tier::Reference, Tier::Avx512Bf16].into_iter().filter_map(Kernels::new);
    for (kernels, case) in references
        .flat_map(|kernels| cases().map(move |case| (kernels, case)))
        .filter(|(_, case)| !case.wild && case.width < 11)
    {
        let element = kernels.tier().element();
        let size = element.bytes();
        let mut built = case.build(element, false);
        let before = built.numbers(element);
        let task = case.task(&built.planes, &built.blocks);
        kernels.winograd_reference(&mut built.arena, built.packed.bytes(), &task);
        let mut expected = before.clone();
        let channels: usize = case.planes.iter().sum();
        for (block, kernel) in built.blocks.iter().zip(&built.kernels) {
            for (y, x) in (0..case.rows).flat_map(|y| (0..case.width).map(move |x| (y, x))) {
                for lane in 0..block.lanes {
                    let mut sum = f64::from(built.packed.floats()[block.bias / 4 + lane]);
                    let mut channel = 0;
                    for plane in &built.planes {
                        for c in 0..plane.count {
                            for tap in 0..9 {
                                let at = plane.from.of(y + tap / 3, x + tap % 3) / size + c;
                                let w = kernel[(lane * channels + channel) * 9 + tap];
                                sum += f64::from(before[at]) * f64::from(w);
                            }
                            channel += 1;
                        }
                    }
                    let mut value = sum as f32;
                    if case.act == Activation::Silu {
                        value = silu(value);
                    }
                    if let Some(residual) = block.residual {
                        value += before[residual.of(y, x) / size + lane];
                    }
                    expected[block.out.of(y, x) / size + lane] = value;
                }
            }
        }
        // One rounding to bf16, and the coarse SiLU before it.
        let close = if element == Element::F32 { 2e-5 } else { 1.0 / 128.0 };
        for (ours, expected) in built.numbers(element).into_iter().zip(expected) {
            assert!(
                (ours - expected).abs() <= close * expected.abs().max(1.0),
                "{ours} {expected}"
            );
        }
    }
}

#[test]
fn tasks_that_leave_their_memory_are_refused() {
    let case = Case {
        width: 5,
        rows: 3,
        planes: vec![32],
        blocks: vec![32],
        residual: true,
        act: Activation::Silu,
        wild: false,
        seed: 1,
    };
    type Change = fn(&mut Vec<KStep>, &mut Vec<Block>, &mut usize, &mut usize);
    let changes: [Change; 18] = [
        |planes, _, _, _| planes[0].from.at += 64,
        |planes, _, _, _| planes[0].from.at = usize::MAX / 64 * 64,
        |planes, _, _, _| planes[0].from.row += 64,
        |planes, _, _, _| planes[0].from.px += 64,
        |planes, _, _, _| planes[0].from.at -= 16,
        |planes, _, _, _| planes[0].count = 24,
        |planes, _, _, _| planes[0].count = usize::MAX / 4,
        |planes, _, _, _| planes.push(planes[0]),
        |_, blocks, _, _| blocks[0].weights += 64,
        |_, blocks, _, _| blocks[0].bias = usize::MAX / 64 * 64,
        |_, blocks, _, _| blocks[0].lanes = 48,
        |_, blocks, _, _| blocks[0].out.at = usize::MAX / 64 * 64,
        |_, blocks, _, _| blocks[0].out.row *= 1000,
        |_, blocks, _, _| blocks[0].residual.as_mut().unwrap().at = usize::MAX / 64 * 64,
        |_, blocks, _, _| blocks[0].init = blocks[0].residual,
        |_, _, rows, _| *rows += 1,
        |_, _, _, width| *width += 1,
        // Numbers of rows and pixels that wrap round when something is added.
        |_, blocks, rows, width| {
            let Block { out, residual, .. } = &mut blocks[0];
            (out.row, out.px, *residual) = (0, 0, None);
            (*rows, *width) = (usize::MAX, usize::MAX);
        },
    ];
    for kernels in with() {
        for (index, change) in changes.iter().enumerate() {
            let element = kernels.tier().element();
            let mut built = case.build(element, true);
            let Built { arena, packed, planes, blocks, .. } = &mut built;
            let (mut rows, mut width) = (case.rows, case.width);
            change(planes, blocks, &mut rows, &mut width);
            let task = Winograd { rows, width, ..case.task(planes, blocks) };
            let scratch = &mut case.scratch();
            let run = || kernels.winograd(arena, packed.bytes(), scratch, &task);
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "change {index} was taken");
        }
        let mut built = case.build(kernels.tier().element(), true);
        let task = case.task(&built.planes, &built.blocks);
        let mut small = Memory::new(4 * Winograd::scratch(32) - 64).unwrap();
        let run = || kernels.winograd(&mut built.arena, built.packed.bytes(), &mut small, &task);
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    }
}
