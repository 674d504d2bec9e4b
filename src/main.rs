//! The `haul` binary: parse, run, print the error, return an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use haul::cli::Cli;
use haul::job::tell;

fn main() -> ExitCode {
    haul::serve::phases::begin();
    // Workers are our own threads. Candle's and rayon's would only fight them: each worker runs its
    // network alone, and the first use of either library reads these.
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: nothing has run before this, so there is no other thread that reads the environment.
        unsafe { std::env::set_var(name, "1") };
    }
    // A worker's panic is caught and becomes an error line or a failed mini-batch, which say so
    // themselves; the standard message would only tear the progress bar.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let name = std::thread::current().name().map(str::to_owned);
        if !name.is_some_and(|name| name.starts_with("worker-")) {
            report(panic);
        }
    }));
    haul::failpoint::set_up();
    match Cli::parse_from(haul::cli::arguments()).execute() {
        Ok(exit) => exit.into(),
        Err(error) => {
            tell(&format!("haul: {error}"));
            error.exit().into()
        }
    }
}
