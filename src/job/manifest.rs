//! The manifest: what a job is, what is committed, what is left. Files and their order, no policy.
//!
//! The order is the promise: part durable → commit record; all records → `_SUCCESS.json`. Whoever
//! reads backwards (success, records, parts) never finds a claim without its proof.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::compress::Compress;
use super::exit::JobError;
use super::fingerprint::Fingerprint;
use super::line::{BoxUnit, longest_line};
use super::plan::{Batch, PlanSummary};
use super::retry::Retry;
use super::settings::Settings;
use super::shard::ShardArray;
use super::strikes::STRIKES;
use super::tally::Tally;
use crate::failpoint;
use crate::store::{Owner, PutNew, Store, StoreError, hex, sha256};

/// The version of the files under `_manifest/` and of `_SUCCESS.json`.
pub const MANIFEST_SCHEMA: &str = "haul.manifest/1";

const JOB: &str = "_manifest/job.json";
const PLAN: &str = "_manifest/plan.json";
const SHARDS: &str = "_manifest/shards.json";
const SUCCESS: &str = "_SUCCESS.json";
const DONE: &str = "_manifest/done";
const FAILED: &str = "_manifest/failed";

/// `_manifest/job.json`: enough to resume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// [`MANIFEST_SCHEMA`].
    pub schema: String,
    /// A random id that records carry.
    pub id: String,
    /// Milliseconds since the epoch; orders outputs for `--since`, nothing else.
    pub created_ms: u64,
    /// The version of haul that made it.
    pub haul: String,
    /// What its bytes depend on.
    pub fingerprint: Fingerprint,
    /// Every setting, paths absolute.
    pub settings: Settings,
    /// The folder that keys are relative to; a list on standard input does not say it again.
    pub folder: String,
    /// What `--since` resolved to, with the plans' digests; reused on every later run.
    pub since: Vec<Ancestor>,
    /// The output whose failed pictures it runs again, where it does that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

impl Job {
    /// How its parts are stored.
    ///
    /// # Errors
    /// When it names a way that this haul does not know.
    pub fn compress(&self) -> Result<Compress, JobError> {
        let name = self.settings.compress.as_deref().unwrap_or("none");
        name.parse().map_err(|()| {
            JobError::Damaged(format!(
                "{JOB}: `compress` is `{name}`, which this haul does not know (was it edited, or \
                 made by a newer one?)"
            ))
        })
    }

    /// What the sides of its boxes are counted in.
    ///
    /// # Errors
    /// When it names a unit that this haul does not know.
    pub fn boxes(&self) -> Result<BoxUnit, JobError> {
        let name = self.settings.boxes.as_deref().unwrap_or("pixels");
        name.parse().map_err(|()| {
            JobError::Damaged(format!(
                "{JOB}: `boxes` is `{name}`, which this haul does not know (was it edited, or made \
                 by a newer one?)"
            ))
        })
    }

    /// The lines of a mini-batch's part, unpacked where they are compressed.
    ///
    /// # Errors
    /// What is wrong with the part. No part can make it take more memory than planned lines need.
    pub(super) fn lines<'a>(
        &self,
        batch: &Batch,
        part: &'a [u8],
    ) -> Result<std::borrow::Cow<'a, [u8]>, String> {
        let compress = self.compress().map_err(|error| error.to_string())?;
        let labels = self.fingerprint.get("labels").and_then(|labels| labels.as_array());
        let lengths = labels.into_iter().flatten().filter_map(|label| label.as_str());
        let longest = lengths.map(str::len).max().unwrap_or(0);
        let most = self.fingerprint.get("max_det").and_then(serde_json::Value::as_u64);
        let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(0);
        let count = batch.objects.len() as u64;
        let meta = batch.objects.iter().filter_map(|object| object.meta.as_deref());
        let meta: u64 = meta.map(|text| text.len() as u64 + 16).sum();
        let limit = longest_line(most, longest).saturating_mul(count).saturating_add(meta);
        compress.unpack(part, limit)
    }
}

