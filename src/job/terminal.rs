//! Everything a job says while it runs, on stderr: bars on a terminal, plain lines elsewhere. With
//! `--progress json` also on stdout, for programs: one JSON object a line.
//!
//! Only the dispatcher holds it.

use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::line::Line;
use super::report::Report;
use crate::store::one_line;

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Nothing at all: whoever runs the job has other ways to hear of it.
    Silent,
    /// Errors only.
    Quiet,
    /// Progress and summary.
    #[default]
    Normal,
    /// Each commit and retry too.
    Verbose,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// On stderr: a bar on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// On stdout, as messages in JSON.
    Json,
    /// Not at all.
    None,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Pictures with a line, committed or not.
    pub done: u64,
    /// Of these, the ones with an error.
    pub failed: u64,
    /// Pictures planned, which grow until the plan is complete.
    pub planned: u64,
    /// Whether the plan is complete.
    pub complete: bool,
    /// Mini-batches planned so far.
    pub batches: u64,
    /// Mini-batches committed.
    pub committed: u64,
}

/// What `--progress json` prints, a line each. The names are those of restic's JSON output.
#[derive(Debug, Serialize)]
#[serde(tag = "message_type", rename_all = "snake_case")]
enum Message<'a> {
    Status(Status),
    Error(Fault<'a>),
    Summary(&'a Report),
    ExitError { code: u8, message: &'a str },
}

#[derive(Debug, Serialize)]
struct Status {
    seconds_elapsed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_remaining: Option<u64>,
    /// A fraction, as restic has it.
    percent_done: f64,
    total_pictures: u64,
    pictures_done: u64,
    pictures_failed: u64,
    total_batches: u64,
    batches_done: u64,
    plan_complete: bool,
    images_per_second: f64,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Fault<'a> {
    Picture {
        image: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        image_b64: Option<&'a str>,
        code: &'a str,
        stage: &'a str,
        message: &'a str,
    },
    Batch {
        batch: u64,
        r#try: u64,
        given_up: bool,
        message: &'a str,
    },
}

impl Status {
    fn new(standing: Standing, seconds: f64, rate: f64) -> Status {
        let Standing { done, failed, planned, complete, batches, committed } = standing;
        let left = planned.saturating_sub(done) as f64 / rate;
        Status {
            seconds_elapsed: seconds as u64,
            // Before the plan is complete, nobody knows what is left.
            seconds_remaining: (complete && left.is_finite()).then_some(left.ceil() as u64),
            percent_done: match planned {
                0 => f64::from(u8::from(complete)),
                _ => (done as f64 / planned as f64).min(1.0),
            },
            total_pictures: planned,
            pictures_done: done,
            pictures_failed: failed,
            total_batches: batches,
            batches_done: committed,
            plan_complete: complete,
            images_per_second: (rate * 1e3).round() / 1e3,
        }
    }
}

/// Prints a line on stderr. If nobody reads it any more (`2>&1 | head`), the job goes on all the same.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Plain progress lines come this far apart.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Messages about progress come at least this far apart.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Where the job talks to.
#[derive(Debug)]
pub struct Terminal {
    verbosity: Verbosity,
    shown: Progress,
    json: bool,
    bar: Option<ProgressBar>,
    start: Instant,
    said: Instant,
    first: u64,
    begun: bool,
    reason: Option<String>,
}

impl Terminal {
    /// A terminal that has said nothing yet.
    #[must_use]
    pub fn new(verbosity: Verbosity) -> Terminal {
        let now = Instant::now();
        Terminal {
            verbosity,
            shown: Progress::Auto,
            json: false,
            bar: None,
            start: now,
            said: now,
            first: 0,
            begun: false,
            reason: None,
        }
    }

    /// The same, showing progress in another way.
    #[must_use]
    pub fn showing(self, shown: Progress) -> Terminal {
        Terminal { shown, ..self }
    }

    /// The same, with the summary as JSON on stdout at the end.
    #[must_use]
    pub fn with_json(self, json: bool) -> Terminal {
        Terminal { json, ..self }
    }

    /// Prints a command to the runner of a CI service, which reads stdout and stderr alike. It is
    /// on stdout, unless that is JSON.
    pub fn command(&self, line: &str) {
        if self.json || self.shown == Progress::Json {
            tell(line);
        } else {
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        }
    }

    /// Begins to show progress, after `done` pictures of earlier runs.
    pub fn begin(&mut self, done: u64) {
        self.start = Instant::now();
        self.first = done;
        let bars = self.shown == Progress::Auto && self.verbosity > Verbosity::Quiet;
        if !bars || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
        let style = "{bar:30} {pos}/{len} pictures  {msg}  ETA {eta}  {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_position(done);
        bar.reset_eta();
        self.bar = Some(bar);
    }

    /// Shows how far the job is.
    pub fn progress(&mut self, standing: Standing) {
        let Standing { done, failed, planned, complete, .. } = standing;
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = if seconds > 0.0 { (done - self.first) as f64 / seconds } else { 0.0 };
        if self.shown == Progress::Json && (!self.begun || self.said.elapsed() >= STATUS_EVERY) {
            self.begun = true;
            self.said = Instant::now();
            self.message(&Message::Status(Status::new(standing, seconds, rate)));
        }
        if self.shown != Progress::Auto {
            return;
        }
        let listing = if complete { "" } else { ", listing" };
        if let Some(bar) = &self.bar {
            bar.set_length(planned);
            bar.set_position(done);
            bar.set_message(format!("{rate:.1} images/s, {failed} failed{listing}"));
        } else if self.verbosity > Verbosity::Quiet && self.said.elapsed() >= PLAIN_EVERY {
            self.said = Instant::now();
            let left = planned.saturating_sub(done) as f64 / rate;
            let eta = if complete && left.is_finite() {
                let whole = Duration::from_secs(left as u64);
                format!(", {} left", humantime::format_duration(whole))
            } else {
                String::new()
            };
            tell(&format!(
                "{done} of {planned} pictures, {failed} failed, {rate:.1} images/s{eta}{listing}"
            ));
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Says something that everybody should know. Names in it are for the caller to write on one line:
    /// it may have several.
    pub fn say(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.print(text);
        }
    }

    /// Says something that must be heard: why the run ends.
    pub fn insist(&mut self, text: &str) {
        let text = one_line(text);
        self.print(&text);
        self.reason = Some(text);
    }

    /// Why the run ends, if it ends before the job is complete and somebody has insisted on it.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Tells programs about a picture that failed, by its line.
    pub fn picture_failed(&self, line: &[u8]) {
        if self.shown != Progress::Json {
            return;
        }
        let Ok(Line { image, image_b64, error: Some(error), .. }) = Line::parse(line) else {
            return;
        };
        self.message(&Message::Error(Fault::Picture {
            image: &image,
            image_b64: image_b64.as_deref(),
            code: &error.code,
            stage: &error.stage,
            message: &error.message,
        }));
    }

    /// Tells programs about a try at a mini-batch that failed.
    pub fn try_failed(&self, batch: u64, try_number: u64, given_up: bool, reason: &str) {
        let fault = Fault::Batch { batch, r#try: try_number, given_up, message: reason };
        self.message(&Message::Error(fault));
    }

    /// Tells programs how it ended: where the job stands, the summary, and why it failed.
    pub fn conclude(&self, report: Option<&Report>, failure: Option<(u8, &str)>) {
        if let Some(report) = report {
            let mut standing = Standing {
                done: report.ok + report.failed,
                failed: report.failed,
                planned: report.planned,
                complete: report.plan_complete,
                batches: report.batches,
                committed: report.committed,
            };
            if let Some(share) = &report.shard {
                standing = Standing {
                    done: share.ok + share.failed,
                    failed: share.failed,
                    planned: share.planned,
                    batches: share.batches,
                    committed: share.committed,
                    ..standing
                };
            }
            let status = Status::new(standing, report.seconds, report.images_per_second);
            self.message(&Message::Status(status));
            self.message(&Message::Summary(report));
        }
        if let Some((code, message)) = failure {
            self.message(&Message::ExitError { code, message });
        }
    }

    /// Prints a message on stdout, at once. If nobody reads it any more, the job goes on all the same.
    fn message(&self, message: &Message<'_>) {
        if self.shown != Progress::Json {
            return;
        }
        let Ok(mut text) = serde_json::to_vec(message) else { return };
        text.push(b'\n');
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(&text).and_then(|()| stdout.flush());
    }

    /// Says something to those who hear only what is wrong; the others have it in the summary.
    pub fn murmur(&self, text: &str) {
        if self.verbosity == Verbosity::Quiet {
            self.print(&one_line(text));
        }
    }

    /// Says something that is wrong.
    pub fn warn(&self, text: &str) {
        self.print(&format!("warning: {}", one_line(text)));
    }

    /// Says something for those who want to know more.
    pub fn detail(&self, text: &str) {
        if self.verbosity >= Verbosity::Verbose {
            self.print(&one_line(text));
        }
    }

    fn print(&self, text: &str) {
        match &self.bar {
            _ if self.verbosity == Verbosity::Silent => {}
            Some(bar) => bar.suspend(|| tell(text)),
            None => tell(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(standing: Standing, seconds: f64, rate: f64) -> serde_json::Value {
        serde_json::to_value(Message::Status(Status::new(standing, seconds, rate))).unwrap()
    }

    #[test]
    fn what_is_left_is_said_only_when_the_plan_is_complete() {
        let sofar = Standing {
            done: 25,
            failed: 2,
            planned: 100,
            complete: false,
            batches: 9,
            committed: 1,
        };
        let expected = serde_json::json!({
            "message_type": "status", "seconds_elapsed": 10, "percent_done": 0.25,
            "total_pictures": 100, "pictures_done": 25, "pictures_failed": 2, "total_batches": 9,
            "batches_done": 1, "plan_complete": false, "images_per_second": 2.5,
        });
        assert_eq!(status(sofar, 10.9, 2.5), expected);
        let complete = Standing { complete: true, ..sofar };
        assert_eq!(status(complete, 10.9, 2.5)["seconds_remaining"], 30);
        // Nothing is known of the rate yet.
        assert!(status(complete, 0.0, 0.0).get("seconds_remaining").is_none());
    }

    #[test]
    fn nothing_planned_is_done_when_the_plan_says_so() {
        assert_eq!(status(Standing::default(), 0.0, 0.0)["percent_done"], 0.0);
        let empty = Standing { complete: true, ..Standing::default() };
        assert_eq!(status(empty, 0.0, 0.0)["percent_done"], 1.0);
    }

    #[test]
    fn a_failed_try_names_its_mini_batch() {
        let fault = Fault::Batch { batch: 7, r#try: 3, given_up: true, message: "no disk" };
        let expected = serde_json::json!({
            "message_type": "error", "batch": 7, "try": 3, "given_up": true, "message": "no disk",
        });
        assert_eq!(serde_json::to_value(Message::Error(fault)).unwrap(), expected);
    }
}
