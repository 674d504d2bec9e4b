//! The measurements of an engine that takes pictures in batches on devices of its own. What is inside
//! of it is not looked at.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{JobError, Only, Options, Report};
use super::{end_to_end, lanes, latency, pictures};
use crate::engine::Engine;
use crate::job::{about_batch, peak as peak_memory};
use crate::pool::Params;

/// Fills in what `engine` does, which took `opened` to be ready.
pub(super) fn measure(
    report: &mut Report,
    options: &Options,
    engine: &Arc<dyn Engine>,
    opened: Duration,
    params: &Arc<Params>,
    files: &[PathBuf],
) -> Result<(), JobError> {
    let window = options.window();
    let Some(batching) = engine.batching() else {
        let what = format!("{} takes no batches. This is a bug.", engine.numeric_class());
        return Err(JobError::Internal(what));
    };
    report.tier = "cuda".into();
    report.numeric_class = engine.numeric_class().to_owned();
    report.batch = Some(batching.pictures);
    report.notes.extend(about_batch(options.arithmetic.batch, report.batch, false));
    let mut warm_up = opened;
    // First, so that the peak of memory is that of a job and not of this program's own pictures.
    if options.wants(Only::EndToEnd) {
        report.add_end_to_end(end_to_end::run(engine, params, files, report.workers, window)?);
    }
    if options.wants(Only::Model) {
        let pictures = pictures::letterboxed(files, params)?;
        let run = lanes::run(engine, batching, &pictures, window)?;
        report.model_pictures = run.pictures;
        report.model_images_per_second = Some(run.images_per_second);
        report.model_ms = Some(run.times);
        warm_up += run.warm_up;
    }
    if options.latency {
        report.latency_ms = Some(vec![latency::run_lane(&**engine, params, files, window)?]);
    }
    report.warm_up_seconds = Some(warm_up.as_secs_f64());
    report.peak_memory_bytes = report.peak_memory_bytes.or_else(peak_memory);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::double::Double;
    use super::super::{params, pictures};
    use super::*;
    use crate::engine::{Arithmetic, Device};
    use crate::store::S3Options;

    #[test]
    fn the_report_is_of_a_device_and_its_batches() {
        let images = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/pictures");
        let device = Device::Cuda(vec![0, 1]);
        let options = Options {
            model: PathBuf::new(),
            s3: S3Options::default(),
            images: images.clone(),
            imgsz: None,
            square: false,
            arithmetic: Arithmetic {
                device: device.clone(),
                batch: Some(64),
                ..Default::default()
            },
            workers: None,
            seconds: 0.3,
            only: None,
            per_layer: false,
            latency: true,
        };
        let files = pictures::find(&images).unwrap();
        let params = Arc::new(params(64, false));
        let double = Double::default();
        let begun = double.begun.clone();
        let engine: Arc<dyn Engine> = Arc::new(double);
        let mut report = Report { device: device.to_string(), workers: 2, ..Report::default() };
        let opened = Duration::from_millis(500);
        measure(&mut report, &options, &engine, opened, &params, &files).unwrap();

        assert_eq!((report.batch, report.numeric_class.as_str()), (Some(4), "double"));
        assert!(report.warm_up_seconds.unwrap() > 0.5, "{:?}", report.warm_up_seconds);
        assert!(report.model_images_per_second.unwrap() > 1.0);
        assert!(report.end_to_end_images_per_second.unwrap() > 1.0 && report.failed_pictures == 0);
        let devices = report.devices.unwrap();
        assert_eq!((devices.devices, devices.batch), (2, 4));
        let latency = &report.latency_ms.as_ref().unwrap()[0];
        assert!(latency.threads == 1 && latency.whole.count > 0, "{latency:?}");
        // The double takes two milliseconds for a batch, of four or of one.
        assert!(latency.network.p10 >= 2.0 && latency.whole.p10 >= latency.network.p10);
        let begun = begun.lock().unwrap();
        let alone = begun.iter().filter(|batch| batch.first.len() == 1).count();
        assert!(alone >= latency.whole.count && alone < begun.len(), "{alone} of {}", begun.len());
        assert!(report.notes[0].contains("batches of 4 instead of 64"), "{:?}", report.notes);
        let text = report.text();
        for words in [
            "from files to boxes",
            "batches of 4, class double, on cuda:0,1",
            "warm-up",
            "one at a time",
        ] {
            assert!(text.contains(words), "{words} is not in {text}");
        }
        assert!(!text.contains("peak of one core"), "{text}");
    }
}