/// An output that a `--since` job builds on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Its folder.
    pub output: String,
    /// The digest in its `plan.json`.
    pub plan_sha256: String,
}

/// `_manifest/done/ID.json`: a mini-batch is committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`MANIFEST_SCHEMA`].
    pub schema: String,
    /// The job's id.
    pub job: String,
    /// The mini-batch.
    pub batch: u64,
    /// Lines in the part: one for each planned picture.
    pub lines: u64,
    /// Lines with detections, maybe none.
    pub ok: u64,
    /// Lines with an error.
    pub failed: u64,
    /// Digest of the part.
    pub sha256: String,
    /// Detections by label.
    pub classes: BTreeMap<String, u64>,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
    /// Wall time from the first fetch to the commit; 0 when adopted.
    pub seconds: f64,
    /// Who committed it.
    pub host: String,
    /// Which try it was, from 1.
    pub attempt: u64,
}

impl Record {
    /// Whether two commits of one mini-batch say the same.
    #[must_use]
    pub fn agrees(&self, other: &Record) -> bool {
        (self.batch, self.lines, self.ok, self.failed, &self.sha256)
            == (other.batch, other.lines, other.ok, other.failed, &other.sha256)
    }
}

/// `_manifest/failed/ID-ATTEMPT.json`: why an attempt failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// [`MANIFEST_SCHEMA`].
    pub schema: String,
    /// The job's id.
    pub job: String,
    /// The mini-batch.
    pub batch: u64,
    /// Which try it was, from 1.
    pub attempt: u64,
    /// What went wrong, for people.
    pub reason: String,
    /// Who tried.
    pub host: String,
}

/// `_SUCCESS.json`: every planned picture has its line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// [`MANIFEST_SCHEMA`].
    pub schema: String,
    /// The job's id.
    pub job: String,
    /// Pictures planned: `ok + failed`.
    pub planned: u64,
    /// Pictures with detections, maybe none.
    pub ok: u64,
    /// Pictures with an error.
    pub failed: u64,
    /// Parts, one for each mini-batch.
    pub parts: u64,
    /// Digest of the plan.
    pub plan_sha256: String,
    /// Digest over the parts' names and digests in order, as `sha256sum part-*` prints them.
    pub parts_sha256: String,
}

/// What is kept in memory of a committed mini-batch.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// Pictures with detections.
    pub ok: u64,
    /// Pictures with an error.
    pub failed: u64,
    /// Digest of the part.
    pub sha256: String,
}

/// The manifest of one output.
#[derive(Clone, Debug)]
pub struct Manifest {
    store: Arc<dyn Store>,
    host: String,
}

/// The name of a mini-batch's part.
#[must_use]
pub fn part_name(batch: u64, compress: Compress) -> String {
    format!("part-{batch:08}{}", compress.suffix())
}

fn record_name(batch: u64) -> String {
    format!("{DONE}/{batch:08}.json")
}

/// The names of these mini-batches' records.
pub(super) fn record_names(batches: &[u64]) -> Vec<PathBuf> {
    batches.iter().map(|&batch| record_name(batch).into()).collect()
}

