//! What the server says while it runs: a log on stderr, and traces for those who collect them.
//!
//! Names, paths and ids in it come from clients. Neither form of the log lets them begin a line of
//! their own. What authorises a request is not logged at all.

use std::io::{self, IsTerminal as _, Write};
use std::str::FromStr;

use http::StatusCode;
use tracing::Span;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};

use crate::job::JobError;
use crate::store::one_line;

#[cfg(feature = "otel")]
mod otel;

/// What is logged where nothing is asked for: what haul says, and what others warn of. Errors of
/// events have a line of ours; that of the crate would be another, in words for programmers.
const DEFAULT: &str = "warn,haul=info,lambda_runtime::layers::panic=off";

/// So many lines wait for a reader of the log that is slow; what comes then is lost.
const MOST_LINES: usize = 8192;

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<LogFormat, ()> {
        match text {
            "json" => Ok(LogFormat::Json),
            "text" => Ok(LogFormat::Text),
            _ => Err(()),
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, Default)]
pub struct LogConfig {
    /// Its form; else text on a terminal, JSON elsewhere.
    pub format: Option<LogFormat>,
    /// What is logged: `info`, `debug`, or directives such as `warn,haul=debug`.
    pub level: Option<String>,
}

impl LogConfig {
    /// What flags say.
    ///
    /// # Errors
    /// [`JobError::Usage`] when the form is none.
    pub fn new(format: Option<&str>, level: Option<String>) -> Result<LogConfig, JobError> {
        let wrong = |format: &str| {
            JobError::Usage(format!("--log-format is `{format}`; it is json or text"))
        };
        let format = format.map(|text| text.parse().map_err(|()| wrong(text))).transpose()?;
        Ok(LogConfig { format, level })
    }
}

/// Keeps the log going. What is still to be sent elsewhere is sent when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    _lines: WorkerGuard,
    #[cfg(feature = "otel")]
    _traces: Option<otel::Traces>,
}

/// Begins the log of this process.
///
/// # Errors
/// [`JobError::Usage`] when the level is none, or there is a log already.
pub fn start(config: &LogConfig) -> Result<Telemetry, JobError> {
    let level = config.level.as_deref().map(str::trim).filter(|level| !level.is_empty());
    let filter = EnvFilter::builder().parse(level.unwrap_or(DEFAULT)).map_err(|error| {
        let level = level.unwrap_or(DEFAULT);
        JobError::Usage(format!("--log-level is `{level}`: {error}"))
    })?;
    let format = config.format.unwrap_or(match io::stderr().is_terminal() {
        true => LogFormat::Text,
        false => LogFormat::Json,
    });
    // Who reads the log may be slow or stuck, and must not keep the thread that serves everybody.
    let (stderr, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(MOST_LINES).finish(Stderr);
    let lines: Box<dyn tracing_subscriber::Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(stderr)
            .with_filter(filter)
            .boxed(),
        LogFormat::Text => {
            fmt::layer().with_ansi(false).with_writer(stderr).with_filter(filter).boxed()
        }
    };
    let registry = tracing_subscriber::registry().with(lines);
    let twice = |error| JobError::Internal(format!("cannot begin the log: {error}"));
    #[cfg(feature = "otel")]
    {
        let traces = otel::Traces::start()?;
        let layer = traces.as_ref().map(|traces| traces.layer());
        registry.with(layer).try_init().map_err(twice)?;
        Ok(Telemetry { _lines: guard, _traces: traces })
    }
    #[cfg(not(feature = "otel"))]
    {
        registry.try_init().map_err(twice)?;
        Ok(Telemetry { _lines: guard })
    }
}

/// The span of a request: none unless traces are collected.
#[cfg(not(feature = "otel"))]
pub(super) fn request_span<B>(_: &http::Request<B>, _: &str) -> Span {
    Span::none()
}

#[cfg(feature = "otel")]
pub(crate) use otel::request_span;

/// How a request's span ended.
pub(super) fn finish_span(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
}

/// Stderr, on which each event is one line whatever is in it.
#[derive(Clone, Copy, Debug)]
struct Stderr;

impl Write for Stderr {
    /// Events come whole, with their line feed.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut line = escaped(event);
        line.push('\n');
        // A reader of the log that has gone away ends nothing.
        let _ = io::stderr().lock().write_all(line.as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn escaped(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    one_line(text.strip_suffix('\n').unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<String>>);

    impl Write for Kept {
        fn write(&mut self, event: &[u8]) -> io::Result<usize> {
            let mut kept = self.0.lock().unwrap();
            kept.push_str(&escaped(event));
            kept.push('\n');
            Ok(event.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a line of the text form becomes when all of its fields are hostile.
    #[test]
    fn no_field_forges_a_line() {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let hostile = "a\nINFO forged: yes\r\u{1b}[31m";
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(text = hostile, shown = %hostile, debug = ?hostile, "said {hostile}");
        });
        let text = kept.0.lock().unwrap().clone();
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert_eq!(text.chars().filter(|c| c.is_control()).count(), 1, "{text:?}");
    }

    #[test]
    fn a_level_that_is_none_is_a_mistake() {
        let config = LogConfig { format: None, level: Some("haul=loud".into()) };
        let error = start(&config).unwrap_err();
        assert!(error.to_string().contains("--log-level is `haul=loud`"), "{error}");
        assert!(LogConfig::new(Some("xml"), None).is_err());
    }
}
