//! From a specification to a job that may be worked on: model, lock, fingerprint, first listing.
//!
//! The order matters to the next run: nothing is written before the model could be read, and no
//! job before there is something to plan.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::exit::JobError;
use super::fingerprint::{check, fingerprint, numeric_class};
use super::inference::Loaded;
use super::line::longest_line;
use super::manifest::{Job, MANIFEST_SCHEMA, Manifest};
use super::memory::Shares;
use super::plan::segment_name;
use super::planner::Terms;
use super::select::Names;
use super::settings::Settings;
use super::shard::{Shard, settle};
use super::since::{Known, resolve};
use super::spec::{IfLocked, Input, Spec};
use super::strikes::{STRIKES, forget};
use super::terminal::Terminal;
use crate::engine::Engine;
use crate::failpoint;
use crate::store::{
    Hold, LARGEST_META, Listed, LocalSource, LocalStore, Location, LockError, Place, S3, S3Options,
    S3Source, S3SourceOptions, S3Store, Skip, Source, SourceOptions, Store, StoreError, is_list,
    is_manifest, is_table, one_line, open_input, settled,
};

/// The lock's name in an output.
const LOCK: &str = "_manifest/lock";

/// A job that this process may work on, for as long as it holds this.
pub struct Session {
    /// The validated request.
    pub spec: Spec,
    /// The model.
    pub loaded: Loaded,
    /// The manifest of the output.
    pub manifest: Manifest,
    /// The job in it.
    pub job: Job,
    /// The input.
    pub source: Arc<dyn Source>,
    /// Which names are planned.
    pub names: Arc<Names>,
    /// What `--since` knows.
    pub known: Option<Arc<Known>>,
    /// Which share of the mini-batches is this process's; `None` is all of them.
    pub shard: Option<Shard>,
    /// Workers and memory.
    pub(super) shares: Shares,
    pub(super) lock: Option<Hold>,
}

impl Session {
    /// What a lister needs.
    #[must_use]
    pub fn terms(&self) -> Terms<'_> {
        Terms {
            source: &*self.source,
            select: &*self.names,
            caps: self.spec.caps,
            limit: self.spec.limit,
            known: self.known.as_deref(),
            sample: self.spec.sample,
        }
    }

    /// The connection to S3, if anything was asked of it: input, output, model or an earlier output.
    pub(super) fn s3(&self) -> Option<S3> {
        let s3 = S3::with(&self.spec.s3);
        (s3.traffic().requests > 0).then_some(s3)
    }

    /// Whether a mini-batch is this process's to work on.
    pub(super) fn has(&self, batch: u64) -> bool {
        self.shard.is_none_or(|shard| shard.has(batch))
    }
}

/// How a session came out.
pub enum Opened {
    /// There is a job to work on.
    Job(Box<Session>),
    /// Another run holds the output, and that is fine (`--if-locked skip`).
    Skipped(String),
    /// There is nothing to plan, and that is fine (`--allow-empty`).
    Nothing(String),
}

/// Reads the model that a job asks for, for the numeric class that the job has, if it has one.
///
/// # Errors
/// As [`Inference::load`](super::Inference::load); when a gate is about a class that the model lacks.
pub fn load_model(spec: &Spec, class: Option<&str>) -> Result<Loaded, JobError> {
    let loaded = spec.inference.load(&spec.s3, class)?;
    for gate in &spec.gates {
        gate.check_class(&loaded.facts.labels, loaded.facts.classes.as_deref())?;
    }
    Ok(loaded)
}

/// Pictures that may be in open mini-batches before another one is opened: enough to keep every
/// worker busy, whatever the size of a mini-batch, and so many more that `ahead` of them can be on
/// their way at the end of one.
pub(super) fn open_pictures(
    spec: &Spec,
    engine: &dyn Engine,
    workers: usize,
    ahead: usize,
) -> usize {
    // Where devices compute, those of the batches in flight, and as many again for the pictures that
    // are read, decoded and answered meanwhile.
    let devices = 2 * engine.batching().map_or(0, |batching| batching.slots());
    spec.caps.pictures.max(8 * workers + devices) + ahead.saturating_sub(1)
}

