//! Everything a job says while it runs, on stderr: bars on a terminal, plain lines elsewhere.
//!
//! Only the dispatcher holds it.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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

/// Prints a line on stderr. If nobody reads it any more (`2>&1 | head`), the job goes on all the same.
pub fn tell(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Plain progress lines come this far apart.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Where the job talks to.
#[derive(Debug)]
pub struct Terminal {
    verbosity: Verbosity,
    bar: Option<ProgressBar>,
    start: Instant,
    said: Instant,
    first: u64,
}

impl Terminal {
    /// A terminal that has said nothing yet.
    #[must_use]
    pub fn new(verbosity: Verbosity) -> Terminal {
        let now = Instant::now();
        Terminal { verbosity, bar: None, start: now, said: now, first: 0 }
    }

    /// Begins to show progress, after `done` pictures of earlier runs.
    pub fn begin(&mut self, done: u64) {
        self.start = Instant::now();
        self.first = done;
        if self.verbosity <= Verbosity::Quiet || !std::io::stderr().is_terminal() {
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

    /// Shows how far the job is. `planned` grows until `complete`.
    pub fn progress(&mut self, done: u64, failed: u64, planned: u64, complete: bool) {
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = if seconds > 0.0 { (done - self.first) as f64 / seconds } else { 0.0 };
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

    /// Says something that everybody should know.
    pub fn say(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.print(text);
        }
    }

    /// Says something that must be heard: why the run ends.
    pub fn insist(&self, text: &str) {
        self.print(text);
    }

    /// Says something that is wrong.
    pub fn warn(&self, text: &str) {
        self.print(&format!("warning: {text}"));
    }

    /// Says something for those who want to know more.
    pub fn detail(&self, text: &str) {
        if self.verbosity >= Verbosity::Verbose {
            self.print(text);
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
