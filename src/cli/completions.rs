//! `haul completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::job::{Exit, JobError};

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// bash, elvish, fish, powershell or zsh
    shell: Shell,
}

impl Completions {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "haul", &mut script);
        super::print(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Done)
    }
}
