//! The closing summary: for people on stderr, for programs as JSON on stdout.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::exit::Exit;
use super::gate::{Gate, GateResult, Totals, judge};
use super::memory::mib;
use super::notices::grouped;
use crate::pool::DevicesSoFar;
use crate::store::{Skip, Traffic, one_line};

/// A device that is busy for this share of its time is what bounds a run.
const BUSY: f64 = 0.85;

/// … if of its batches' places this share of the time at least is for pictures: else it is kept busy
/// with padding, by whatever keeps pictures from coming.
const WELL_USED: f64 = 0.6;

/// Thread-seconds by stage.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stages {
    /// Listing and planning.
    pub list: f64,
    /// Reading files.
    pub fetch: f64,
    /// Bytes to upright RGB.
    pub decode: f64,
    /// RGB to network input.
    pub letterbox: f64,
    /// The network; where devices compute, the time of theirs between the beginning of a batch and its
    /// end, which is no thread's.
    pub infer: f64,
    /// Choosing boxes.
    pub boxes: f64,
    /// Drawing annotated pictures.
    pub draw: f64,
    /// Publishing parts, records and annotated pictures.
    pub write: f64,
    /// Workers waiting for pictures.
    pub idle: f64,
    /// Workers waiting for memory.
    pub memory: f64,
    /// Workers waiting for a device to take a picture off their hands.
    #[serde(skip_serializing_if = "is_zero")]
    pub devices: f64,
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

/// What a shard's run had to do: its share of the job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// `i/N`.
    pub shard: String,
    /// Pictures in it, as far as the plan goes.
    pub planned: u64,
    /// Pictures committed with detections, maybe none.
    pub ok: u64,
    /// Pictures committed with an error.
    pub failed: u64,
    /// Mini-batches in it.
    pub batches: u64,
    /// Mini-batches committed.
    pub committed: u64,
}

/// What a run did, and what the job amounts to now.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The output's folder.
    pub output: String,
    /// Where annotated pictures are, if they were asked for.
    pub annotated: Option<String>,
    /// `done`, `share done` (a shard's, and others are still missing), `interrupted`, `stopped`,
    /// `failed`, `skipped` (another run holds the output).
    pub state: String,
    /// The exit code.
    pub exit: u8,
    /// Why the run was stopped, if it stopped itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// This run's share of the job, with `--shard`. All other numbers are of the whole job, as far
    /// as this run has seen it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Share>,
    /// Pictures planned, as far as the plan goes.
    pub planned: u64,
    /// Whether the plan is complete.
    pub plan_complete: bool,
    /// Pictures committed with detections, maybe none.
    pub ok: u64,
    /// Pictures committed with an error.
    pub failed: u64,
    /// Mini-batches planned.
    pub batches: u64,
    /// Mini-batches committed.
    pub committed: u64,
    /// Mini-batches that this run gave up on.
    pub given_up: u64,
    /// Parts that an earlier crash had left without a record.
    pub adopted: u64,
    /// Names that were listed and not planned, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Detections by label.
    pub classes: BTreeMap<String, u64>,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
    /// How each gate came out; empty until the job is complete.
    pub gates: Vec<GateResult>,
    /// Pictures that this run worked on.
    pub pictures: u64,
    /// Wall time of this run's work, without loading the model.
    pub seconds: f64,
    /// `pictures / seconds`.
    pub images_per_second: f64,
    /// Worker threads.
    pub workers: usize,
    /// Where the network ran: `cpu`, or the GPUs, as `--device` names them.
    pub device: String,
    /// The engine's numeric class.
    pub numeric_class: String,
    /// Thread-seconds by stage.
    pub stages: Stages,
    /// What the devices did, where devices compute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<DevicesSoFar>,
    /// The share of the workers' time in which there was no picture for them.
    pub waiting: f64,
    /// What was asked of S3, if anything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<Traffic>,
    /// The budget in bytes.
    pub memory_budget: u64,
    /// The most memory the process held, in bytes.
    pub peak_memory: Option<u64>,
    /// One sentence.
    pub bound: String,
}

impl Report {
    /// Holds a complete job against its gates, and gives the exit code that comes of it. A picture
    /// that failed in another shard is that shard's to tell.
    pub fn hold_against(&mut self, gates: &[Gate]) -> Exit {
        let totals = Totals {
            pictures: self.planned,
            failed: self.failed,
            errors: &self.errors,
            classes: &self.classes,
        };
        let (results, mut exit) = judge(gates, &totals);
        self.gates = results;
        if exit == Exit::SomeFailed && self.shard.as_ref().is_some_and(|share| share.failed == 0) {
            exit = Exit::Done;
        }
        self.exit = exit as u8;
        exit
    }

