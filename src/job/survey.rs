//! Looking at an output without touching it: what is planned, what is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::chain::Chain;
use super::exit::{Exit, JobError};
use super::fingerprint::{kept_classes, labels};
use super::gate::{Gate, GateResult, Totals, judge};
use super::manifest::{Job, Manifest, Record, record_names};
use super::plan::{Batch, PlanSummary};
use super::report::Share;
use super::session::open_output;
use super::shard::Shard;
use super::tally::Tally;
use crate::store::{Place, S3Options, Store};

/// Where a mini-batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Part and record are there.
    Done,
    /// A try has failed, and none has succeeded yet.
    Failed,
    /// Its turn has not come.
    Pending,
}

/// An output that holds a job.
#[derive(Debug)]
pub struct Survey {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its job.
    pub job: Job,
    records: BTreeSet<u64>,
    failed: BTreeSet<u64>,
}

/// What `haul status` says.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// `done` or `unfinished`.
    pub state: String,
    /// The exit code.
    pub exit: u8,
    /// Whether the plan is complete.
    pub plan_complete: bool,
    /// Pictures planned so far.
    pub planned: u64,
    /// Pictures committed with detections, maybe none.
    pub ok: u64,
    /// Pictures committed with an error.
    pub failed: u64,
    /// Pictures not committed yet.
    pub remaining: u64,
    /// Mini-batches planned so far.
    pub batches: u64,
    /// Mini-batches committed.
    pub committed: u64,
    /// Mini-batches whose last try failed.
    pub failing: u64,
    /// Detections by label.
    pub classes: BTreeMap<String, u64>,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
    /// Names that were listed and not planned, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// How each gate came out; empty until the job is finished.
    pub gates: Vec<GateResult>,
}

impl Survey {
    /// Opens an output.
    ///
    /// # Errors
    /// [`JobError::Usage`] when there is no job in it.
    pub fn open(output: &Place, s3: &S3Options) -> Result<Survey, JobError> {
        Survey::on(open_output(output, s3))
    }

    /// Opens the output that a store holds.
    ///
    /// # Errors
    /// [`JobError::Usage`] when there is no job in it.
    pub fn on(store: Arc<dyn Store>) -> Result<Survey, JobError> {
        let manifest = Manifest::new(store);
        let job = manifest.job()?.ok_or_else(|| {
            let output = manifest.store().describe();
            JobError::Usage(format!("`{output}` holds no job of haul"))
        })?;
        let records = manifest.records()?.into_iter().collect();
        let failed = manifest.attempts()?.into_keys().collect();
        Ok(Survey { manifest, job, records, failed })
    }

    /// Ids of the mini-batches with a record.
    #[must_use]
    pub fn records(&self) -> &BTreeSet<u64> {
        &self.records
    }

    /// Visits the planned mini-batches in order, with their records, and gives the plan so far.
    ///
    /// # Errors
    /// The visitor's, or when plan or records cannot be read.
    pub fn visit(
        &self,
        mut visitor: impl FnMut(&Batch, State, Option<&Record>) -> Result<(), JobError>,
    ) -> Result<(PlanSummary, bool), JobError> {
        let store = self.manifest.store().clone();
        let mut chain = Chain::new(&*store);
        while let Some(segment) = chain.next_segment()? {
            let ids = segment.batches.iter().map(|batch| batch.id);
            let ids: Vec<u64> = ids.filter(|id| self.records.contains(id)).collect();
            let names = record_names(&ids);
            let mut records = self.manifest.read_records(&self.job, &ids, &names);
            for batch in &segment.batches {
                if self.records.contains(&batch.id)
                    && let Some(record) = records.next()
                {
                    let record = record?;
                    visitor(batch, State::Done, Some(&record))?;
                } else if self.failed.contains(&batch.id) {
                    visitor(batch, State::Failed, None)?;
                } else {
                    visitor(batch, State::Pending, None)?;
                }
            }
        }
        Ok((chain.summary().clone(), chain.ended()))
    }

