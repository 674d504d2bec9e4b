//! What was measured: JSON for programs (fields keep their names), a page for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Latency, Layers, Stages, Times, end_to_end};
use crate::job::{mib, peak};
use crate::pool::DevicesSoFar;

/// All numbers; `null` where something was not measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Version.
    pub haul: String,
    /// The processor, as it calls itself.
    pub cpu: String,
    /// The checkpoint's path.
    pub model: String,
    /// The tier of kernels; `cuda` on GPUs.
    pub tier: String,
    /// The name of its arithmetic.
    pub numeric_class: String,
    /// What was asked for.
    pub precision: String,
    /// Longest side of the network's input.
    pub imgsz: u32,
    /// Letterboxed to a square.
    pub square: bool,
    /// Where the network runs: `cpu`, or GPUs as `--device` names them.
    pub device: String,
    /// The names of these GPUs.
    pub gpus: Vec<String>,
    /// Pictures that a GPU computes together.
    pub batch: Option<usize>,
    /// Setting up the GPUs and computing each size of picture once. Part of no rate.
    pub warm_up_seconds: Option<f64>,
    /// What there is to say about where the network runs.
    pub notes: Vec<String>,
    /// Worker threads.
    pub workers: usize,
    /// Of each measurement.
    pub seconds: f64,
    /// Picture files found.
    pub files: usize,
    /// Operations of one picture in 10⁹, mean.
    pub network_gflop: Option<f64>,
    /// Multiply-add rate of one core in 10⁹ operations a second; 0 where GPUs compute.
    pub peak_gflops: f64,
    /// Pictures held in memory for the network alone.
    pub model_pictures: usize,
    /// Letterboxed bytes to candidates above 0.25, all workers. On GPUs in full batches, from the
    /// memory that GPUs read pictures from, copies included.
    pub model_images_per_second: Option<f64>,
    /// One picture of that; on GPUs its share of the time between one batch and the next.
    pub model_ms: Option<Times>,
    /// Time of a core for one picture of that, in milliseconds: what others took from the cores is
    /// not in it.
    pub model_cpu_ms: Option<f64>,
    /// Letterboxed bytes to every anchor decoded, all workers.
    pub model_dense_images_per_second: Option<f64>,
    /// One picture of that.
    pub model_dense_ms: Option<Times>,
    /// Time of a core for one picture of that.
    pub model_dense_cpu_ms: Option<f64>,
    /// Files to detections, all workers.
    pub end_to_end_images_per_second: Option<f64>,
    /// Pictures that were counted for it.
    pub end_to_end_pictures: usize,
    /// Pictures that could not be done.
    pub failed_pictures: usize,
    /// Means of a picture by stage.
    pub stages_ms: Option<Stages>,
    /// What the engine's devices did for that, if it has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<DevicesSoFar>,
    /// One picture at a time: on one thread, and on as many as there are workers. On a GPU in a batch
    /// that is padded to its size.
    pub latency_ms: Option<Vec<Latency>>,
    /// Op by op.
    pub layers: Option<Layers>,
    /// The most memory the process held: after the end-to-end run where there is one.
    pub peak_memory_bytes: Option<u64>,
}

impl Report {
    /// Takes over what files to boxes came to, and the peak of memory while it did.
    pub(super) fn add_end_to_end(&mut self, run: end_to_end::Run) {
        self.end_to_end_images_per_second = Some(run.images_per_second);
        self.end_to_end_pictures = run.pictures;
        self.failed_pictures = run.failed;
        self.stages_ms = Some(run.stages);
        self.devices = run.devices;
        self.peak_memory_bytes = peak();
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let mut line = |words: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "{words}");
        };
        let shape = if self.square { ", square" } else { "" };
        let (tier, on) = match self.batch {
            None => (format!("tier {}", self.tier), self.cpu.clone()),
            Some(batch) => (
                format!("batches of {batch}"),
                format!("{} ({}), {}", self.device, self.gpus.join(", "), self.cpu),
            ),
        };
        line(format_args!(
            "{} at {}{shape}, {} workers, {tier}, class {}, on {on}",
            self.model, self.imgsz, self.workers, self.numeric_class
        ));
        if let Some(seconds) = self.warm_up_seconds {
            line(format_args!("warm-up               {seconds:8.2} s, in no rate"));
        }
        let parts = [
            ("network", self.model_images_per_second, self.model_ms, self.model_cpu_ms),
            (
                "network, all anchors",
                self.model_dense_images_per_second,
                self.model_dense_ms,
                self.model_dense_cpu_ms,
            ),
        ];
        for (name, rate, times, cpu) in parts {
            if let (Some(rate), Some(times)) = (rate, times) {
                let cpu = cpu.map_or_else(String::new, |cpu| format!(", {cpu:.2} ms of a core"));
                line(format_args!(
                    "{name:<22}{rate:8.2} images/s    {:.2} ms a picture (p10 {:.2}, p90 {:.2}){cpu}",
                    times.median, times.p10, times.p90
                ));
            }
        }
        if let (Some(rate), Some(stages)) = (self.end_to_end_images_per_second, self.stages_ms) {
            line(format_args!(
                "{:<22}{rate:8.2} images/s    ms: decode {:.2}, letterbox {:.2}, network {:.2}, \
                 boxes {:.3}, idle {:.2}; fetch {:.3} beside",
                "from files to boxes",
                stages.decode,
                stages.letterbox,
                stages.infer,
                stages.boxes,
                stages.idle,
                stages.fetch
            ));
        }
        if let Some(devices) = &self.devices {
            line(format_args!(
                "{:<22}busy {:.1} %, batches of {} {:.1} % full",
                "devices",
                100.0 * devices.utilisation(),
                devices.batch,
                100.0 * devices.fullness()
            ));
        }
        if self.failed_pictures > 0 {
            line(format_args!("{} pictures could not be done", self.failed_pictures));
        }
        for Latency { threads, network, whole } in self.latency_ms.iter().flatten() {
            line(format_args!(
                "one at a time, {threads} threads: network {:.2} ms (p10 {:.2}, p90 {:.2}), bytes \
                 to boxes {:.2} ms (p10 {:.2}, p90 {:.2})",
                network.median, network.p10, network.p90, whole.median, whole.p10, whole.p90
            ));
        }
        let memory = self.peak_memory_bytes.map_or_else(|| "unknown".to_owned(), mib);
        match self.batch {
            Some(_) => line(format_args!("peak memory {memory}, without that of GPUs")),
            None => line(format_args!(
                "peak of one core {:.1} GFLOP/s{}; peak memory {memory}",
                self.peak_gflops,
                self.network_gflop
                    .map_or_else(String::new, |gflop| format!(", {gflop:.2} GFLOP a picture")),
            )),
        }
        if let Some(layers) = &self.layers {
            text.push('\n');
            text.push_str(&layers.text());
        }
        text
    }
}