    /// Whether the whole job is complete, not a share of it only.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state == "done"
    }

    /// Fills in the sentence that says what bounded the run.
    pub fn judge(&mut self) {
        let stages = self.stages;
        let available = self.seconds * self.workers as f64;
        if available > 0.0 {
            self.waiting = (stages.idle / available).min(1.0);
        }
        let bounds = |devices: &DevicesSoFar| {
            let busy = devices.utilisation();
            self.pictures > 0 && busy >= BUSY && busy * devices.fullness() >= WELL_USED
        };
        if let Some(devices) = self.devices.filter(bounds) {
            let percent = |share: f64| 100.0 * share;
            let names = if devices.devices == 1 { "the device was" } else { "the devices were" };
            self.bound = format!(
                "Bounded by the network: {names} busy {:.0} % of the time, with batches that were \
                 {:.0} % full.",
                percent(devices.utilisation()),
                percent(devices.fullness())
            );
            return;
        }
        // Where devices compute, that is nobody's time here.
        let infer = if self.devices.is_some() { 0.0 } else { stages.infer };
        let mut shares = [
            ("the network", infer),
            ("waiting for devices", stages.devices),
            ("decoding", stages.decode),
            ("letterboxing", stages.letterbox),
            ("choosing boxes", stages.boxes),
            ("drawing annotated pictures", stages.draw),
            ("the memory budget", stages.memory),
            ("waiting for pictures", stages.idle),
        ];
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        let (name, seconds) = shares[0];
        self.bound = if self.pictures == 0 || available <= 0.0 {
            "Nothing was left to do.".to_owned()
        } else {
            let percent = (100.0 * seconds / available).min(100.0);
            match name {
                "waiting for pictures" => {
                    let feeders = [
                        ("reading files", stages.fetch),
                        ("listing", stages.list),
                        ("writing results", stages.write),
                    ];
                    let (what, busy) = feeders
                        .into_iter()
                        .max_by(|a, b| a.1.total_cmp(&b.1))
                        .unwrap_or(("reading files", 0.0));
                    let share = (100.0 * busy / self.seconds).min(100.0);
                    format!(
                        "Bounded by the supply of pictures: workers waited {percent:.0} % of their \
                         time; {what} took {share:.0} % of the run."
                    )
                }
                "waiting for devices" => format!(
                    "Bounded by the network: workers waited for a device {percent:.0} % of their time."
                ),
                "the memory budget" => format!(
                    "Bounded by the memory budget: workers waited for memory {percent:.0} % of \
                     their time (--memory-budget)."
                ),
                _ => format!("Bounded by {name}: {percent:.0} % of the workers' time."),
            }
        };
    }

    /// The summary for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{words}");
        };
        let complete = if self.plan_complete { "" } else { " so far" };
        line(format_args!(
            "{}: {} planned{complete}, {} ok, {} failed, {} of {} mini-batches committed",
            self.state, self.planned, self.ok, self.failed, self.committed, self.batches
        ));
        if let Some(share) = &self.shard {
            let Share { shard, planned, ok, failed, batches, committed } = share;
            line(format_args!(
                "shard {shard}: {planned} planned{complete}, {ok} ok, {failed} failed, {committed} of \
                 {batches} mini-batches committed"
            ));
            line(match self.state.as_str() {
                "done" => format_args!("the job is finished"),
                _ => format_args!("the job is not finished; the other shards go on with it"),
            });
        }
        let annotated = self.annotated.as_ref();
        let annotated = annotated
            .map_or(String::new(), |dir| format!(", annotated pictures in {}", from_here(dir)));
        line(format_args!("results in {}{annotated}", from_here(&self.output)));
        if self.state == "interrupted" {
            line(format_args!("the same command goes on with the other mini-batches"));
        }
        if self.given_up > 0 {
            let output = from_here(&self.output);
            line(format_args!(
                "{} mini-batches could not be finished; {}/_manifest/failed says why, and the same \
                 command tries them again",
                self.given_up,
                output.strip_suffix('/').unwrap_or(&output)
            ));
        }
        if self.adopted > 0 {
            line(format_args!("{} parts left by an interrupted run were adopted", self.adopted));
        }
        for (code, count) in &self.errors {
            line(format_args!("  {count} × {code}"));
        }
        for skip in Skip::ALL {
            if let Some(count) = self.skipped.get(skip.as_str()) {
                line(format_args!("not planned: {count} {}", skip.explain()));
            }
        }
        if !self.classes.is_empty() {
            let mut classes: Vec<(&String, &u64)> = self.classes.iter().collect();
            classes.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
            let more = classes.len().saturating_sub(12);
            let mut words: Vec<String> = classes
                .iter()
                .take(12)
                .map(|(label, count)| format!("{} {count}", one_line(label)))
                .collect();
            if more > 0 {
                words.push(format!("{more} more classes"));
            }
            line(format_args!("found: {}", words.join(", ")));
        }
        for gate in &self.gates {
            line(format_args!("{gate}"));
        }
        if self.pictures > 0 {
            let mine = self.shard.as_ref().map_or((self.ok, self.failed), |s| (s.ok, s.failed));
            let before = (mine.0 + mine.1).saturating_sub(self.pictures);
            let before =
                if before > 0 { format!(" ({before} were done before)") } else { String::new() };
            // A class of CPUs says so itself.
            let on = match self.device.as_str() {
                "" | "cpu" => String::new(),
                gpus => format!(", {gpus}"),
            };
            line(format_args!(
                "{} pictures in {:.1} s{before}, {:.2} images/s, {} workers{on}, class {}",
                self.pictures,
                self.seconds,
                self.images_per_second,
                self.workers,
                self.numeric_class
            ));
            let s = &self.stages;
            let draw = if s.draw > 0.0 { format!(", draw {:.2}", s.draw) } else { String::new() };
            line(format_args!(
                "seconds by stage: list {:.2}, fetch {:.2}, decode {:.2}, letterbox {:.2}, infer \
                 {:.2}, boxes {:.2}{draw}, write {:.2}; waiting for pictures {:.2} ({:.1} %)",
                s.list,
                s.fetch,
                s.decode,
                s.letterbox,
                s.infer,
                s.boxes,
                s.write,
                s.idle,
                100.0 * self.waiting
            ));
        }
        if let Some(devices) = self.devices.filter(|devices| devices.batches > 0) {
            let names = if devices.devices == 1 { "device" } else { "devices" };
            line(format_args!(
                "{} {names}: busy {:.1} %, {} batches of {}, {:.1} % full; workers waited for them \
                 {:.2} s",
                devices.devices,
                100.0 * devices.utilisation(),
                grouped(devices.batches),
                devices.batch,
                100.0 * devices.fullness(),
                self.stages.devices,
            ));
        }
        if let Some(traffic) = self.store.as_ref().filter(|traffic| traffic.requests > 0) {
            line(format_args!("{}", said_of(traffic)));
        }
        if self.pictures > 0 {
            if let Some(peak) = self.peak_memory {
                line(format_args!(
                    "peak memory {} of a budget of {}",
                    mib(peak),
                    mib(self.memory_budget)
                ));
            }
            line(format_args!("{}", self.bound));
        }
        text
    }
}

