//! `haul verify`.

use clap::Args;

use super::{Output, print, print_json};
use crate::job::{Exit, JobError, tell, verify};
use crate::store::one_line;

/// Prove that the results are complete and unaltered
///
/// Reads every part: digests, keys in plan order, each line against its schema, all totals.
/// Exit code: 0 or 3 right and finished, 75 right so far, 1 a mismatch, which is named.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  haul run job.toml && haul verify out/")]
pub(super) struct Verify {
    #[command(flatten)]
    output: Output,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let verdict = verify(&self.output.survey()?)?;
        for mismatch in &verdict.mismatches {
            tell(&one_line(&format!("mismatch: {mismatch}")));
        }
        if self.json {
            print_json(&verdict)?;
        } else {
            let state = match (verdict.mismatches.len(), verdict.finished) {
                (0, true) => "right and finished".to_owned(),
                (0, false) => "right so far, not finished".to_owned(),
                (count, _) => format!("{count} mismatches"),
            };
            print(&format!("{state}: {} lines in {} parts\n", verdict.lines, verdict.parts))?;
        }
        Ok(verdict.exit())
    }
}