/// Divides the memory budget among the workers of a job.
///
/// # Errors
/// [`JobError::Usage`] when not even one worker fits.
pub(super) fn shares(spec: &Spec, loaded: &Loaded, ahead: usize) -> Result<Shares, JobError> {
    let inference = &spec.inference;
    let longest_label = loaded.facts.labels.iter().map(String::len).max().unwrap_or(0);
    let meta = if from_table(spec) { LARGEST_META as u64 + 8 } else { 0 };
    let pictures =
        open_pictures(spec, &*loaded.engine, inference.workers(), ahead) + spec.caps.pictures;
    inference
        .shares(loaded, pictures as u64 * (longest_line(inference.max_det, longest_label) + meta))
}

/// How a job is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A new job, or what is left of it; a finished one is listed again.
    Run,
    /// Forget the job that is there.
    StartOver,
    /// Only what is left of the job that is there; its finished plan is not listed again.
    Resume,
}

fn source_options(spec: &Spec) -> SourceOptions {
    let places = [Some(&spec.output), spec.annotate.as_ref()];
    let avoid = places.into_iter().flatten().filter_map(Place::local).map(Path::to_owned).collect();
    SourceOptions {
        follow_symlinks: spec.follow_symlinks,
        identity: spec.identity,
        avoid,
        key_column: spec.key_column.clone(),
    }
}

fn bucket_options(spec: &Spec) -> S3SourceOptions {
    let places = [Some(&spec.output), spec.annotate.as_ref()];
    S3SourceOptions {
        identity: spec.identity,
        avoid: places.into_iter().flatten().filter_map(Place::s3).cloned().collect(),
        key_column: spec.key_column.clone(),
    }
}

/// Opens the input of a job. The keys of a list on standard input are relative to `folder`, or to
/// the working directory.
///
/// # Errors
/// When it does not exist or may not be read.
pub fn open_source(spec: &Spec, folder: Option<PathBuf>) -> Result<Arc<dyn Source>, JobError> {
    let options = source_options(spec);
    if spec.key_column.is_some() && !from_table(spec) {
        return Err(JobError::Usage(
            "--key-column names a column of a table; --input is no .csv file".into(),
        ));
    }
    let source: Arc<dyn Source> = match &spec.input {
        Input::Stdin => {
            let here = || std::env::current_dir().unwrap_or_default();
            let folder = folder.unwrap_or_else(here);
            Arc::new(LocalSource::from_lines(std::io::stdin().lock(), &folder, options)?)
        }
        Input::Path(path) => {
            // A missing input is a mistake in the request, not a passing fault.
            if let Err(error) = std::fs::metadata(path) {
                return Err(JobError::Usage(format!("--input `{}`: {error}", path.display())));
            }
            if Place::Local(path.clone()).is_same(&spec.output) {
                return Err(JobError::Usage(format!(
                    "--input and --output are the same folder, `{}`",
                    path.display()
                )));
            }
            let inside = |dir: &&Path| settled(dir).starts_with(settled(path));
            let annotated = spec.annotate.as_ref().and_then(Place::local);
            if let Some(dir) = annotated.filter(|dir| path.is_dir() && inside(dir)) {
                // A run without the flag would take the copies for new pictures.
                return Err(JobError::Usage(format!(
                    "--annotate `{}` lies in --input (give annotated pictures a folder elsewhere)",
                    dir.display()
                )));
            }
            let (input, s3) = (Place::Local(path.clone()), S3::with(&spec.s3));
            open_input(&input, &s3, options, bucket_options(spec))?
        }
        Input::S3(location) => open_bucket(spec, location)?,
    };
    Ok(source)
}

