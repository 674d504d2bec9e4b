//! `haul retry`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::work::{Talk, nothing, prepared, work};
use crate::job::{CHOOSING, Exit, JobError, Mode, Retrial, Settings, retry};

/// Run again only the pictures of an output that failed
///
/// For when they were repaired, or a limit was too low. OUT must be finished, and stays as it is;
/// the lines go to another output. Settings are OUT's own, and a flag changes one; which pictures,
/// OUT says. The same command again, or `haul resume` on the new output, goes on.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    mut_args(|arg| {
        let chooses = CHOOSING.contains(&arg.get_id().as_str());
        if chooses { arg.hide(true) } else { arg }
    }),
    after_help = "\
Defaults named above are those of `haul run`; here they are what OUT was made with.

Examples:
  haul retry out/ --output out-repaired/
  haul retry out/ --output out-large/ --max-pixels 400000000 --max-picture-memory 2GiB
  haul retry out/ --output out-cut/ --truncated accept"
)]
pub(super) struct Retry {
    /// The finished output whose failed pictures are to be tried again
    #[arg(value_name = "OUT")]
    of: PathBuf,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    talk: Talk,
}

impl Retry {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let retrial = prepared(&self.talk, self.settings.progress.clone(), |_| {
            let of = Settings { output: Some(self.of), ..Settings::default() };
            let of = of.relative_to(Path::new(""))?.output.unwrap_or_default();
            retry(&of, self.settings.relative_to(Path::new(""))?)
        })?;
        match retrial {
            // Its plan, once there is one, is all that counts, as for `resume`.
            Retrial::Job(spec) => work(*spec, Mode::Resume, &self.talk),
            Retrial::Nothing(spec, text) => nothing(&spec, text, &self.talk),
        }
    }
}
