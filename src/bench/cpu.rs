//! The measurements of our kernels.

use std::path::PathBuf;
use std::sync::Arc;

use super::{JobError, Only, Options, PEAK, Report};
use super::{end_to_end, latency, layers, network, pictures};
use crate::engine::Engine;
use crate::engine::fused::Fused;
use crate::job::peak as peak_memory;
use crate::kernels::{Tier, peak};
use crate::pool::Params;
use crate::yolo::Network;

/// Fills in what the kernels of `tier` do with `network`.
pub(super) fn measure(
    report: &mut Report,
    options: &Options,
    network: &Network,
    tier: Tier,
    params: &Arc<Params>,
    files: &[PathBuf],
) -> Result<(), JobError> {
    let (workers, window) = (report.workers, options.window());
    let engine = Fused::new(network, tier).map_err(|error| JobError::usage(&error))?;
    let engine = Arc::new(engine);
    report.tier = tier.name().into();
    report.numeric_class = engine.numeric_class().to_owned();
    report.device = "cpu".into();
    // First, so that the peak of memory is that of a job and not of this program's own pictures.
    if options.wants(Only::EndToEnd) {
        let engine: Arc<dyn Engine> = engine.clone();
        report.add_end_to_end(end_to_end::run(&engine, params, files, workers, window)?);
    }
    if options.wants(Only::Model) || options.per_layer || options.latency {
        let pictures = pictures::letterboxed(files, params)?;
        let gflop = |p: &pictures::Picture| -> f64 {
            engine.layers(p.width, p.height).iter().map(|layer| layer.gflop).sum()
        };
        let mean = pictures.iter().map(gflop).sum::<f64>() / pictures.len() as f64;
        report.network_gflop = Some(mean);
        if options.wants(Only::Model) {
            let sparse = network::run(&engine, &pictures, workers, window, false)?;
            let dense = network::run(&engine, &pictures, workers, window, true)?;
            report.model_pictures = pictures.len();
            report.model_images_per_second = Some(sparse.images_per_second);
            report.model_ms = Some(sparse.times);
            report.model_cpu_ms = Some(sparse.cpu_ms);
            report.model_dense_images_per_second = Some(dense.images_per_second);
            report.model_dense_ms = Some(dense.times);
            report.model_dense_cpu_ms = Some(dense.cpu_ms);
        }
        if options.latency {
            report.latency_ms = Some(latency::run(&engine, params, files, workers, window)?);
        }
        if options.per_layer {
            report.layers = Some(layers::run(&engine, &pictures[0], window)?);
        }
    }
    // Last, when the clock is where the load has brought it.
    report.peak_gflops = peak(tier, PEAK).unwrap_or(0.0);
    if let Some(layers) = &mut report.layers {
        layers.peak_gflops = layers.peak_gflops.max(report.peak_gflops);
        report.peak_gflops = layers.peak_gflops;
    }
    report.peak_memory_bytes = report.peak_memory_bytes.or_else(peak_memory);
    Ok(())
}