/// Opens an input in a bucket.
fn open_bucket(spec: &Spec, location: &Location) -> Result<Arc<dyn Source>, JobError> {
    if spec.output.s3().is_some_and(|output| output.folder() == location.folder()) {
        return Err(JobError::Usage(format!(
            "--input and --output are the same prefix, `{location}`"
        )));
    }
    let annotated = spec.annotate.as_ref().and_then(Place::s3);
    let inside = |dir: &&Location| {
        dir.bucket == location.bucket && dir.folder().key.starts_with(&location.key)
    };
    if let Some(dir) = annotated.filter(inside) {
        return Err(JobError::Usage(format!(
            "--annotate `{dir}` lies in --input (give annotated pictures a prefix elsewhere)"
        )));
    }
    Ok(Arc::new(S3Source::open(&S3::with(&spec.s3), location, bucket_options(spec))?))
}

/// The input of a job whose pictures are all in its plan, so that no list and no tree is read again:
/// the folder that their keys are relative to. A finished job asks nothing of it.
fn planned_source(spec: &Spec, job: &Job, finished: bool) -> Result<Arc<dyn Source>, JobError> {
    let mut folder = Place::parse(Path::new(&job.folder)).map_err(JobError::Usage)?;
    if let Some(path) = folder.local()
        && std::fs::metadata(path).is_err()
    {
        match &spec.input {
            // There is nothing left to read, and so any folder will do.
            _ if finished => folder = Place::Local("/".into()),
            // It may have a name that job.json cannot say, and be reached by a link.
            Input::Path(_) if spec.retry.is_none() => {
                let source = open_source(spec, None)?;
                same_folder(job, spec, &*source)?;
                return Ok(source);
            }
            _ => {}
        }
    }
    let none =
        tempfile::tempfile().map_err(|error| StoreError::new("make", "a temporary file", error))?;
    source_of_keys(spec, none, &folder)
}

/// An input of which all keys are known: in the file, a zero byte after each key and after its meta.
/// They are relative to `folder`.
pub(super) fn source_of_keys(
    spec: &Spec,
    keys: File,
    folder: &Place,
) -> Result<Arc<dyn Source>, JobError> {
    let path = match folder {
        Place::Local(path) => path,
        Place::S3(root) => {
            let found = matches!(&spec.input, Input::S3(at) if !is_list(Path::new(&at.key)));
            let (s3, options) = (S3::with(&spec.s3), bucket_options(spec));
            return Ok(Arc::new(S3Source::from_keys(&s3, keys, found, root, options)));
        }
    };
    if let Err(error) = std::fs::metadata(path) {
        return Err(JobError::Usage(format!("the input `{folder}` of the pictures: {error}")));
    }
    let tree = is_tree(&spec.input, path);
    Ok(Arc::new(LocalSource::from_keys(keys, tree, path, source_options(spec))?))
}

/// Whether keys relative to `folder` were found there, and not named by somebody: a list or a
/// picture lies in its folder. What the input is now does not matter, since a link may have been
/// turned to something else.
fn is_tree(input: &Input, folder: &Path) -> bool {
    match input {
        // A bucket has no links, and is not asked.
        Input::Stdin | Input::S3(_) => false,
        // The folder of a manifest's pictures is in the manifest.
        Input::Path(path) if is_manifest(path) => same_place(path, folder),
        Input::Path(path) => !path.parent().is_some_and(|above| same_place(above, folder)),
    }
}

fn same_place(a: &Path, b: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().ok();
    a == b || canonical(a).is_some_and(|a| canonical(b) == Some(a))
}

/// Whether the pictures are named by a table, so that their lines carry meta.
fn from_table(spec: &Spec) -> bool {
    match &spec.input {
        Input::Path(path) => is_table(path) && !path.is_dir(),
        Input::S3(location) => is_table(Path::new(&location.key)),
        Input::Stdin => false,
    }
}

