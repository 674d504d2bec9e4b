//! The endpoint: one model behind all doors, loaded when it is wanted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::{Semaphore, watch};

use super::desk::{Counter, Desk, Priority, Room, is_large};
use super::http::blocking;
use super::invocation::{Form, Options};
use super::metrics::Metrics;
use super::phases::{self, Phase};
use super::problem::Problem;
use crate::engine::Device;
use crate::job::{BoxUnit, Inference, JobError, Loaded, ModelFacts, size_fault, write_detections};
use crate::picture::Encoding;
use crate::pool::{Annotate, Budget, Failure, Idle, Params, Pool, Spent, places};
use crate::store::{Key, RootError, Roots, S3Options};

/// After a model could not be loaded, the next request tries again this much later.
const AGAIN: Duration = Duration::from_secs(5);

/// The header of a file of so many bytes is looked for at once.
const AT_ONCE: usize = 256 << 10;

/// How long a pool's workers are waited for when its model is unloaded.
const PARTING: Duration = Duration::from_secs(5);

/// Objects that are read at once for requests that wait. A store that does not answer keeps their
/// threads for longer than their requests last, and others want threads, too.
pub(super) const READS: usize = 32;

/// What an endpoint is, as it was asked for.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Its name in paths.
    pub name: String,
    /// The model, and what is asked of it.
    pub inference: Inference,
    /// How S3 is reached.
    pub s3: S3Options,
    /// Requests that may be in at once, whoever sent them.
    pub most_requests: usize,
    /// Bytes that their bodies may have together.
    pub most_bytes: u64,
}

/// One model behind all doors.
pub struct Endpoint {
    config: EndpointConfig,
    desk: Arc<Desk>,
    metrics: Metrics,
    roots: Roots,
    reads: Arc<Semaphore>,
    model: watch::Sender<Model>,
    /// A worker has failed since the model last answered.
    suspect: AtomicBool,
    /// Where the model was when it was loaded last.
    device: Mutex<Option<Device>>,
    /// Its devices have failed, and it has not been loaded again since.
    lost: AtomicBool,
    /// When a request last came or went, in milliseconds since the start.
    used: AtomicU64,
    start: Instant,
}

#[derive(Clone)]
enum Model {
    Cold,
    Loading,
    Ready(Arc<Ready>),
    Broken(Arc<JobError>, Instant),
}

/// How the model is, for those who only look. It neither loads the model nor keeps it for long.
#[derive(Clone)]
pub enum Standing {
    /// Not loaded: the next request loads it.
    Cold,
    /// Being loaded; requests wait for it.
    Loading,
    /// Loaded.
    Ready(Arc<Ready>),
    /// It could not be loaded; a later request tries again.
    Broken(Arc<JobError>),
}

/// A model that is loaded. Whoever holds this keeps it loaded.
pub struct Ready {
    /// Labels, size, numeric class.
    pub facts: ModelFacts,
    /// What the pool is asked where a request says nothing.
    pub params: Params,
    /// What sides of boxes are counted in where a request says nothing.
    pub unit: BoxUnit,
    /// Workers.
    pub workers: usize,
    /// Where the network runs.
    pub device: Device,
    /// What the memory budget is.
    pub budget: u64,
    /// What there is to say about the model and the workers.
    pub notes: Vec<String>,
    /// How long it took to have it ready.
    pub setup: Duration,
    pool: Option<Pool>,
    idle: Arc<Idle>,
    /// What of it is in the metrics already.
    counted: Mutex<Duration>,
}

impl Ready {
    /// Time that workers have waited for pictures since this was asked last.
    fn idled(&self) -> Duration {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.idle.queue();
        now.saturating_sub(std::mem::replace(&mut counted, now))
    }
}

/// What a picture came to.
#[derive(Debug)]
pub struct Answer {
    /// What the bytes are.
    pub form: Form,
    /// The line, with its line feed, or a picture.
    pub bytes: Vec<u8>,
    /// Where the worker's time went.
    pub spent: Spent,
}

impl Answer {
    /// Time in which a worker was busy with it.
    #[must_use]
    pub fn model_time(&self) -> Duration {
        let Spent { decode, letterbox, infer, boxes, draw } = self.spent;
        decode + letterbox + infer + boxes + draw
    }
}

