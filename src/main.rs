//! The `haul` binary: parse, run, print the error, return an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use haul::cli::Cli;

fn main() -> ExitCode {
    // Workers are our own threads. Candle's and rayon's would only fight them: each worker runs its
    // network alone, and the first use of either library reads these.
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: nothing has run before this, so there is no other thread that reads the environment.
        unsafe { std::env::set_var(name, "1") };
    }
    match Cli::parse().execute() {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("haul: {error}");
            error.exit().into()
        }
    }
}