/// Refuses an input that is another folder than when its job was made: the fingerprint holds its
/// name, and a link may be pointed elsewhere, a manifest's prefix changed.
fn same_folder(job: &Job, spec: &Spec, source: &dyn Source) -> Result<(), JobError> {
    let input = match &spec.input {
        Input::Path(path) => path.display().to_string(),
        Input::S3(location) => location.to_string(),
        Input::Stdin => return Ok(()),
    };
    if job.folder == source.root() {
        return Ok(());
    }
    Err(JobError::Usage(format!(
        "`{input}` names pictures in `{}`; the job in `{}` was made of those in `{}` (put it back as \
         it was, or use another --output)",
        source.root(),
        spec.output,
        job.folder
    )))
}

/// The store of an output.
#[must_use]
pub fn open_output(output: &Place, s3: &S3Options) -> Arc<dyn Store> {
    match output {
        Place::Local(path) => Arc::new(LocalStore::new(path, "_manifest/tmp")),
        Place::S3(prefix) => Arc::new(S3Store::new(&S3::with(s3), prefix)),
    }
}

/// Takes the output's lock, as the job asks. A shard comes in alone: its door is still to be opened.
///
/// # Errors
/// When it is held, or the file system has no locks.
fn lock(spec: &Spec, shard: Option<Shard>) -> Result<Option<Hold>, JobError> {
    if spec.no_lock {
        return Ok(None);
    }
    let patience = match spec.if_locked {
        IfLocked::Wait(time) => time,
        IfLocked::Fail | IfLocked::Skip => Duration::ZERO,
    };
    let shard = shard.map(Shard::numbers);
    Ok(Some(match &spec.output {
        Place::Local(output) => {
            let path = output.join(LOCK);
            let folder = path.parent().unwrap_or(output);
            std::fs::create_dir_all(folder)
                .map_err(|error| StoreError::new("make the folder", folder, error))?;
            Hold::of_folder(&path, shard, patience)?
        }
        Place::S3(prefix) => Hold::of_prefix(&S3::with(&spec.s3), prefix, shard, patience)?,
    }))
}

/// Opens a job for `run`, `plan` and `resume`: takes the lock and settles what the job is.
///
/// # Errors
/// [`JobError`] with the exit code that the design gives to each case.
pub fn open(spec: Spec, mode: Mode, terminal: &Terminal) -> Result<Opened, JobError> {
    let store = open_output(&spec.output, &spec.s3);
    open_on(spec, mode, terminal, store, &load_model)
}

/// Reads a job's model, for the numeric class that the job has, if it has one: [`load_model`].
pub type Load<'a> = dyn Fn(&Spec, Option<&str>) -> Result<Loaded, JobError> + 'a;

