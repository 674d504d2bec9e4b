//! SIGINT and SIGTERM: the first asks the job to stop, the second stops the process.

use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::job::JobError;

/// The first signal's number, once it has come.
pub(super) fn listen() -> Result<Receiver<i32>, JobError> {
    let failed = |error| JobError::Internal(format!("cannot handle signals: {error}"));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let (sender, receiver) = bounded(1);
    let watch = move || {
        let mut asked = false;
        for signal in signals.forever() {
            if asked {
                // Whatever is durable stays durable; nothing else needs tidying.
                signal_hook::low_level::exit(128 + signal);
            }
            asked = true;
            let _ = sender.send_timeout(signal, Duration::ZERO);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch).map_err(failed)?;
    Ok(receiver)
}
