//! The flags about the log of a server.

use clap::Args;

use crate::job::JobError;
use crate::serve::telemetry::{self, LogConfig, Telemetry};

#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub(super) struct LogFlags {
    /// Form of the log on stderr: text or json [default: text on a terminal, else json]
    #[arg(long, value_name = "FORM", env = "HAUL_LOG_FORMAT")]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or directives such as warn,haul=debug
    #[arg(long, value_name = "LEVEL", env = "HAUL_LOG")]
    log_level: Option<String>,
}

impl LogFlags {
    /// Begins the log. What is to be sent elsewhere is sent when what this gives is dropped.
    pub(super) fn start(&self) -> Result<Telemetry, JobError> {
        let log = LogConfig::new(self.log_format.as_deref(), self.log_level.clone())?;
        telemetry::start(&log)
    }
}