/// The same on a store that stands for the output, with a model from `load`. The lock is a file in
/// the output's own folder all the same.
///
/// # Errors
/// As [`open`].
pub fn open_on(
    spec: Spec,
    mode: Mode,
    terminal: &Terminal,
    store: Arc<dyn Store>,
    load: &Load<'_>,
) -> Result<Opened, JobError> {
    let start_over = mode == Mode::StartOver;
    let manifest = Manifest::new(store.clone());
    let found = match spec.shard {
        None => None,
        Some(_) if start_over => {
            return Err(JobError::Usage(
                "--new does not go with --shard: one shard cannot take away what the others work \
                 on (start over without --shard)"
                    .into(),
            ));
        }
        Some(choice) => Some(settle(choice, &manifest, &|name| std::env::var(name).ok())?),
    };
    if let Some(found) = &found {
        terminal.say(&found.said);
    }
    let shard = found.as_ref().map(|found| found.shard);
    // A job's folder and numeric class never change, so they may be read before the lock is taken.
    let before = match mode {
        Mode::StartOver => None,
        Mode::Run | Mode::Resume => manifest.job()?,
    };
    let class = before.as_ref().and_then(numeric_class);
    let mut loaded = match (load(&spec, class), class) {
        // Nothing is left to be computed, so it need not be possible here.
        (Err(error), Some(class)) if mode == Mode::Resume && manifest.success()?.is_some() => {
            spec.inference.describe(&spec.s3, class).map_err(|_| error)?
        }
        (loaded, _) => loaded?,
    };
    loaded.remarks.iter().for_each(|remark| terminal.say(&one_line(remark)));
    loaded.notes.iter().for_each(|note| terminal.detail(note));
    // Before anything is written; what the source reads ahead of time comes to little more.
    shares(&spec, &loaded, 1)?;
    let mut retry = spec.retry.clone();
    let complete = mode == Mode::Resume && manifest.plan()?.is_some();
    let planned = before.as_ref().filter(|_| complete);
    let source = match (planned, &mut retry) {
        (Some(job), _) => planned_source(&spec, job, manifest.success()?.is_some())?,
        (None, Some(retry)) => retry.open_source(&spec)?,
        (None, None) => open_source(&spec, before.as_ref().map(|job| job.folder.clone().into()))?,
    };
    if planned.is_none()
        && let Some(remark) = source.remark()
    {
        terminal.warn(&remark);
    }
    let names = Arc::new(Names::new(&spec)?);
    let lock = match lock(&spec, shard) {
        Err(JobError::Lock(LockError::Held(holder))) => {
            let text = one_line(&format!("`{}` is in use by {holder}", spec.output));
            return match spec.if_locked {
                IfLocked::Skip => Ok(Opened::Skipped(format!("{text}; nothing to do here"))),
                _ => Err(JobError::Lock(LockError::Held(text))),
            };
        }
        other => other?,
    };
    if start_over && lock.is_none() {
        return Err(JobError::Usage("--new needs the lock; it does not go with --no-lock".into()));
    }
    let output = spec.output.to_string();
    let mut job = None;
    if !start_over {
        job = find_job(&manifest, &output)?;
    }
    // Without a lock, or beside other shards, what looks left behind may be somebody's.
    let alone = lock.as_ref().map_or(Ok(shard.is_none()), Hold::is_alone)?;
    if alone && lock.is_some() {
        store.clear_temporaries()?;
    }
    if alone && job.is_none() && !start_over && spec.output.local().is_some() {
        // Whose they were is forgotten with the job.
        store.delete(&[STRIKES.into()])?;
    }
    lock.iter().try_for_each(Hold::open_door)?;
    manifest.settle()?;
    if planned.is_some_and(|planned| job.as_ref().is_none_or(|job| job.id != planned.id)) {
        let what = format!("`{output}` was begun anew just now; run the same command again");
        return Err(JobError::Internal(what));
    }
    if let Some(job) = &job {
        loaded = join(job, &spec, load, loaded)?;
        if planned.is_none() {
            same_folder(job, &spec, &*source)?;
        }
    }
    let ancestors = match &job {
        Some(job) => job.since.clone(),
        None => {
            let resolved = resolve(&spec.since, &spec.output, &spec.s3)?;
            for name in &resolved.unfinished {
                terminal.warn(&unfinished(name));
            }
            resolved.ancestors
        }
    };
    let mut known = match planned {
        Some(_) => None,
        None => Known::open(&ancestors, &spec.s3)?.map(Arc::new),
    };
    let planned_before = job.is_some() && store.read(Path::new(&segment_name(0)))?.is_some();
    if !planned_before {
        // Look before a job is written: a folder that is still empty must not bind the next run.
        let terms = Terms {
            source: &*source,
            select: &*names,
            caps: spec.caps,
            limit: spec.limit,
            known: known.as_deref(),
            // A sample of something is something, and would list twice to find that out.
            sample: None,
        };
        if let Some(text) = nothing_to_plan(&terms)?
            && spec.since.is_empty()
        {
            return if spec.allow_empty {
                Ok(Opened::Nothing(text))
            } else {
                Err(JobError::Empty(format!("{text} (--allow-empty makes that exit 0)")))
            };
        }
    }
    if start_over {
        // What lies elsewhere goes with its job; of one that cannot be read any more, it stays.
        if spec.output.s3().is_some()
            && let Ok(Some(old)) = manifest.job()
        {
            forget(&spec.output, &old.id)?;
        }
        manifest.remove_job()?;
    }
    if job.is_none() {
        let ours = fingerprint(&spec, &loaded.facts);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let new = Job {
            schema: MANIFEST_SCHEMA.to_owned(),
            id: random_id()?,
            created_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            haul: env!("CARGO_PKG_VERSION").to_owned(),
            fingerprint: ours,
            // How long a run may take, and which share of the work is its, is a matter of that run:
            // `resume` does not take it over.
            settings: Settings { max_runtime: None, shard: None, ..spec.settings.clone() },
            folder: source.root(),
            since: ancestors,
            retry,
        };
        let there = manifest.put_job(&new)?;
        failpoint::hit("after_job").map_err(JobError::Internal)?;
        if there.id != new.id {
            loaded = join(&there, &spec, load, loaded)?;
            same_folder(&there, &spec, &*source)?;
            if there.since != new.since {
                known = Known::open(&there.since, &spec.s3)?.map(Arc::new);
            }
        }
        job = Some(there);
    }
    if let Some(array) = found.and_then(|found| found.array) {
        manifest.put_shards(&array)?;
    }
    let Some(job) = job else { unreachable!("it was read or made above") };
    let shares = shares(&spec, &loaded, source.ahead())?;
    Ok(Opened::Job(Box::new(Session {
        spec,
        loaded,
        manifest,
        job,
        source,
        names,
        known,
        shard,
        shares,
        lock,
    })))
}

