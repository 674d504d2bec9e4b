//! `--prometheus`: a file for the textfile collector of node_exporter.
//!
//! All are gauges: they say how the last run ended and what the job amounts to, and go down again
//! with the next job. `haul_job_*` is the whole job, `haul_run_*` this run.

use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use super::Ended;

/// A file in the text exposition format.
struct Metrics {
    text: String,
    output: String,
}

impl Metrics {
    /// A metric with its samples: a further label with its value, and the number.
    fn put<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Option<(&'a str, &'a str)>, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (further, number) in samples {
            let output = &self.output;
            let further = further
                .map_or(String::new(), |(name, value)| format!(",{name}=\"{}\"", label(value)));
            let _ = writeln!(self.text, "{name}{{output=\"{output}\"{further}}} {number}");
        }
    }

    /// A metric with one sample.
    fn one(&mut self, name: &str, help: &str, number: f64) {
        self.put(name, help, [(None, number)]);
    }
}

/// A label's value, which may hold any Unicode.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The metrics as text. Of a job that could not be opened there is only how the run ended.
pub(super) fn metrics(ended: &Ended<'_>) -> String {
    let output = label(ended.output);
    let mut metrics = Metrics { text: String::new(), output };
    let time = ended.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics.one("haul_run_exit_code", "How the last run ended.", f64::from(ended.exit as u8));
    let help = "When the last run ended, in seconds since 1970.";
    metrics.one("haul_run_end_timestamp_seconds", help, time.as_millis() as f64 / 1e3);
    let Some(report) = ended.report else { return metrics.text };

    // With every picture committed a run may still have failed before it could say so.
    let complete = report.state == "done"
        && report.plan_complete
        && report.ok + report.failed == report.planned;
    let help = "Whether the job is finished: every planned picture is committed.";
    metrics.one("haul_job_complete", help, f64::from(u8::from(complete)));
    let states = [("planned", report.planned), ("ok", report.ok), ("failed", report.failed)];
    metrics.put(
        "haul_job_pictures",
        "Pictures of the job; ok and failed ones are committed.",
        states.map(|(state, count)| (Some(("state", state)), count as f64)),
    );
    let states = [("planned", report.batches), ("committed", report.committed)];
    metrics.put(
        "haul_job_batches",
        "Mini-batches of the job.",
        states.map(|(state, count)| (Some(("state", state)), count as f64)),
    );
    metrics.put(
        "haul_job_errors",
        "Failed pictures by code.",
        report.errors.iter().map(|(code, count)| (Some(("code", code.as_str())), *count as f64)),
    );
    metrics.put(
        "haul_job_detections",
        "Detections by class.",
        report.classes.iter().map(|(name, count)| (Some(("class", name.as_str())), *count as f64)),
    );
    // The same gate may be given twice, the same sample may not.
    let mut gates: Vec<_> = report.gates.iter().collect();
    gates.sort_by(|a, b| a.expression.cmp(&b.expression));
    gates.dedup_by(|a, b| a.expression == b.expression);
    metrics.put(
        "haul_job_gate_holds",
        "Whether a gate holds.",
        gates.iter().map(|gate| {
            (Some(("gate", gate.expression.as_str())), f64::from(u8::from(gate.holds)))
        }),
    );
    metrics.one("haul_run_pictures", "Pictures the last run worked on.", report.pictures as f64);
    metrics.one("haul_run_seconds", "Wall time of the last run's work.", report.seconds);
    let help = "Pictures a second in the last run.";
    metrics.one("haul_run_images_per_second", help, report.images_per_second);
    metrics.one("haul_run_workers", "Worker threads of the last run.", report.workers as f64);
    let stages = serde_json::to_value(report.stages).unwrap_or_default();
    metrics.put(
        "haul_run_stage_seconds",
        "Thread time of the last run by stage.",
        stages.as_object().into_iter().flatten().filter_map(|(stage, seconds)| {
            Some((Some(("stage", stage.as_str())), seconds.as_f64()?))
        }),
    );
    let help = "The share of the workers' time in which there was no picture for them.";
    metrics.one("haul_run_waiting_ratio", help, report.waiting);
    if let Some(traffic) = &report.store {
        let help = "Requests of the last run to S3.";
        metrics.one("haul_run_store_requests", help, traffic.requests as f64);
        metrics.put(
            "haul_run_store_retries",
            "Those of them that were made again, by what was wrong.",
            traffic
                .retried
                .iter()
                .map(|(kind, count)| (Some(("kind", kind.as_str())), *count as f64)),
        );
    }
    if let Some(peak) = report.peak_memory {
        let help = "The most memory the last run held.";
        metrics.one("haul_run_peak_memory_bytes", help, peak as f64);
    }
    metrics.text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::{ended, report};
    use super::super::{Exit, Report};
    use super::*;
    use crate::job::GateResult;

    /// Reads the format back, as strictly as node_exporter does: each sample once, after HELP and
    /// TYPE of its metric, in one group.
    fn read(text: &str) -> Vec<(String, f64)> {
        assert!(text.ends_with('\n'));
        let (mut metric, mut typed) = (String::new(), false);
        let (mut metrics, mut names) = (BTreeSet::new(), BTreeSet::new());
        let mut samples = Vec::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                metric = help.split_once(' ').unwrap().0.to_owned();
                assert!(metrics.insert(metric.clone()), "{metric} comes twice");
                typed = false;
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                assert_eq!(kind, format!("{metric} gauge"));
                typed = true;
            } else {
                let (name, number) = line.rsplit_once(' ').unwrap();
                assert!(typed && name.starts_with(&format!("{metric}{{")), "{line}");
                assert!(names.insert(name.to_owned()), "{name} comes twice");
                samples.push((name.to_owned(), number.parse().unwrap()));
            }
        }
        samples
    }

    #[test]
    fn every_number_under_its_name() {
        let gate = |holds| GateResult {
            expression: "class \"a\\b\"\n >= 1".into(),
            value: 0.0,
            holds,
            measured: "0".into(),
        };
        let mut report = Report { gates: vec![gate(false), gate(false)], ..report() };
        report.stages.infer = 1.5;
        report.store = Some(crate::store::Traffic {
            requests: 40,
            retried: [("slow down".to_owned(), 3)].into(),
            ..Default::default()
        });
        let samples = read(&metrics(&ended(Exit::Gate, Some(&report), &[])));
        let value = |name: &str| {
            let found = samples.iter().find(|(sample, _)| sample == name);
            found.unwrap_or_else(|| panic!("no {name} in {samples:?}")).1
        };
        for (name, expected) in [
            (r#"haul_run_exit_code{output="/data/out"}"#, 6.0),
            (r#"haul_run_end_timestamp_seconds{output="/data/out"}"#, 1_790_000_000.0),
            (r#"haul_job_complete{output="/data/out"}"#, 1.0),
            (r#"haul_job_pictures{output="/data/out",state="failed"}"#, 4214.0),
            (r#"haul_job_batches{output="/data/out",state="committed"}"#, 50.0),
            (r#"haul_job_errors{output="/data/out",code="truncated"}"#, 4212.0),
            (r#"haul_job_detections{output="/data/out",class="a|b"}"#, 1.0),
            (r#"haul_job_gate_holds{output="/data/out",gate="class \"a\\b\"\n >= 1"}"#, 0.0),
            (r#"haul_run_stage_seconds{output="/data/out",stage="infer"}"#, 1.5),
            (r#"haul_run_seconds{output="/data/out"}"#, 12.5),
            (r#"haul_run_store_requests{output="/data/out"}"#, 40.0),
            (r#"haul_run_store_retries{output="/data/out",kind="slow down"}"#, 3.0),
            (r#"haul_run_peak_memory_bytes{output="/data/out"}"#, 1_048_576.0),
        ] {
            assert_eq!(value(name), expected, "{name}");
        }
    }

    #[test]
    fn a_run_that_could_not_begin_says_only_that() {
        let samples = read(&metrics(&ended(Exit::Refused, None, &[])));
        let names: Vec<&str> = samples.iter().map(|(n, _)| n.split('{').next().unwrap()).collect();
        assert_eq!(names, ["haul_run_exit_code", "haul_run_end_timestamp_seconds"]);
        assert_eq!(samples[0].1, 2.0);
        // One that was interrupted is not complete, whatever is committed.
        let report = Report { planned: 5001, ..report() };
        let samples = read(&metrics(&ended(Exit::Interrupted, Some(&report), &[])));
        let complete = samples.iter().find(|(name, _)| name.starts_with("haul_job_complete"));
        assert_eq!(complete.unwrap().1, 0.0);
        // Nor one that failed when all was committed and it was not marked as finished.
        let report = Report { state: "failed".into(), ..super::super::tests::report() };
        let samples = read(&metrics(&ended(Exit::Refused, Some(&report), &[])));
        let complete = samples.iter().find(|(name, _)| name.starts_with("haul_job_complete"));
        assert_eq!(complete.unwrap().1, 0.0);
    }
}
