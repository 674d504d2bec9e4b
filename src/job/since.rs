//! `--since`: what earlier jobs have already seen.
//!
//! The earlier plans are merged in key order beside the listing, so memory does not grow with them.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use super::chain::Chain;
use super::exit::JobError;
use super::manifest::{Ancestor, Job, Manifest};
use super::plan::{Segment, segment_name};
use super::session::open_output;
use crate::store::{
    Key, Listed, Listing, Object, Place, S3, S3Options, S3Store, Skip, Store, StoreError,
};

/// The plans of earlier outputs, oldest first.
#[derive(Debug)]
pub struct Known {
    stores: Vec<Arc<dyn Store>>,
}

/// The outputs a `--since` means, with those that they were made since; oldest first.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    /// What job.json remembers.
    pub ancestors: Vec<Ancestor>,
    /// Outputs in a `DIR/` that are not finished, and so were left out.
    pub unfinished: Vec<String>,
}

fn open(output: &Place, s3: &S3Options) -> Manifest {
    Manifest::new(open_output(output, s3))
}

/// An output as job.json names it.
fn place(name: &str) -> Result<Place, JobError> {
    Place::parse(Path::new(name)).map_err(JobError::Usage)
}

/// Finds out which outputs `--since` means.
///
/// # Errors
/// [`JobError::Usage`] for a name that is no output, or an output that is not finished.
pub(super) fn resolve(
    since: &[String],
    own_output: &Place,
    s3: &S3Options,
) -> Result<Resolved, JobError> {
    let mut named: Vec<(u64, String)> = Vec::new();
    let mut resolved = Resolved::default();
    for given in since {
        let path = place(given)?;
        let manifest = open(&path, s3);
        if let Some(job) = manifest.job()? {
            if manifest.success()?.is_none() {
                return Err(JobError::Usage(format!(
                    "--since {given}: that job is not finished (haul resume {given} first)"
                )));
            }
            named.push((job.created_ms, path.to_string()));
            continue;
        }
        let inner = folders(&path, s3)?;
        if inner.is_empty() && !path.local().is_some_and(Path::is_dir) {
            return Err(JobError::Usage(format!(
                "--since {given}: there is no output of haul, nor a folder of them"
            )));
        }
        for inner in inner {
            if inner.is_same(own_output) {
                continue;
            }
            let manifest = open(&inner, s3);
            match manifest.job()? {
                None => {}
                Some(_) if manifest.success()?.is_none() => {
                    resolved.unfinished.push(inner.to_string());
                }
                Some(job) => named.push((job.created_ms, inner.to_string())),
            }
        }
    }
    named.sort();
    resolved.unfinished.sort();
    let mut seen = BTreeSet::new();
    for (_, output) in named {
        visit(&output, s3, &mut seen, &mut resolved.ancestors)?;
    }
    Ok(resolved)
}

/// Adds an output after those it was made since, so that the latest identity comes last.
fn visit(
    name: &str,
    s3: &S3Options,
    seen: &mut BTreeSet<String>,
    ancestors: &mut Vec<Ancestor>,
) -> Result<(), JobError> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let manifest = open(&place(name)?, s3);
    let missing = || JobError::Usage(format!("--since: `{name}` has no finished plan any more"));
    let job: Job = manifest.job()?.ok_or_else(missing)?;
    for ancestor in &job.since {
        visit(&ancestor.output, s3, seen, ancestors)?;
    }
    let plan = manifest.plan()?.ok_or_else(missing)?;
    ancestors.push(Ancestor { output: name.to_owned(), plan_sha256: plan.sha256 });
    Ok(())
}

/// The folders in a folder, or the prefixes in a prefix.
fn folders(of: &Place, s3: &S3Options) -> Result<Vec<Place>, JobError> {
    let path = match of {
        Place::Local(path) => path,
        Place::S3(location) => {
            let names = S3Store::new(&S3::with(s3), location).folders()?;
            let at = |name: &String| Place::S3(location.folder().join(name).folder());
            return Ok(names.iter().map(at).collect());
        }
    };
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let fault = |error| StoreError::new("list", path, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fault)? {
        let inner = entry.map_err(fault)?.path();
        if inner.is_dir() {
            found.push(Place::Local(inner));
        }
    }
    Ok(found)
}

