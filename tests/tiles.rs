//! The AMX tier on whole networks, wherever the tests run: where the processor has no tiles, they
//! are emulated instruction by instruction.

#[path = "common/amx/mod.rs"]
mod amx;
mod common;

use common::formula::{Scale, input};
use haul::engine::fused::{Fused, Strips};
use haul::engine::{Engine, Input, RawHead};
use haul::kernels::{Cpu, Tier};
use haul::yolo::Network;

/// Whether the AMX tier can run here, with the emulator's help if need be.
fn tiles() -> bool {
    static READY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *READY.get_or_init(|| {
        if !Cpu::get().has(Tier::Avx512Bf16) {
            println!("skipped: the AMX tier needs AVX-512 and AVX512-BF16 besides");
            return false;
        }
        if !Cpu::get().has(Tier::Amx) {
            amx::install();
            Cpu::pretend_amx();
        }
        true
    })
}

fn head(network: &Network, tier: Tier, strips: Strips, (width, height): (usize, usize)) -> RawHead {
    let engine = Fused::with_strips(network, tier, strips).unwrap();
    let mut worker = engine.fused_worker().unwrap();
    worker.head(&input(height, width), width, height).unwrap()
}

fn relative(ours: &[f32], theirs: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let pairs = ours.iter().zip(theirs);
    let error: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    (error / theirs.iter().map(|&b| square(f64::from(b))).sum::<f64>()).sqrt()
}

#[test]
fn tiles_agree_with_vectors() {
    if !tiles() {
        return;
    }
    let n = vec![1, 2, 2, 1, 1, 1, 1, 1];
    let odd = Scale { widths: vec![8, 24, 40, 72, 104], depths: n.clone(), classes: 3 };
    let nano = Scale { widths: vec![16, 32, 64, 128, 256], depths: n, classes: 80 };
    for (name, scale, size) in [
        ("odd", &odd, (96, 64)),
        ("odd", &odd, (32, 160)),
        ("nano", &nano, (128, 96)),
        ("nano", &nano, (352, 64)),
    ] {
        let network = scale.network();
        let vectors = head(&network, Tier::Avx512Bf16, Strips::default(), size);
        let single = head(&network, Tier::Avx512, Strips::default(), size);
        let tiles = head(&network, Tier::Amx, Strips::default(), size);
        for (level, ((a, b), c)) in
            tiles.levels.iter().zip(&vectors.levels).zip(&single.levels).enumerate()
        {
            let ours = [relative(&a.boxes, &b.boxes), relative(&a.scores, &b.scores)];
            let single = [relative(&a.boxes, &c.boxes), relative(&a.scores, &c.scores)];
            println!("{name} {size:?} level {level}: to vectors {ours:?}, to f32 {single:?}");
            // What rounding to bf16 once a layer costs, and no more.
            assert!(ours.iter().chain(&single).all(|&error| error < 0.04), "{name} {size:?}");
        }
    }
}

#[test]
fn the_schedule_changes_no_bit() {
    if !tiles() {
        return;
    }
    let depths = vec![1, 1, 1, 1, 1, 1, 1, 1];
    let scale = Scale { widths: vec![8, 24, 40, 72, 104], depths, classes: 17 };
    let network = scale.network();
    let whole = Strips { up_to_stride: 0, ..Strips::default() };
    let expected = head(&network, Tier::Amx, whole, (160, 96));
    for rows in [32, 64, 96] {
        let strips = Strips { rows: Some(rows), ..Strips::default() };
        let got = head(&network, Tier::Amx, strips, (160, 96));
        for (a, b) in expected.levels.iter().zip(&got.levels) {
            assert!(a.boxes == b.boxes && a.scores == b.scores, "strips of {rows} rows");
        }
    }
}

#[test]
fn a_worker_that_gave_its_tiles_back_takes_them_again() {
    if !tiles() {
        return;
    }
    let depths = vec![1, 1, 1, 1, 1, 1, 1, 1];
    let scale = Scale { widths: vec![8, 16, 16, 16, 16], depths, classes: 2 };
    let engine = Fused::new(&scale.network(), Tier::Amx).unwrap();
    assert_eq!(engine.numeric_class(), "bf16-amx");
    let rgb: Vec<u8> = (0..64 * 64 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let input = Input { width: 64, height: 64, rgb: &rgb };
    let mut worker = engine.worker().unwrap();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    worker.run(input, 0.0, &mut first).unwrap();
    worker.idle();
    worker.run(input, 0.0, &mut second).unwrap();
    assert!(!first.is_empty());
    assert_eq!(first, second);
}

#[test]
fn a_team_changes_no_bit() {
    if !tiles() {
        return;
    }
    let depths = vec![1, 1, 1, 1, 1, 1, 1, 1];
    let scale = Scale { widths: vec![8, 24, 40, 72, 104], depths, classes: 17 };
    let engine = Fused::new(&scale.network(), Tier::Amx).unwrap();
    let (width, height) = (160, 96);
    let planes = input(height, width);
    let alone = engine.fused_worker().unwrap().head(&planes, width, height).unwrap();
    let mut team = engine.team_worker(3.try_into().unwrap()).unwrap();
    for _ in 0..5 {
        let together = team.head(&planes, width, height).unwrap();
        for (a, b) in alone.levels.iter().zip(&together.levels) {
            assert!(a.boxes == b.boxes && a.scores == b.scores);
        }
    }
}
