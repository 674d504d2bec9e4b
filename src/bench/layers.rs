//! Each op of the network: its time, its rate, and the share of what the core could do.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::pictures::Picture;
use super::times::p10;
use super::{JobError, PEAK, fault};
use crate::engine::fused::{Fused, Profile};
use crate::kernels::peak;

/// Least confidence of a candidate, as by default in jobs.
const CONF: f32 = 0.25;

/// One op.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LayerTime {
    /// The convolution's name in the checkpoint, or what else is done.
    pub name: String,
    /// Kernel, channels, pixels.
    pub shape: String,
    /// Multiplications and additions of a direct convolution, in 10⁹.
    pub gflop: f64,
    /// Milliseconds; a tenth of the runs took less.
    pub ms: f64,
    /// How often it was begun: once for each strip.
    pub strips: u64,
}

/// All ops of one picture on one thread.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Layers {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Pictures that were run.
    pub runs: usize,
    /// What one reading of the clock takes, in nanoseconds; it is taken off the times.
    pub clock_ns: f64,
    /// The same picture without readings of the clock, and with box branches only where something is
    /// found, in milliseconds, p10.
    pub whole_ms: f64,
    /// What one core can do, in 10⁹ operations a second.
    pub peak_gflops: f64,
    /// In order.
    pub layers: Vec<LayerTime>,
}

pub(super) fn run(engine: &Fused, picture: &Picture, window: Duration) -> Result<Layers, JobError> {
    let wrong = |error| fault(&error);
    let mut worker = engine.fused_worker().map_err(wrong)?;
    let (input, mut profile) = (picture.input(), Profile::default());
    let before = peak(engine.tier(), PEAK).unwrap_or(0.0);
    let (mut runs, mut whole) = (Vec::<Vec<u64>>::new(), Vec::new());
    let clock_ns = clock();
    let begin = Instant::now();
    let mut found = Vec::new();
    for number in 0.. {
        // In turn, so that both see the same weather.
        worker.profile(input, &mut profile).map_err(wrong)?;
        let start = Instant::now();
        crate::engine::Worker::run(&mut worker, input, CONF, &mut found).map_err(wrong)?;
        if number >= 2 {
            whole.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
            runs.push(profile.nanos.clone());
        }
        if begin.elapsed() >= window && runs.len() >= 5 {
            break;
        }
    }
    let layers = engine.layers(input.width, input.height).into_iter().enumerate();
    let layers = layers.map(|(index, layer)| {
        let mut nanos: Vec<u64> = runs.iter().map(|run| run[index]).collect();
        let strips = profile.readings[index];
        let nanos = (p10(&mut nanos) - clock_ns * strips as f64).max(0.0);
        let ms = nanos / 1e6;
        LayerTime { name: layer.name, shape: layer.shape, gflop: layer.gflop, ms, strips }
    });
    Ok(Layers {
        width: input.width,
        height: input.height,
        layers: layers.collect(),
        runs: runs.len(),
        clock_ns,
        whole_ms: p10(&mut whole) / 1e6,
        peak_gflops: before,
    })
}

/// Nanoseconds between two readings of the clock, one directly after the other.
fn clock() -> f64 {
    const READINGS: u32 = 100_000;
    let start = Instant::now();
    for _ in 0..READINGS {
        std::hint::black_box(Instant::now());
    }
    start.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

impl Layers {
    /// As a table, with a sum at the end.
    #[must_use]
    pub fn text(&self) -> String {
        let name = self.layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0);
        let shape = self.layers.iter().map(|l| l.shape.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        let mut row = |layer: &LayerTime| {
            let (rate, share) = match layer.gflop > 0.0 && layer.ms > 0.0 {
                true => {
                    let rate = layer.gflop / layer.ms * 1e3;
                    (format!("{rate:.1}"), format!("{:.0} %", 100.0 * rate / self.peak_gflops))
                }
                false => Default::default(),
            };
            let gflop = match layer.gflop > 0.0 {
                true => format!("{:.4}", layer.gflop),
                false => String::new(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:name$}  {:shape$}  {gflop:>7}  {:>8.3}  {rate:>8}  {share:>6}  {:>6}",
                layer.name, layer.shape, layer.ms, layer.strips
            );
        };
        for layer in &self.layers {
            row(layer);
        }
        row(&LayerTime {
            name: "all".into(),
            shape: format!("{}x{}", self.width, self.height),
            gflop: self.layers.iter().map(|layer| layer.gflop).sum(),
            ms: self.layers.iter().map(|layer| layer.ms).sum(),
            strips: self.layers.iter().map(|layer| layer.strips).sum(),
        });
        let head = format!(
            "{:name$}  {:shape$}  {:>7}  {:>8}  {:>8}  {:>6}  {:>6}\n",
            "layer", "shape", "GFLOP", "ms", "GFLOP/s", "peak", "strips"
        );
        format!(
            "{head}{text}p10 of {} runs on one thread; peak {:.1} GFLOP/s; {:.0} ns for each reading of \
             the clock are taken off; the whole, with boxes only where something is found, takes {:.3} \
             ms\n",
            self.runs, self.peak_gflops, self.clock_ns, self.whole_ms
        )
    }
}