impl Known {
    /// Opens the plans that a job remembers.
    ///
    /// # Errors
    /// When one of them is gone or is another plan now.
    pub fn open(ancestors: &[Ancestor], s3: &S3Options) -> Result<Option<Known>, JobError> {
        let mut stores: Vec<Arc<dyn Store>> = Vec::new();
        for ancestor in ancestors {
            let manifest = open(&place(&ancestor.output)?, s3);
            let plan = manifest.plan()?.filter(|plan| plan.sha256 == ancestor.plan_sha256);
            let plan = plan.ok_or_else(|| {
                JobError::Usage(format!(
                    "--since: the plan in `{}` is not the one this job was made since",
                    ancestor.output
                ))
            })?;
            // Before anything is planned; that they are whole is seen when they are read.
            let names = manifest.store().list(Path::new("_manifest"))?;
            let names: BTreeSet<String> =
                names.iter().map(|name| format!("_manifest/{name}")).collect();
            if let Some(number) = (0..plan.segments).find(|n| !names.contains(&segment_name(*n))) {
                return Err(missing(&**manifest.store(), number));
            }
            stores.push(manifest.store().clone());
        }
        Ok((!stores.is_empty()).then_some(Known { stores }))
    }

    /// The listing, with objects that are known and unchanged turned into [`Skip::Known`].
    ///
    /// # Errors
    /// When a plan cannot be read.
    pub fn filter<'a>(
        &'a self,
        listing: Listing<'a>,
    ) -> Result<impl Iterator<Item = Result<Listed, StoreError>> + Send + 'a, JobError> {
        let mut plans: Vec<Cursor<'a>> =
            self.stores.iter().map(|store| Cursor::new(&**store)).collect();
        Ok(listing.map(move |item| {
            let object = match item? {
                Listed::Object(object) => object,
                skipped => return Ok(skipped),
            };
            let mut latest: Option<Object> = None;
            for plan in &mut plans {
                if let Some(found) = plan.find(&object.key)? {
                    latest = Some(found);
                }
            }
            let same = latest.is_some_and(|known| known.is_same_version(&object));
            Ok(if same { Listed::Skipped(Skip::Known) } else { Listed::Object(object) })
        }))
    }
}

fn missing(store: &dyn Store, segment: u64) -> JobError {
    let (output, name) = (store.describe(), segment_name(segment));
    JobError::Damaged(format!("--since: `{output}/{name}` is missing, and its plan is not whole"))
}

/// Walks one plan forward.
struct Cursor<'a> {
    chain: Chain<'a>,
    objects: VecDeque<Object>,
}

impl<'a> Cursor<'a> {
    fn new(store: &'a dyn Store) -> Cursor<'a> {
        Cursor { chain: Chain::new(store), objects: VecDeque::new() }
    }

    /// The plan's object of this key; keys must be asked for in order.
    fn find(&mut self, key: &Key) -> Result<Option<Object>, StoreError> {
        loop {
            while self.objects.front().is_some_and(|object| object.key < *key) {
                self.objects.pop_front();
            }
            if let Some(object) = self.objects.front() {
                return Ok((object.key == *key).then(|| object.clone()));
            }
            let segment = match self.chain.next_segment() {
                Ok(None) if !self.chain.ended() => {
                    Err(missing(self.chain.store(), self.chain.summary().segments))
                }
                other => other,
            };
            match segment {
                Ok(None) => return Ok(None),
                Ok(Some(Segment { batches, .. })) => {
                    self.objects.extend(batches.into_iter().flat_map(|batch| batch.objects));
                }
                Err(JobError::Store(error)) => return Err(error),
                Err(error) => {
                    let error = std::io::Error::other(error.to_string());
                    return Err(StoreError::new("read the plan of", "--since", error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;

    #[test]
    fn a_missing_segment_is_not_the_end_of_a_plan() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::new(dir.path(), "tmp");
        let (previous, batches, skipped) = (None, Vec::new(), [].into());
        let first = Segment { number: 0, previous, batches, skipped, last: false };
        store.put_new(Path::new(&segment_name(0)), &first.encode()).unwrap();
        let error = Cursor::new(&store).find(&Key::from("a")).unwrap_err();
        assert!(error.to_string().contains("plan-00000001.jsonl` is missing"), "{error}");
    }
}