impl Endpoint {
    /// An endpoint whose model is not loaded yet. `roots` is what its clients may name.
    #[must_use]
    pub fn new(config: EndpointConfig, roots: Roots) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            desk: Desk::new(config.most_requests, config.most_bytes),
            metrics: Metrics::new(&config.name),
            roots,
            reads: Arc::new(Semaphore::new(READS)),
            model: watch::Sender::new(Model::Cold),
            suspect: AtomicBool::new(false),
            device: Mutex::default(),
            lost: AtomicBool::new(false),
            used: AtomicU64::new(0),
            start: Instant::now(),
            config,
        })
    }

    /// Its name in paths.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What it was asked for.
    #[must_use]
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// Where requests are let in.
    #[must_use]
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// Its metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What its clients may name.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// When it was made.
    #[must_use]
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Metrics as Prometheus reads them, with what is counted now.
    ///
    /// # Errors
    /// What cannot be written.
    pub fn metrics_text(&self) -> Result<String, Problem> {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.concurrent.set(count(self.desk.inside()));
        self.metrics.queue_depth.set(count(self.desk.waiting()));
        self.metrics.workers_busy.set(count(self.desk.busy()));
        let counted = self.metrics.pictures.get();
        self.metrics.pictures.inc_by(self.desk.given().saturating_sub(counted));
        let ready = self.loaded();
        self.metrics.model_loaded.set(i64::from(ready.is_some()));
        ready.iter().for_each(|ready| self.metrics.idle.inc_by(ready.idled().as_secs_f64()));
        self.metrics.workers.set(ready.as_ref().map_or(0, |ready| count(ready.workers)));
        self.metrics.text().map_err(|error| Problem::internal(error.to_string()))
    }

    /// The model, if it is loaded now.
    #[must_use]
    pub fn loaded(&self) -> Option<Arc<Ready>> {
        match &*self.model.borrow() {
            Model::Ready(ready) => Some(ready.clone()),
            _ => None,
        }
    }

    /// How the model is now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &*self.model.borrow() {
            Model::Cold => Standing::Cold,
            Model::Loading => Standing::Loading,
            Model::Ready(ready) => Standing::Ready(ready.clone()),
            Model::Broken(error, _) => Standing::Broken(error.clone()),
        }
    }

    /// The model, loaded if it was not; whoever comes meanwhile waits too.
    ///
    /// # Errors
    /// [`Problem`] when it cannot be loaded.
    pub async fn ready(self: &Arc<Endpoint>) -> Result<Arc<Ready>, Problem> {
        let mut changes = self.model.subscribe();
        let begun = self.model.send_if_modified(|model| {
            let begin = match model {
                Model::Cold => true,
                Model::Broken(_, when) => when.elapsed() > AGAIN,
                Model::Loading | Model::Ready(_) => false,
            };
            if begin {
                *model = Model::Loading;
            }
            begin
        });
        if begun {
            let endpoint = self.clone();
            let load = move || endpoint.load();
            let started = std::thread::Builder::new().name("loader".into()).spawn(load);
            if let Err(error) = started {
                let error = JobError::Internal(format!("cannot start the loader thread: {error}"));
                self.model.send_replace(Model::Broken(error.into(), Instant::now()));
            }
        }
        let settled = changes
            .wait_for(|model| matches!(model, Model::Ready(_) | Model::Broken(..)))
            .await
            .map(|model| model.clone());
        match settled {
            Ok(Model::Ready(ready)) => Ok(ready),
            Ok(Model::Broken(error, _)) => Err(self.problem(&error)),
            _ => Err(Problem::internal("the endpoint is going away")),
        }
    }

    /// What a model that cannot be had is to a request. Devices that have failed are tried again, and
    /// may have memory again.
    fn problem(&self, error: &JobError) -> Problem {
        let text = format!("the model: {error}");
        match matches!(error, JobError::Exhausted(_)) || self.lost.load(Ordering::Relaxed) {
            true => Problem::passing(text),
            false => Problem::internal(text),
        }
    }

    /// Lets a model go of whose devices none is left, so that a later request loads it anew. Says
    /// whether that is so.
    fn let_go(&self, ready: &Arc<Ready>, error: JobError) -> bool {
        if ready.pool.as_ref().is_none_or(Pool::is_alive) {
            return false;
        }
        self.model.send_if_modified(|model| match model {
            Model::Ready(now) if Arc::ptr_eq(now, ready) => {
                tracing::error!(%error, "no device is left; the model will be loaded anew");
                self.lost.store(true, Ordering::Relaxed);
                self.desk.close();
                *model = Model::Broken(Arc::new(error), Instant::now());
                true
            }
            // Another request has seen to it.
            _ => false,
        });
        true
    }

    /// Loads the model; on a thread of its own.
    fn load(self: Arc<Endpoint>) {
        let begun = Instant::now();
        let settled = match self.prepare(begun) {
            Ok(ready) => {
                // Here, for whoever waits for it may be answered before anybody else comes on.
                phases::ended(Phase::Model);
                self.metrics.model_setup.observe(ready.setup.as_secs_f64());
                self.lost.store(false, Ordering::Relaxed);
                self.suspect.store(false, Ordering::Relaxed);
                Model::Ready(Arc::new(ready))
            }
            Err(error) => {
                tracing::error!(%error, "the model cannot be loaded");
                Model::Broken(error.into(), Instant::now())
            }
        };
        self.used();
        self.model.send_replace(settled);
    }

    fn prepare(&self, begun: Instant) -> Result<Ready, JobError> {
        let EndpointConfig { inference, s3, .. } = &self.config;
        let mut before = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match &*before {
            Some(device) => inference.load_again(s3, device)?,
            None => inference.load(s3, None)?,
        };
        *before = Some(loaded.device.clone());
        drop(before);
        let shares = inference.shares(&loaded, 0)?;
        let Loaded { engine, device, facts, remarks, notes } = loaded;
        let notes = remarks.into_iter().chain(notes).chain(shares.note).collect();
        let workers = shares.workers;
        let places = places(&*engine, workers);
        let pool = Pool::start(&engine, workers, places, facts.imgsz as usize)?;
        let budget = Budget::new(shares.free, shares.reserve);
        self.desk.open(Some(Counter { queue: pool.queue(), places, budget, workers }));
        Ok(Ready {
            params: inference.params(&facts),
            unit: inference.boxes,
            facts,
            workers,
            device,
            budget: shares.budget,
            notes,
            setup: begun.elapsed(),
            idle: pool.idle(),
            counted: Mutex::default(),
            pool: Some(pool),
        })
    }

    /// Unloads the model if nobody uses it and nobody has for so long.
    pub fn unload_after(&self, patience: Duration) -> bool {
        if self.idle_for() < patience {
            return false;
        }
        let mut parting = None;
        self.model.send_if_modified(|model| match model {
            // Nobody gets it while the watch is locked, and nobody has it.
            Model::Ready(ready) if Arc::strong_count(ready) == 1 => {
                self.desk.open(None);
                let Model::Ready(ready) = std::mem::replace(model, Model::Cold) else {
                    unreachable!("it was just looked at")
                };
                parting = Arc::into_inner(ready);
                true
            }
            _ => false,
        });
        let Some(mut ready) = parting else { return false };
        self.metrics.idle.inc_by(ready.idled().as_secs_f64());
        if let Some(pool) = ready.pool.take() {
            pool.stop(PARTING);
        }
        true
    }

    /// For how long no request has been in.
    #[must_use]
    pub fn idle_for(&self) -> Duration {
        if self.desk.inside() > 0 {
            return Duration::ZERO;
        }
        let used = Duration::from_millis(self.used.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(used)
    }

    /// Somebody uses it.
    pub fn used(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used.store(now, Ordering::Relaxed);
    }

    /// Reads an object that a client names, of at most so many bytes, with room for them. The room
    /// is taken for as long as the object is read, also where nobody waits for it any more.
    ///
    /// # Errors
    /// [`Problem`] when a thread fails; inside, why the object cannot be read.
    pub async fn read(
        self: &Arc<Endpoint>,
        location: String,
        most: u64,
    ) -> Result<Result<(Vec<u8>, Room), RootError>, Problem> {
        let turn = self.reads.clone().acquire_owned().await;
        let room = self.desk.room(most).await;
        let endpoint = self.clone();
        blocking(move || {
            let read = endpoint.roots.read(&location, most);
            drop(turn);
            read.map(|bytes| (bytes, room))
        })
        .await
    }

    /// Whether a picture's file may have so many bytes.
    ///
    /// # Errors
    /// [`Problem`] of the picture of this name.
    pub fn fits(&self, key: &Key, bytes: u64) -> Result<(), Problem> {
        let inference = &self.config.inference;
        let most = inference.max_file.min(inference.limits.max_memory);
        match size_fault(bytes, most) {
            None => Ok(()),
            Some((code, message)) => Err(Problem::picture(key, code, "fetch", &message)),
        }
    }

    /// What is in a picture.
    ///
    /// # Errors
    /// [`Problem`] of the picture, of what was asked of it, or of the worker.
    pub async fn infer(
        self: &Arc<Endpoint>,
        bytes: Vec<u8>,
        options: &Options,
        form: Form,
        priority: Priority,
    ) -> Result<Answer, Problem> {
        let ready = self.ready().await?;
        self.used();
        let key = options.key();
        let (mut params, unit) = options.settle(&ready.params, ready.unit, &ready.facts)?;
        self.fits(&key, bytes.len() as u64)?;
        let drawn = |encoding| Annotate { labels: ready.facts.labels.clone().into(), encoding };
        params.annotate = match form {
            Form::Json => None,
            Form::Jpeg => Some(drawn(Encoding::Jpeg)),
            Form::Png => Some(drawn(Encoding::Png)),
        };
        let params = Arc::new(params);
        let (bytes, large) = measured(bytes, params.clone()).await?;
        let pending = self.desk.submit(bytes, large, params, priority);
        let outcome = pending.answer().await;
        self.used();
        let Some(outcome) = outcome else {
            return Err(match self.broken() {
                Some(error) => self.problem(&error),
                None => Problem::internal("the workers are gone"),
            });
        };
        match outcome.result {
            Ok(analysis) => {
                self.suspect.store(false, Ordering::Relaxed);
                let bytes = match form {
                    Form::Json => {
                        let (mut line, labels) = (Vec::new(), &ready.facts.labels);
                        write_detections(&mut line, &key, None, &analysis, labels, unit);
                        line
                    }
                    Form::Jpeg | Form::Png => analysis.annotated.ok_or_else(|| {
                        let message = "the picture has a side over 65535 pixels and is not drawn";
                        Problem::new(StatusCode::BAD_REQUEST, "unsupported", message)
                    })?,
                };
                Ok(Answer { form, bytes, spent: outcome.spent })
            }
            Err(Failure::Picture(error)) => {
                let code = error.code.as_str();
                Err(Problem::picture(&key, code, "decode", &error.message))
            }
            Err(Failure::Worker(text)) => {
                self.suspect.store(true, Ordering::Relaxed);
                tracing::error!(error = %text, "a worker failed");
                match self.let_go(&ready, JobError::Internal(text.clone())) {
                    true => Err(Problem::passing(text)),
                    false => Err(Problem::internal(text)),
                }
            }
            // The others have room for it another time.
            Err(Failure::Lost(text)) => {
                self.suspect.store(true, Ordering::Relaxed);
                tracing::error!(error = %text, "a device failed, others go on");
                Err(Problem::passing(text))
            }
            Err(Failure::Exhausted(text)) => {
                self.suspect.store(true, Ordering::Relaxed);
                tracing::error!(error = %text, "a device is out of memory");
                self.let_go(&ready, JobError::Exhausted(text.clone()));
                Err(Problem::passing(text))
            }
            Err(Failure::Cancelled) => Err(Problem::internal("nobody waited for it any more")),
        }
    }

    /// Whether it can answer: at once if nothing has failed, else by running the model once. A
    /// model that was unloaded counts as well; one that is being loaded does not.
    ///
    /// # Errors
    /// [`Problem`] that says why not.
    pub async fn health(self: &Arc<Endpoint>) -> Result<(), Problem> {
        let unavailable =
            |text: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text);
        let model = self.model.borrow().clone();
        match model {
            Model::Loading => return Err(unavailable("the model is being loaded".to_owned())),
            Model::Broken(error, when) => {
                // Whoever sends requests may be waiting for this to be well.
                if when.elapsed() > AGAIN {
                    let endpoint = self.clone();
                    tokio::spawn(async move { drop(endpoint.ready().await) });
                }
                return Err(unavailable(format!("the model: {error}")));
            }
            Model::Cold => return Ok(()),
            Model::Ready(_) => {}
        }
        if !self.suspect.load(Ordering::Relaxed) {
            return Ok(());
        }
        let options = Options::default();
        let trial = self.infer(gray(), &options, Form::Json, Priority::Health);
        trial.await.map(drop).map_err(|problem| unavailable(problem.message))
    }

    /// Why the model could not be loaded, if it could not.
    #[must_use]
    pub fn broken(&self) -> Option<Arc<JobError>> {
        match &*self.model.borrow() {
            Model::Broken(error, _) => Some(error.clone()),
            _ => None,
        }
    }

    /// Lets the pool go, whoever still waits for it.
    pub fn close(&self) {
        self.desk.open(None);
        self.model.send_replace(Model::Cold);
    }
}

/// Whether a picture is a large one. A hostile file may have a long way to its header: no way for
/// the thread that serves everybody.
async fn measured(bytes: Vec<u8>, params: Arc<Params>) -> Result<(Vec<u8>, bool), Problem> {
    if bytes.len() <= AT_ONCE {
        let large = is_large(&bytes, &params);
        return Ok((bytes, large));
    }
    let measuring = tokio::task::spawn_blocking(move || {
        let large = is_large(&bytes, &params);
        (bytes, large)
    });
    measuring.await.map_err(|error| Problem::internal(format!("a thread failed: {error}")))
}

/// A small picture without anything in it.
fn gray() -> Vec<u8> {
    const SIDE: u32 = 32;
    let size = 54 + SIDE * SIDE * 3;
    let mut file = b"BM".to_vec();
    for number in [size, 0, 54, 40, SIDE, SIDE] {
        file.extend(number.to_le_bytes());
    }
    for number in [1u16, 24] {
        file.extend(number.to_le_bytes());
    }
    file.resize(54, 0);
    file.resize(size as usize, 114);
    file
}