    /// As [`Survey::visit`], for whoever trusts what is there: a finished job must be all there.
    ///
    /// # Errors
    /// Also [`JobError::Damaged`] when plan and records are not what `_SUCCESS.json` says.
    pub fn visit_whole(
        &self,
        mut visitor: impl FnMut(&Batch, State, Option<&Record>) -> Result<(), JobError>,
    ) -> Result<(PlanSummary, bool), JobError> {
        let (mut parts, mut ok, mut failed) = (0, 0, 0);
        let (plan, complete) = self.visit(|batch, state, record| {
            if let Some(record) = record {
                parts += 1;
                ok += record.ok;
                failed += record.failed;
            }
            visitor(batch, state, record)
        })?;
        let there = (plan.pictures, parts, ok, failed);
        match self.manifest.success()? {
            Some(said) if (said.planned, said.parts, said.ok, said.failed) != there => {
                let output = self.manifest.store().describe();
                Err(JobError::Damaged(format!(
                    "`{output}/_SUCCESS.json` says {} pictures in {} parts, and plan and records \
                     have {} in {parts} (is something missing? haul verify {output} names it)",
                    said.planned,
                    said.parts,
                    ok + failed
                )))
            }
            _ => Ok((plan, complete)),
        }
    }

    /// Checks that the job can have what each gate counts.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the class that it cannot have.
    pub fn check_gates(&self, gates: &[Gate]) -> Result<(), JobError> {
        let (labels, kept) = (labels(&self.job), kept_classes(&self.job));
        gates.iter().try_for_each(|gate| gate.check_class(&labels, kept.as_deref()))
    }

    /// A share of it in numbers.
    ///
    /// # Errors
    /// When plan or records cannot be read.
    pub fn share(&self, shard: Shard) -> Result<Share, JobError> {
        let mut share = Share { shard: shard.to_string(), ..Share::default() };
        self.visit(|batch, _, record| {
            if shard.has(batch.id) {
                share.planned += batch.objects.len() as u64;
                share.batches += 1;
                share.committed += u64::from(record.is_some());
                share.ok += record.map_or(0, |record| record.ok);
                share.failed += record.map_or(0, |record| record.failed);
            }
            Ok(())
        })?;
        Ok(share)
    }

    /// The whole in numbers.
    ///
    /// # Errors
    /// When plan or records cannot be read, or a finished job is not all there.
    pub fn status(&self) -> Result<Status, JobError> {
        let mut status = Status::default();
        let mut totals = Tally::default();
        let (plan, complete) = self.visit_whole(|batch, state, record| {
            match (state, record) {
                (State::Done, Some(record)) => {
                    status.committed += 1;
                    totals.merge(Tally {
                        ok: record.ok,
                        failed: record.failed,
                        classes: record.classes.clone(),
                        errors: record.errors.clone(),
                    });
                }
                (State::Failed, _) => {
                    status.failing += 1;
                    status.remaining += batch.objects.len() as u64;
                }
                _ => status.remaining += batch.objects.len() as u64,
            }
            Ok(())
        })?;
        let finished = self.manifest.success()?.is_some();
        let exit = match (finished, totals.failed) {
            (false, _) => Exit::Interrupted,
            (true, 0) => Exit::Done,
            (true, _) => Exit::SomeFailed,
        };
        Ok(Status {
            state: if finished { "done" } else { "unfinished" }.to_owned(),
            exit: exit as u8,
            plan_complete: complete,
            planned: plan.pictures,
            ok: totals.ok,
            failed: totals.failed,
            batches: plan.batches,
            classes: totals.classes,
            errors: totals.errors,
            skipped: plan.skipped,
            ..status
        })
    }
}

impl Status {
    /// Holds a finished job against gates; one that is not finished stays that.
    pub fn hold_against(&mut self, gates: &[Gate]) {
        if self.exit() == Exit::Interrupted {
            return;
        }
        let totals = Totals {
            pictures: self.planned,
            failed: self.failed,
            errors: &self.errors,
            classes: &self.classes,
        };
        let (results, exit) = judge(gates, &totals);
        self.gates = results;
        self.exit = exit as u8;
    }

    /// The exit code as a value.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self.exit {
            0 => Exit::Done,
            3 => Exit::SomeFailed,
            6 => Exit::Gate,
            _ => Exit::Interrupted,
        }
    }
}
