//! `haul status`.

use clap::Args;

use super::{Output, print, print_json};
use crate::job::{Exit, Gate, JobError, Survey};

/// Say how far a job is; safe while it runs
///
/// Exit code: 0 finished, 3 finished with failed pictures, 6 finished and a gate does not hold,
/// 75 not finished.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  haul status out/
  haul status out/ --csv > batches.csv
  haul status out/ --gate 'errors < 2%'")]
pub(super) struct Status {
    #[command(flatten)]
    output: Output,
    /// Write the manifest as a table, a row for each mini-batch
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What the finished job must hold, else exit 6 (repeatable); see haul run --help
    #[arg(long, value_name = "METRIC OP N[%]")]
    gate: Vec<String>,
}

impl Status {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let gates = self.gate.iter().map(|gate| Gate::parse(gate));
        let gates: Vec<Gate> = gates.collect::<Result<_, _>>()?;
        let survey = self.output.survey()?;
        survey.check_gates(&gates)?;
        let mut status = survey.status()?;
        status.hold_against(&gates);
        if self.csv {
            print(&table(&survey)?)?;
        } else if self.json {
            print_json(&status)?;
        } else {
            let sofar = if status.plan_complete { "" } else { " so far" };
            let mut text = format!(
                "{}: {} planned{sofar}, {} ok, {} failed, {} remaining; {} of {} mini-batches \
                 committed",
                status.state,
                status.planned,
                status.ok,
                status.failed,
                status.remaining,
                status.committed,
                status.batches
            );
            if status.failing > 0 {
                text.push_str(&format!("; {} failed last time", status.failing));
            }
            for (code, count) in &status.errors {
                text.push_str(&format!("\n  {count} × {code}"));
            }
            for gate in &status.gates {
                text.push_str(&format!("\n{gate}"));
            }
            print(&format!("{text}\n"))?;
        }
        Ok(status.exit())
    }
}

fn table(survey: &Survey) -> Result<String, JobError> {
    let wrong = |error: csv::Error| JobError::Internal(format!("cannot write CSV: {error}"));
    let mut table = csv::Writer::from_writer(Vec::new());
    table
        .write_record([
            "batch", "state", "pictures", "bytes", "first", "last", "ok", "failed", "sha256",
            "seconds", "host", "attempt",
        ])
        .map_err(wrong)?;
    survey.visit(|batch, state, record| {
        let key = |object: Option<&crate::store::Object>| {
            object.map_or_else(String::new, |object| object.key.to_text().into_owned())
        };
        let mut row = vec![
            batch.id.to_string(),
            format!("{state:?}").to_lowercase(),
            batch.objects.len().to_string(),
            batch.bytes().to_string(),
            key(batch.objects.first()),
            key(batch.objects.last()),
        ];
        match record {
            None => row.extend(std::iter::repeat_n(String::new(), 6)),
            Some(record) => row.extend([
                record.ok.to_string(),
                record.failed.to_string(),
                record.sha256.clone(),
                record.seconds.to_string(),
                record.host.clone(),
                record.attempt.to_string(),
            ]),
        }
        table.write_record(&row).map_err(wrong)
    })?;
    let bytes = table
        .into_inner()
        .map_err(|error| JobError::Internal(format!("cannot write CSV: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
