//! Signals of a server: the first asks it to stop, the second stops it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::job::JobError;

/// SIGTERM and SIGINT, from now on.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Signals, JobError> {
        let terminate = of(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: of(SignalKind::interrupt())? })
    }

    /// The number of the next one.
    pub(super) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}

/// SIGHUP, from now on.
pub(super) fn hangups() -> Result<Signal, JobError> {
    of(SignalKind::hangup())
}

/// Ends the process at once, as the signal would have.
pub(super) fn end(signal: i32) -> ! {
    tracing::info!(signal, "stopped at once");
    signal_hook::low_level::exit(128 + signal)
}

fn of(kind: SignalKind) -> Result<Signal, JobError> {
    signal(kind).map_err(|error| JobError::Internal(format!("cannot handle signals: {error}")))
}
