//! Where the server's log lines go: to stderr, as JSON, one line each.

use tracing_subscriber::EnvFilter;

/// Starts logging, if nobody has. `HAUL_LOG` says what is logged: `info`, `haul=debug`, ….
pub(super) fn start() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("HAUL_LOG")
        .from_env_lossy();
    // Errors of events have a line of ours; this would be another, in words for programmers. (What
    // panics says so on stderr.)
    let filter = match "lambda_runtime::layers::panic=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    // Whoever has set one up before wants that one.
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}