/// What is said of an output that does not count for `--since DIR/`.
pub(super) fn unfinished(name: &str) -> String {
    format!("--since: `{name}` is not finished and is left out")
}

/// Takes over what a job that is there has settled; another shard, on another machine, may have made
/// it since the model was read.
fn join(job: &Job, spec: &Spec, load: &Load<'_>, mut loaded: Loaded) -> Result<Loaded, JobError> {
    if let Some(class) = numeric_class(job)
        && class != loaded.facts.numeric_class
    {
        // A GPU may not have room for both.
        drop(loaded);
        loaded = load(spec, Some(class))?;
    }
    let output = spec.output.to_string();
    check(&job.fingerprint, &fingerprint(spec, &loaded.facts), &output)?;
    Ok(loaded)
}

/// The job in an output; `None` where there is none and the output counts as empty.
fn find_job(manifest: &Manifest, output: &str) -> Result<Option<Job>, JobError> {
    if let Some(job) = manifest.job()? {
        return Ok(Some(job));
    }
    let Some(name) = manifest.first_foreign()? else { return Ok(None) };
    // It may be what another run has just made: whatever that writes, it writes the job first.
    match manifest.job()? {
        None => Err(JobError::Usage(format!(
            "`{output}` is not empty and holds no job of haul: there is `{}` (use another --output)",
            one_line(&name)
        ))),
        job => Ok(job),
    }
}

/// Says so if the input has no picture.
fn nothing_to_plan(terms: &Terms<'_>) -> Result<Option<String>, JobError> {
    let mut skipped: BTreeMap<Skip, u64> = BTreeMap::new();
    for item in terms.list(None, 0)? {
        match item? {
            Listed::Object(_) => return Ok(None),
            Listed::Skipped(skip) => *skipped.entry(skip).or_default() += 1,
        }
    }
    let mut text = format!("no picture found in `{}`", one_line(&terms.source.describe()));
    for (skip, count) in skipped {
        text.push_str(&format!("; {count} {}", skip.explain()));
    }
    Ok(Some(text))
}

fn random_id() -> Result<String, JobError> {
    use std::io::Read as _;
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| JobError::Internal(format!("cannot draw a random id: {error}")))?;
    Ok(crate::store::hex(&bytes))
}
