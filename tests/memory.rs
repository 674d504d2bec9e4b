//! What a worker says it needs against what a process takes.

mod common;

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use common::formula::Scale;
use haul::engine::candle::Candle;
use haul::engine::{self, Input, Precision};

/// Names the case to a child process: peaks and kept memory of other cases would be counted in.
const CASE: &str = "HAUL_TEST_MEMORY_CASE";

/// First width of the network (16 is n, 32 is s), width and height of the picture.
const SIZES: [(usize, usize, usize); 3] = [(16, 640, 640), (16, 1280, 1280), (32, 640, 640)];
/// On candle, and on the engine of each precision.
const ENGINES: [Option<Precision>; 3] = [None, Some(Precision::F32), Some(Precision::Auto)];

/// A line of /proc/self/status in bytes; none on other systems.
fn status(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[test]
fn scratch_is_estimated_from_above() {
    if status("VmHWM").is_none() {
        println!("skipped: this system does not tell the peak memory of a process");
        return;
    }
    if let Some(case) = std::env::var_os(CASE) {
        let case: usize = case.to_string_lossy().parse().unwrap();
        measure(ENGINES[case / SIZES.len()], SIZES[case % SIZES.len()]);
        return;
    }
    for case in 0..ENGINES.len() * SIZES.len() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "scratch_is_estimated_from_above", "--nocapture"])
            .env(CASE, case.to_string())
            // As `main` does.
            .envs([("RAYON_NUM_THREADS", "1"), ("CANDLE_NUM_THREADS", "1")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().filter(|line| line.contains("MiB")).for_each(|line| println!("{line}"));
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn measure(precision: Option<Precision>, (first, width, height): (usize, usize, usize)) {
    let widths = vec![first, 2 * first, 4 * first, 8 * first, 16 * first];
    let scale = Scale { widths, depths: vec![1, 2, 2, 1, 1, 1, 1, 1], classes: 80 };
    let network = Arc::new(scale.network());
    let engine = match precision {
        None => Arc::new(Candle::new(&network).unwrap()),
        Some(precision) => {
            engine::load(network, engine::choose(precision, None, None).unwrap()).unwrap()
        }
    };
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let mut worker = engine.worker().unwrap();
    let mut found = Vec::new();
    let mut run = |width: usize, height: usize| {
        let rgb = vec![128u8; 3 * width * height];
        let started = Instant::now();
        let input = Input { width, height, rgb: &rgb };
        one.install(|| worker.run(input, 0.25, &mut found)).unwrap();
        started.elapsed()
    };
    // What is set up once (probe, pools) is not the picture's; neither are weights in freed
    // memory, which the second run might use: so the baseline is what the process has now.
    run(32, 32);
    // Loading may have taken more for a moment: the peak begins anew.
    let anew = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = status("VmRSS").unwrap();
    if !anew && status("VmHWM").unwrap() > before {
        println!("skipped: this system does not let a process begin its peak anew");
        return;
    }
    // Several times, so that memory the allocator cannot reuse would show.
    let took = (0..2).map(|_| run(width, height)).min().unwrap();
    let peak = status("VmHWM").unwrap();
    // The picture's own bytes are the caller's.
    let measured = peak.saturating_sub(before + 3 * (width * height) as u64);
    let estimate = engine.scratch_bytes(width, height);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{} width {first}, {width}x{height}: {:.1} MiB measured, {:.1} MiB estimated, {took:?}",
        engine.numeric_class(),
        mib(measured),
        mib(estimate),
    );
    assert!(measured <= estimate);
    assert!(estimate <= 2 * measured);
}
