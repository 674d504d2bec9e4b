//! Proof after the fact: parts against records, lines against plan and schema, totals against all.

use serde::Serialize;
use serde_json::Value;

use super::exit::{Exit, JobError};
use super::line::LineSchema;
use super::manifest::{MANIFEST_SCHEMA, Success, part_name, parts_digest};
use super::survey::Survey;
use super::tally::Tally;
use crate::store::sha256;

/// What was checked, and what is wrong.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Lines that are right.
    pub lines: u64,
    /// Parts that were read.
    pub parts: u64,
    /// Whether everything planned is committed and the marker says so.
    pub finished: bool,
    /// Pictures with an error.
    pub failed: u64,
    /// Every mismatch, in plan order; empty is good.
    pub mismatches: Vec<String>,
}

impl Verdict {
    /// 0 or 3 when right and finished, 75 when right so far, 1 otherwise.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match (self.mismatches.is_empty(), self.finished, self.failed) {
            (false, _, _) => Exit::Failed,
            (true, false, _) => Exit::Interrupted,
            (true, true, 0) => Exit::Done,
            (true, true, _) => Exit::SomeFailed,
        }
    }
}

/// Reads everything that is committed in an output and checks it.
///
/// # Errors
/// When the store fails; damage is not an error but a mismatch.
pub fn verify(survey: &Survey) -> Result<Verdict, JobError> {
    let schema = LineSchema::new();
    let mut verdict = Verdict::default();
    let mut wrong = Vec::new();
    let mut digests: Vec<(u64, String)> = Vec::new();
    let (mut ok, mut failed, mut right) = (0, 0, 0);
    let compress = survey.job.compress()?;
    let visited = survey.visit(|batch, _, record| {
        let Some(record) = record else { return Ok(()) };
        let name = part_name(batch.id, compress);
        let Some(part) = survey.manifest.part(&survey.job, batch.id)? else {
            wrong.push(format!("{name} is missing, and its record is there"));
            return Ok(());
        };
        verdict.parts += 1;
        digests.push((batch.id, record.sha256.clone()));
        ok += record.ok;
        failed += record.failed;
        if sha256(&part) != record.sha256 {
            wrong.push(format!("{name} is not what its record's sha256 says"));
            return Ok(());
        }
        let part = match survey.job.lines(batch, &part) {
            Ok(lines) => lines,
            Err(what) => {
                wrong.push(format!("{name}: {what}"));
                return Ok(());
            }
        };
        for (index, line) in part.split(|&b| b == b'\n').filter(|line| !line.is_empty()).enumerate()
        {
            let at = index + 1;
            match serde_json::from_slice::<Value>(line) {
                Err(error) => wrong.push(format!("{name} line {at} is not JSON: {error}")),
                Ok(value) => match schema.check(&value) {
                    Err(error) => {
                        wrong.push(format!("{name} line {at} breaks the schema: {error}"))
                    }
                    Ok(()) => right += 1,
                },
            }
        }
        match Tally::of_part(&part, batch) {
            Err(what) => wrong.push(format!("{name}: {what}")),
            Ok(tally) => {
                let counted = (tally.ok, tally.failed, &tally.classes, &tally.errors);
                if counted != (record.ok, record.failed, &record.classes, &record.errors)
                    || record.lines != record.ok + record.failed
                {
                    wrong.push(format!("{name} does not add up to what its record says"));
                }
            }
        }
        Ok(())
    });
    let (plan, complete) = match visited {
        Ok(plan) => plan,
        Err(error @ (JobError::Damaged(_) | JobError::Foreign(_))) => {
            wrong.push(error.to_string());
            verdict.mismatches = wrong;
            return Ok(verdict);
        }
        Err(error) => return Err(error),
    };
    let beyond = survey.records().iter().filter(|&&id| complete && id >= plan.batches);
    wrong.extend(
        beyond.map(|id| format!("there is a record of mini-batch {id}, which is not planned")),
    );
    let parts = match survey.manifest.parts(&survey.job) {
        Err(JobError::Foreign(what)) => {
            wrong.push(what);
            Vec::new()
        }
        parts => parts?,
    };
    for id in parts {
        if complete && id >= plan.batches {
            wrong.push(format!("there is {}, which is not planned", part_name(id, compress)));
        }
    }
    let summary = survey.manifest.plan()?;
    if complete && summary.as_ref().is_some_and(|there| *there != plan) {
        wrong.push("_manifest/plan.json does not say what its segments say".to_owned());
    }
    if let Some(success) = survey.manifest.success()? {
        let expected = Success {
            schema: MANIFEST_SCHEMA.to_owned(),
            job: survey.job.id.clone(),
            planned: plan.pictures,
            ok,
            failed,
            parts: plan.batches,
            plan_sha256: plan.sha256.clone(),
            parts_sha256: parts_digest(
                compress,
                digests.iter().map(|(id, digest)| (*id, digest.as_str())),
            ),
        };
        if !complete || summary.is_none() {
            wrong.push("_SUCCESS.json is there, and the plan is not complete".to_owned());
        } else if success != expected {
            wrong.push("_SUCCESS.json does not say what plan and records say".to_owned());
        }
        verdict.finished = true;
    }
    verdict.lines = right;
    verdict.failed = failed;
    verdict.mismatches = wrong;
    Ok(verdict)
}
