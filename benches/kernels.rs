//! The convolutions of each tier of kernels at shapes that YOLOv8n has, in operations a second.
//!
//! `cargo bench --bench kernels` runs all that this CPU has; `-- avx512/3x3` those whose names
//! contain that. Operations are those of a direct convolution, also where Winograd's scheme takes
//! fewer, so that rates compare. Memory is laid out as the engine does it, a strip of rows at the
//! finer scales. Compare with the peak that `haul bench` prints.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use haul::kernels::task::{Activation, Block, Conv, Element, KStep, Place, Store, Winograd};
use haul::kernels::{ALIGN, Cpu, Kernels, Memory, Tier};

/// A convolution: name, kernel, stride, channels in and out, output width and rows.
type Shape = (&'static str, usize, usize, usize, usize, usize, usize);

const SHAPES: [Shape; 7] = [
    ("stem 3x3 s2 3-16 320x16", 3, 2, 3, 16, 320, 16),
    ("3x3 s2 32-64 80x8", 3, 2, 32, 64, 80, 8),
    ("3x3 16-16 160x8", 3, 1, 16, 16, 160, 8),
    ("3x3 64-64 40x40", 3, 1, 64, 64, 40, 40),
    ("3x3 256-64 20x20", 3, 1, 256, 64, 20, 20),
    ("1x1 128-64 80x8", 1, 1, 128, 64, 80, 8),
    ("1x1 256-256 20x20", 1, 1, 256, 256, 20, 20),
];

/// Channels in planes of 32, and of 16 for a small rest; the picture's three are their own.
fn planes(channels: usize) -> Vec<usize> {
    let mut planes = vec![32; channels / 32];
    match channels % 32 {
        0 => {}
        3 => planes.push(3),
        1..=16 => planes.push(16),
        _ => planes.push(32),
    }
    planes
}

/// Places in one memory, one after another.
#[derive(Default)]
struct Space(usize);

impl Space {
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.0;
        self.0 += bytes.next_multiple_of(ALIGN);
        at
    }

    /// Filled with 0.01, so that multiplying is work.
    fn memory(&self, element: Element) -> Memory {
        let mut memory = Memory::new(self.0).expect("memory");
        match element {
            Element::F32 => memory.floats_mut().fill(0.01),
            Element::Bf16 => memory.halves_mut().fill(0x3C24),
        }
        memory
    }
}

/// A convolution in memory.
struct Case {
    arena: Memory,
    packed: Memory,
    transformed: Memory,
    ksteps: Vec<KStep>,
    blocks: Vec<Block>,
    rows: usize,
    width: usize,
}

impl Case {
    fn new(tier: Tier, shape: &Shape, winograd: bool) -> Case {
        let &(_, kernel, stride, inputs, outputs, width, rows) = shape;
        let element = tier.element();
        let size = element.bytes();
        let (mut arena, mut packed) = (Space::default(), Space::default());
        let whole = |count: usize| match (element, tier.has_tiles()) {
            (Element::F32, _) => count,
            (Element::Bf16, false) => count.next_multiple_of(2),
            (Element::Bf16, true) => count.next_multiple_of(32),
        };
        let mut ksteps = Vec::new();
        for lanes in planes(inputs) {
            let px = lanes * size;
            let line = (width * stride + 1) * px;
            // A row above, two below, and what tiles and Winograd's scheme read beyond.
            let at = arena.take((rows * stride + 3) * line + 64 * stride * px);
            let place =
                |ky: usize| Place { at: at + ky * line, row: stride * line, px: stride * px };
            match winograd {
                true => ksteps.push(KStep { from: place(0), count: lanes }),
                false => ksteps.extend(
                    (0..kernel).map(|ky| KStep { from: place(ky), count: whole(kernel * lanes) }),
                ),
            }
        }
        let elements: usize = ksteps.iter().map(|k| k.count).sum();
        let elements = if winograd { Winograd::POSITIONS * elements } else { elements };
        // Transformed weights are in single precision, whatever activations are.
        let weight = if winograd { Element::F32 } else { element };
        let mut blocks = Vec::new();
        for lanes in planes(outputs) {
            let (px, line) = (lanes * size, (width + 1) * lanes * size);
            blocks.push(Block {
                weights: packed.take(elements * lanes * weight.bytes()),
                bias: packed.take(4 * lanes),
                lanes,
                out: Place { at: arena.take((rows + 1) * line), row: line, px },
                residual: None,
                init: None,
            });
        }
        let floats = Winograd::scratch(inputs.next_multiple_of(16));
        Case {
            arena: arena.memory(element),
            packed: packed.memory(weight),
            transformed: Memory::new(4 * floats).expect("memory"),
            ksteps,
            blocks,
            rows,
            width,
        }
    }

    fn run(&mut self, kernels: &Kernels, winograd: bool) {
        let (rows, width, act) = (self.rows, self.width, Activation::Silu);
        let packed = self.packed.bytes();
        if winograd {
            let task = Winograd { planes: &self.ksteps, blocks: &self.blocks, rows, width, act };
            kernels.winograd(&mut self.arena, packed, &mut self.transformed, &task);
        } else {
            let (ksteps, blocks) = (&self.ksteps, &self.blocks);
            let store = Store::Element;
            let task = Conv { ksteps, blocks, rows, width, odd: false, act, store };
            kernels.conv(&mut self.arena, packed, &task);
        }
    }
}

fn convolutions(criterion: &mut Criterion) {
    for tier in Tier::ALL {
        let Some(kernels) = Kernels::new(tier).filter(|_| tier != Tier::Reference) else {
            continue;
        };
        let mut group = criterion.benchmark_group(tier.name());
        group.sample_size(20);
        for shape in &SHAPES {
            let &(name, kernel, stride, inputs, outputs, width, rows) = shape;
            let flop = 2 * kernel * kernel * inputs * outputs * width * rows;
            group.throughput(Throughput::Elements(flop as u64));
            let suits = tier.has_winograd() && kernel == 3 && stride == 1;
            for winograd in [false, true].into_iter().filter(|&winograd| suits || !winograd) {
                let mut case = Case::new(tier, shape, winograd);
                let id = BenchmarkId::new(name, if winograd { "winograd" } else { "direct" });
                group.bench_function(id, |b| {
                    b.iter(|| black_box(&mut case).run(&kernels, winograd));
                });
            }
        }
        group.finish();
        kernels.idle();
    }
    println!("on {}", Cpu::get().brand);
}

criterion_group!(benches, convolutions);
criterion_main!(benches);