/// What was asked of S3, in a line.
fn said_of(traffic: &Traffic) -> String {
    let mut text = format!("S3: {} requests", grouped(traffic.requests));
    // Writing to a String cannot fail.
    if traffic.retries() > 0 {
        let mut kinds: Vec<(&String, &u64)> = traffic.retried.iter().collect();
        kinds.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let kinds: Vec<String> =
            kinds.iter().map(|(kind, count)| format!("{} {kind}", grouped(**count))).collect();
        let retries = grouped(traffic.retries());
        let _ = write!(text, ", {retries} made again ({})", kinds.join(", "));
    }
    if traffic.answers_lost > 0 {
        let _ = write!(text, ", {} lost answers recognised", grouped(traffic.answers_lost));
    }
    if traffic.throttled_to > 0 {
        let _ = write!(text, "; throttled to {} at once", traffic.throttled_to);
    }
    text
}

/// A path as one would type it in the working directory.
fn from_here(path: &str) -> String {
    let here = std::env::current_dir().ok();
    let below = here.as_deref().and_then(|here| Path::new(path).strip_prefix(here).ok());
    one_line(below.and_then(Path::to_str).filter(|short| !short.is_empty()).unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(stages: Stages) -> String {
        let mut report =
            Report { pictures: 5, seconds: 10.0, workers: 2, stages, ..Report::default() };
        report.judge();
        report.bound
    }

    #[test]
    fn a_device_that_computes_padding_bounds_nothing() {
        let on = |pictures, padded| {
            let devices =
                DevicesSoFar { pictures, padded, busy: 9.5, waited: 0.5, ..Default::default() };
            let stages = Stages { idle: 15.0, fetch: 9.0, ..Stages::default() };
            let mut report = Report {
                pictures,
                seconds: 10.0,
                workers: 2,
                stages,
                devices: Some(devices),
                ..Report::default()
            };
            report.judge();
            report.bound
        };
        assert!(on(90, 10).contains("busy 95 % of the time"), "{}", on(90, 10));
        assert!(on(6, 94).starts_with("Bounded by the supply of pictures"), "{}", on(6, 94));
    }

    #[test]
    fn labels_and_paths_cannot_forge_a_line() {
        let odd = "x\n::error::x\u{1b}[31m";
        let classes = [(odd.to_owned(), 3)].into();
        let output = format!("/data/{odd}");
        let report = Report {
            output: output.clone(),
            annotated: Some(output),
            classes,
            ..Report::default()
        };
        let text = report.text();
        assert!(text.contains(r"found: x\n::error::x\u{1b}[31m 3"), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains("\n::"), "{text}");
    }

    #[test]
    fn what_was_asked_of_a_bucket_is_a_line_where_there_is_one() {
        let retried = [("timeout", 5), ("slow down", 1020), ("connection lost", 12)];
        let mut traffic = Traffic {
            requests: 51_200,
            retried: retried.map(|(kind, count)| (kind.to_owned(), count)).into(),
            answers_lost: 3,
            throttled_to: 4,
            ..Traffic::default()
        };
        let mut report = Report { store: Some(traffic.clone()), ..Report::default() };
        let line = "\nS3: 51,200 requests, 1,037 made again (1,020 slow down, 12 connection lost, 5 \
                    timeout), 3 lost answers recognised; throttled to 4 at once\n";
        assert!(report.text().contains(line), "{}", report.text());
        traffic = Traffic { requests: 7, ..Traffic::default() };
        report.store = Some(traffic);
        assert!(report.text().contains("\nS3: 7 requests\n"), "{}", report.text());
        assert_eq!(serde_json::to_value(&report).unwrap()["store"]["requests"], 7);
        report.store = None;
        assert!(!report.text().contains("S3"), "{}", report.text());
        assert!(serde_json::to_value(&report).unwrap().get("store").is_none());
    }

    #[test]
    fn waiting_is_a_share_of_the_workers_time() {
        let stages = Stages { idle: 0.5, infer: 18.0, ..Stages::default() };
        let mut report =
            Report { pictures: 5, seconds: 10.0, workers: 2, stages, ..Report::default() };
        report.judge();
        assert!((report.waiting - 0.025).abs() < 1e-9, "{}", report.waiting);
        assert!(report.text().contains("; waiting for pictures 0.50 (2.5 %)\n"));
    }

    #[test]
    fn gpus_are_named() {
        let mut report =
            Report { pictures: 5, workers: 2, device: "cpu".into(), ..Report::default() };
        assert!(report.text().contains(" 2 workers, class "), "{}", report.text());
        report.device = "cuda:0,1".into();
        assert!(report.text().contains(" 2 workers, cuda:0,1, class "), "{}", report.text());
    }

    #[test]
    fn devices_are_judged_by_their_own_time() {
        let mut devices = DevicesSoFar {
            devices: 1,
            batch: 8,
            batches: 2000,
            pictures: 12_000,
            padded: 4000,
            busy: 9.5,
            waited: 0.5,
        };
        let judged = |devices: DevicesSoFar, stages: Stages| {
            let devices = Some(devices);
            let report = Report { pictures: 5, seconds: 10.0, workers: 2, ..Report::default() };
            let mut report = Report { devices, stages, ..report };
            report.judge();
            report
        };
        // The device's time is not the workers': it would be more than they have.
        let stages = Stages { infer: 40.0, idle: 15.0, decode: 3.0, ..Stages::default() };
        let report = judged(devices, stages);
        assert!(report.bound.contains("busy 95 % of the time, with batches that were 75 % full"));
        let line = "\n1 device: busy 95.0 %, 2,000 batches of 8, 75.0 % full; workers waited";
        assert!(report.text().contains(line), "{}", report.text());
        assert_eq!(serde_json::to_value(&report).unwrap()["devices"]["padded"], 4000);
        (devices.busy, devices.waited) = (2.0, 8.0);
        let bound = |stages| judged(devices, stages).bound;
        assert!(bound(Stages { decode: 19.0, ..stages }).contains("decoding: 95 %"));
        assert!(bound(stages).contains("supply of pictures"));
        let waiting = Stages { devices: 16.0, ..stages };
        assert!(bound(waiting).contains("waited for a device 80 %"), "{}", bound(waiting));
        // Where there is none, nothing is said of any.
        let report = Report { pictures: 5, ..Report::default() };
        assert!(!report.text().contains("device"), "{}", report.text());
        let json = serde_json::to_value(&report).unwrap();
        assert!(json.get("devices").is_none() && json["stages"].get("devices").is_none());
    }

    #[test]
    fn the_verdict_names_the_largest_share() {
        let text = bound(Stages { infer: 18.0, decode: 1.0, ..Stages::default() });
        assert_eq!(text, "Bounded by the network: 90 % of the workers' time.");
        let text = bound(Stages { idle: 15.0, fetch: 9.0, infer: 4.0, ..Stages::default() });
        assert!(
            text.contains("workers waited 75 % of their time; reading files took 90 %"),
            "{text}"
        );
        let text = bound(Stages { memory: 12.0, infer: 4.0, ..Stages::default() });
        assert!(text.contains("memory budget"), "{text}");
    }
}