impl Manifest {
    /// The manifest kept in a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Manifest {
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        Manifest { store, host }
    }

    /// The store it is kept in.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, JobError> {
        let Some(bytes) = self.store.read(Path::new(name))? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes).map_err(|error| self.damaged(name, &error))?;
        Ok(Some(value))
    }

    fn damaged(&self, name: &str, what: &dyn std::fmt::Display) -> JobError {
        JobError::Damaged(format!(
            "`{}/{name}` is not what haul published: {what} (was it edited, or is the disk failing?)",
            self.store.describe()
        ))
    }

    /// Publishes a value, or checks that what is there is equal enough.
    fn put_json<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        value: &T,
        same: impl Fn(&T) -> bool,
    ) -> Result<(), JobError> {
        if self.store.put_new(Path::new(name), &json_line(value))? == PutNew::Created {
            return Ok(());
        }
        match self.read_json::<T>(name)? {
            Some(there) if same(&there) => Ok(()),
            _ => Err(JobError::Damaged(format!(
                "`{}/{name}` was published by somebody else, and says otherwise",
                self.store.describe()
            ))),
        }
    }

    /// Makes durable what earlier or other runs have published. Before it is built upon: who is
    /// killed between a name and its fsync leaves a file that everybody sees and a power cut takes.
    ///
    /// # Errors
    /// When the store fails.
    pub fn settle(&self) -> Result<(), JobError> {
        Ok(["", "_manifest", DONE].iter().try_for_each(|dir| self.store.settle(Path::new(dir)))?)
    }

    /// The job, if there is one.
    ///
    /// # Errors
    /// When it is there and cannot be read, or a newer haul wrote it.
    pub fn job(&self) -> Result<Option<Job>, JobError> {
        let job: Option<Job> = match self.store.read(Path::new(JOB))? {
            None => None,
            Some(bytes) => {
                // The schema first: a newer one may have fields that we would call damage.
                let value: serde_json::Value =
                    serde_json::from_slice(&bytes).map_err(|error| self.damaged(JOB, &error))?;
                let schema = value["schema"].as_str().unwrap_or("missing").to_owned();
                if schema != MANIFEST_SCHEMA {
                    return Err(JobError::Usage(format!(
                        "`{}` was made by another haul: its schema is {schema}, ours {MANIFEST_SCHEMA}",
                        self.store.describe()
                    )));
                }
                Some(serde_json::from_value(value).map_err(|error| self.damaged(JOB, &error))?)
            }
        };
        Ok(job)
    }

    /// Publishes the job. Whoever was first, the job that is there is returned.
    ///
    /// # Errors
    /// When the store fails.
    pub fn put_job(&self, job: &Job) -> Result<Job, JobError> {
        let mut text = serde_json::to_vec_pretty(job).expect("a job is JSON. This is a bug.");
        text.push(b'\n');
        self.store.put_new(Path::new(JOB), &text)?;
        self.job()?
            .ok_or_else(|| JobError::Internal(format!("{JOB} vanished right after it was written")))
    }

    /// What the finished plan amounts to, if it is finished.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn plan(&self) -> Result<Option<PlanSummary>, JobError> {
        self.read_json(PLAN)
    }

    /// Publishes what the finished plan amounts to.
    ///
    /// # Errors
    /// When another plan is there.
    pub fn put_plan(&self, plan: &PlanSummary) -> Result<(), JobError> {
        self.put_json(PLAN, plan, |there| there == plan)
    }

    /// What the first array of shards was, if one has left it.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn shards(&self) -> Result<Option<ShardArray>, JobError> {
        self.read_json(SHARDS)
    }

    /// Publishes what the first array of shards is.
    ///
    /// # Errors
    /// When another one is there.
    pub fn put_shards(&self, array: &ShardArray) -> Result<(), JobError> {
        self.put_json(SHARDS, array, |there| there == array)
    }

    /// The success marker, if there is one.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn success(&self) -> Result<Option<Success>, JobError> {
        self.read_json(SUCCESS)
    }

    /// Publishes the success marker, once plan, parts and records are durable.
    ///
    /// # Errors
    /// When another one is there.
    pub fn put_success(&self, success: &Success) -> Result<(), JobError> {
        // Some of them may be another run's that has not got so far.
        self.settle()?;
        self.put_json(SUCCESS, success, |there| there == success)
    }

    /// Ids of mini-batches with a record, in order.
    ///
    /// # Errors
    /// When the folder holds something that haul did not put there.
    pub fn records(&self) -> Result<Vec<u64>, JobError> {
        self.numbered(DONE, "", ".json")
    }

    /// Ids of mini-batches with a part, in order.
    ///
    /// # Errors
    /// When the store fails, or there is a part that is stored in another way than the job's.
    pub fn parts(&self, job: &Job) -> Result<Vec<u64>, JobError> {
        let compress = job.compress()?;
        let names = self.store.list(Path::new(""))?;
        let foreign = |name: &&String| {
            let mut others = Compress::ALL.into_iter().filter(|other| *other != compress);
            others.any(|other| number(name, "part-", other.suffix()).is_some())
        };
        if let Some(name) = names.iter().find(foreign) {
            return Err(JobError::Foreign(format!(
                "`{}/{name}` is not this job's: its parts are named {} (move it away, or use --new \
                 to start over)",
                self.store.describe(),
                part_name(0, compress)
            )));
        }
        Ok(names.iter().filter_map(|name| number(name, "part-", compress.suffix())).collect())
    }

    fn numbered(&self, folder: &str, prefix: &str, suffix: &str) -> Result<Vec<u64>, JobError> {
        let names = self.store.list(Path::new(folder))?;
        let parse = |name: &String| {
            number(name, prefix, suffix).ok_or_else(|| {
                JobError::Foreign(format!(
                    "`{}/{folder}/{name}` is not haul's (move it away)",
                    self.store.describe()
                ))
            })
        };
        // File servers and desktops leave hidden files anywhere.
        names.iter().filter(|name| !name.starts_with('.')).map(parse).collect()
    }

    /// The record of a mini-batch.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is another job's.
    pub fn record(&self, job: &Job, batch: u64) -> Result<Record, JobError> {
        self.as_record(job, batch, self.store.read(Path::new(&record_name(batch))))
    }

    /// The records of some mini-batches, in their order, under their [`record_names`]; a store that
    /// is far away reads several at once.
    pub(super) fn read_records<'a>(
        &'a self,
        job: &'a Job,
        batches: &'a [u64],
        names: &'a [PathBuf],
    ) -> impl Iterator<Item = Result<Record, JobError>> + 'a {
        let reads = batches.iter().zip(self.store.read_each(names));
        reads.map(|(&batch, read)| self.as_record(job, batch, read))
    }

    fn as_record(
        &self,
        job: &Job,
        batch: u64,
        read: Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Record, JobError> {
        let name = record_name(batch);
        let bytes = read?.ok_or_else(|| self.damaged(&name, &"it is listed and not there"))?;
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|error| self.damaged(&name, &error))?;
        if record.job != job.id || record.batch != batch {
            return Err(JobError::Foreign(format!(
                "`{}/{name}` is a record of another job (use another --output, or --new to start over)",
                self.store.describe()
            )));
        }
        Ok(record)
    }

    /// The bytes of a part, as they are stored.
    ///
    /// # Errors
    /// When the store fails.
    pub fn part(&self, job: &Job, batch: u64) -> Result<Option<Vec<u8>>, JobError> {
        Ok(self.store.read(Path::new(&part_name(batch, job.compress()?)))?)
    }

    /// The record of a part that adds up to `tally`.
    #[must_use]
    pub fn new_record(
        &self,
        job: &Job,
        batch: u64,
        part: &[u8],
        tally: Tally,
        seconds: f64,
        attempt: u64,
    ) -> Record {
        Record {
            schema: MANIFEST_SCHEMA.to_owned(),
            job: job.id.clone(),
            batch,
            lines: tally.ok + tally.failed,
            ok: tally.ok,
            failed: tally.failed,
            sha256: sha256(part),
            classes: tally.classes,
            errors: tally.errors,
            seconds: (seconds * 1000.0).round() / 1000.0,
            host: self.host.clone(),
            attempt,
        }
    }

    /// Commits a mini-batch: the part, then its record.
    ///
    /// # Errors
    /// When the store fails, or other bytes are there under either name.
    pub fn commit(&self, job: &Job, part: &[u8], record: &Record) -> Result<(), JobError> {
        let name = part_name(record.batch, job.compress()?);
        failpoint::hit("before_part").map_err(JobError::Internal)?;
        if self.store.put_new_of(Path::new(&name), part, &job.id)? == PutNew::Exists {
            self.check_owner(job, &name)?;
            if self.store.read(Path::new(&name))?.as_deref() != Some(part) {
                return Err(JobError::Damaged(format!(
                    "`{}/{name}` holds other lines than this run's; two runs of one job must agree",
                    self.store.describe()
                )));
            }
        }
        failpoint::hit("after_part").map_err(JobError::Internal)?;
        self.put_record(record)?;
        failpoint::hit("after_record").map_err(JobError::Internal)
    }

    /// Checks that a part is this job's, where the store can tell. Where it cannot, the lock vouches.
    fn check_owner(&self, job: &Job, name: &str) -> Result<(), JobError> {
        let whose = match self.store.owner(Path::new(name))? {
            Owner::Unsaid => return Ok(()),
            Owner::Job(id) if id == job.id => return Ok(()),
            Owner::Job(_) => "it is another job's",
            Owner::Nobody => "haul did not write it",
        };
        Err(JobError::Foreign(format!(
            "`{}/{name}` is not this job's part: {whose} (move it away, or use --new to start over)",
            self.store.describe(),
        )))
    }

    /// Publishes a record whose part is durable.
    ///
    /// # Errors
    /// When the store fails, or a record that says otherwise is there.
    pub fn put_record(&self, record: &Record) -> Result<(), JobError> {
        self.put_json(&record_name(record.batch), record, |there| there.agrees(record))
    }

    /// The record for a part that a crash left without one, after checking that it is this job's:
    /// exactly the planned keys, in order.
    ///
    /// # Errors
    /// [`JobError::Foreign`] when it is not.
    pub fn adopt(
        &self,
        job: &Job,
        batch: &Batch,
        attempt: u64,
    ) -> Result<Option<Record>, JobError> {
        let Some(part) = self.part(job, batch.id)? else { return Ok(None) };
        let name = part_name(batch.id, job.compress()?);
        self.check_owner(job, &name)?;
        let lines = job.lines(batch, &part);
        let tally = lines.and_then(|lines| Tally::of_part(&lines, batch));
        let tally = tally.map_err(|what| {
            JobError::Foreign(format!(
                "`{}/{name}` is not this job's part: {what} (move it away, or use --new to start over)",
                self.store.describe(),
            ))
        })?;
        let record = self.new_record(job, batch.id, &part, tally, 0.0, attempt);
        self.store.settle(Path::new(""))?;
        self.put_record(&record)?;
        Ok(Some(record))
    }

    /// Mini-batches that failed at some time, and how often.
    ///
    /// # Errors
    /// When the store fails.
    pub fn attempts(&self) -> Result<BTreeMap<u64, u64>, JobError> {
        let mut attempts = BTreeMap::new();
        for name in self.store.list(Path::new(FAILED))? {
            let Some((batch, attempt)) = name.split_once('-') else { continue };
            let Ok(batch) = batch.parse() else { continue };
            let most: &mut u64 = attempts.entry(batch).or_default();
            *most = number(attempt, "", ".json").map_or(*most, |attempt| attempt.max(*most));
        }
        Ok(attempts)
    }

    /// Publishes why an attempt failed, as the `attempt`th or, where others have failed meanwhile,
    /// as a later one; gives its number.
    ///
    /// # Errors
    /// When the store fails.
    pub fn put_failure(
        &self,
        job: &Job,
        batch: u64,
        mut attempt: u64,
        reason: &str,
    ) -> Result<u64, JobError> {
        loop {
            let failure = Failure {
                schema: MANIFEST_SCHEMA.to_owned(),
                job: job.id.clone(),
                batch,
                attempt,
                reason: reason.to_owned(),
                host: self.host.clone(),
            };
            let name = format!("{FAILED}/{batch:08}-{attempt}.json");
            if self.store.put_new(Path::new(&name), &json_line(&failure))? == PutNew::Created {
                return Ok(attempt);
            }
            attempt += 1;
        }
    }

    /// Removes a job: marker first, identity last, and only names that haul writes. Each step is
    /// durable before the next: after a crash no claim outlives its proof, and no part its job.
    ///
    /// # Errors
    /// When something cannot be removed; what is left is still a job, or none.
    pub fn remove_job(&self) -> Result<(), JobError> {
        let delete = |names: Vec<String>| {
            let names: Vec<PathBuf> = names.into_iter().map(PathBuf::from).collect();
            self.store.delete(&names)
        };
        // What would stand in the next job's way must be said while this one is still whole.
        self.records()?;
        delete(vec![SUCCESS.into()])?;
        let ours = |folder: &str, is: &dyn Fn(&str) -> bool| -> Result<Vec<String>, JobError> {
            let names = self.store.list(Path::new(folder))?;
            Ok(names.iter().filter(|n| is(n)).map(|name| format!("{folder}/{name}")).collect())
        };
        delete(ours(DONE, &|name| number(name, "", ".json").is_some())?)?;
        // However they are stored: the next job's may be another way, and these would be in its.
        let mut parts = self.store.list(Path::new(""))?;
        parts.retain(|name| {
            let is = |compress: Compress| number(name, "part-", compress.suffix()).is_some();
            Compress::ALL.into_iter().any(is)
        });
        delete(parts)?;
        let is_failure = |name: &str| {
            let parts = name.strip_suffix(".json").and_then(|name| name.split_once('-'));
            parts.is_some_and(|(batch, attempt)| {
                number(batch, "", "").is_some() && number(attempt, "", "").is_some()
            })
        };
        delete(ours(FAILED, &is_failure)?)?;
        delete(vec![STRIKES.into()])?;
        delete(vec![PLAN.into(), SHARDS.into()])?;
        let manifest = self.store.list(Path::new("_manifest"))?;
        // A chain without its end is still a chain; one with a gap is not.
        for name in manifest.iter().rev().filter(|n| number(n, "plan-", ".jsonl").is_some()) {
            delete(vec![format!("_manifest/{name}")])?;
        }
        delete(vec![JOB.into()])?;
        Ok(())
    }

    /// What an output without `job.json` holds that is not haul's leavings, if anything.
    ///
    /// # Errors
    /// When the store fails.
    pub fn first_foreign(&self) -> Result<Option<String>, JobError> {
        let ours = |name: &&String| name.as_str() != "_manifest";
        if let Some(name) = self.store.list(Path::new(""))?.iter().find(ours) {
            return Ok(Some(name.clone()));
        }
        for name in self.store.list(Path::new("_manifest"))? {
            let folder = format!("_manifest/{name}");
            let ours = match name.as_str() {
                "lock" | "locks" | "tmp" | "strikes.jsonl" => true,
                // What `--new` leaves when it is interrupted.
                "done" | "failed" => self.store.list(Path::new(&folder))?.is_empty(),
                _ => false,
            };
            if !ours {
                return Ok(Some(folder));
            }
        }
        Ok(None)
    }
}

/// `123` of `part-00000123.jsonl`.
fn number(name: &str, prefix: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    (digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

fn json_line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut text = serde_json::to_vec(value).expect("manifest files are JSON. This is a bug.");
    text.push(b'\n');
    text
}

/// The digest over all parts in order: of the text that `sha256sum part-*` prints.
#[must_use]
pub(super) fn parts_digest<'a>(
    compress: Compress,
    parts: impl Iterator<Item = (u64, &'a str)>,
) -> String {
    use sha2::Digest as _;
    let mut digest = sha2::Sha256::new();
    for (batch, sha256) in parts {
        digest.update(format!("{sha256}  {}\n", part_name(batch, compress)));
    }
    hex(&digest.finalize())
}
