//! `haul plan --dry-run`: what a job would be and how long it would take, without writing anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::exit::JobError;
use super::feeder::picture_fault;
use super::fingerprint::numeric_class;
use super::manifest::Manifest;
use super::plan::{Cutter, PlanSummary, Segment};
use super::planner::Terms;
use super::runner::pool_params;
use super::select::Names;
use super::session::{load_model, open_output, open_source, shares, unfinished};
use super::since::{Known, resolve};
use super::spec::Spec;
use super::strikes::quarantined;
use super::terminal::Terminal;
use crate::pool::{Budget, Failure, Pool, Work};
use crate::store::{Key, Listed, Object, Source, one_line, sha256};

/// Pictures kept for the probe, spread over the whole listing.
const SAMPLE: usize = 32;

/// The probe stops at this time, whatever it has seen.
const PROBE: Duration = Duration::from_secs(10);

/// What a job would be.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// The plan, as it would be frozen now.
    pub plan: PlanSummary,
    /// Names that were listed and not planned, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Pictures that were tried.
    pub probed: u64,
    /// What this machine did with them.
    pub images_per_second: Option<f64>,
    /// The whole at that rate.
    pub seconds: Option<f64>,
}

/// Lists, cuts and tries a few pictures.
///
/// # Errors
/// When model or input cannot be read.
pub fn dry_run(spec: &Spec, terminal: &Terminal) -> Result<Estimate, JobError> {
    // A job that is there already goes on in its own arithmetic.
    let job = Manifest::new(open_output(&spec.output, &spec.s3)).job()?;
    let loaded = load_model(spec, job.as_ref().and_then(numeric_class))?;
    loaded.remarks.iter().for_each(|remark| terminal.say(&one_line(remark)));
    let source = open_source(spec, None)?;
    let names = Names::new(spec)?;
    let resolved = resolve(&spec.since, &spec.output, &spec.s3)?;
    for name in &resolved.unfinished {
        terminal.warn(&unfinished(name));
    }
    let known = Known::open(&resolved.ancestors, &spec.s3)?;
    let terms = Terms {
        source: &*source,
        select: &names,
        caps: spec.caps,
        limit: spec.limit,
        known: known.as_ref(),
        sample: spec.sample,
    };
    let mut plan = PlanSummary::default();
    let mut sample = Sample::default();
    let mut cutter = Cutter::new(spec.caps, 0, 0);
    let mut previous: Option<String> = None;
    let mut add = |segment: Segment| {
        let digest = sha256(&segment.encode());
        plan.add(&segment, &digest);
        digest
    };
    for item in terms.list(None, 0)? {
        match item? {
            Listed::Skipped(skip) => cutter.skip(skip),
            Listed::Object(object) => {
                sample.offer(&object);
                if let Some(segment) = cutter.push(object, previous.as_deref()) {
                    previous = Some(add(segment));
                }
            }
        }
    }
    add(cutter.finish(previous.as_deref()));
    // What a run would not read is not tried either. A picture that haul dies of here gets no
    // strike, for nothing is written; one that runs have died of is left out.
    let out = job.as_ref().map(|job| quarantined(&spec.output, &job.id)).transpose()?;
    let out: BTreeSet<Key> = out.unwrap_or_default();
    sample.kept.retain(|object| {
        picture_fault(object, spec.inference.max_file, spec.inference.limits.max_memory).is_none()
            && !out.contains(&object.key)
    });
    let shares = shares(spec, &loaded, source.ahead())?;
    let side = loaded.facts.imgsz as usize;
    let pool = Pool::start(&loaded.engine, shares.workers, 2, side)?;
    let params = Arc::new(pool_params(spec, &loaded.facts));
    let budget = Budget::new(shares.free, shares.reserve);
    let slots = loaded.engine.batching().map_or(0, |batching| batching.slots());
    let probed = probe(&pool, slots, &params, &budget, &*source, &sample.kept);
    pool.stop(Duration::from_secs(1));
    let (probed, rate) = probed?;
    Ok(Estimate {
        skipped: plan.skipped.clone(),
        probed,
        images_per_second: rate,
        seconds: rate.map(|rate| plan.pictures as f64 / rate),
        plan,
    })
}

/// Every 2^k-th object, thinned out as the listing grows.
#[derive(Default)]
struct Sample {
    kept: Vec<Object>,
    seen: usize,
    step: usize,
}

impl Sample {
    fn offer(&mut self, object: &Object) {
        self.step = self.step.max(1);
        if self.seen.is_multiple_of(self.step) {
            self.kept.push(object.clone());
            if self.kept.len() == SAMPLE {
                let mut index = 0;
                self.kept.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.step *= 2;
            }
        }
        self.seen += 1;
    }
}

/// Pictures a second, over what could be done in the time; the first of each worker warms it up.
///
/// Devices answer a whole batch at once, so between the answers of a few pictures there is no time to
/// be measured. They get the sample over and over, until all `slots` have been filled some times.
///
/// # Errors
/// When workers or devices fail: pictures that they do not compute are done in no time.
fn probe(
    pool: &Pool,
    slots: usize,
    params: &Arc<crate::pool::Params>,
    budget: &Arc<Budget>,
    source: &dyn Source,
    sample: &[Object],
) -> Result<(u64, Option<f64>), JobError> {
    let (sender, answers) = crossbeam_channel::unbounded();
    let queue = pool.queue();
    let start = Instant::now();
    let rounds = (4 * slots).div_ceil(sample.len().max(1)).max(1);
    let mut sent = 0;
    for object in std::iter::repeat_n(sample, rounds).flatten() {
        if start.elapsed() > PROBE {
            break;
        }
        let mut ticket = budget.open();
        if ticket.grow(object.size).is_err() {
            break;
        }
        let Ok(bytes) = source.read(object) else { continue };
        let sender = sender.clone();
        let work = Work {
            bytes,
            params: params.clone(),
            ticket,
            cancelled: Arc::new(AtomicBool::new(false)),
            note: None,
            reply: Box::new(move |outcome| {
                // The receiver outlives the probe.
                let _ = sender.send(match outcome.result {
                    Err(Failure::Worker(text) | Failure::Lost(text)) => {
                        Err(JobError::Internal(text))
                    }
                    Err(Failure::Exhausted(text)) => Err(JobError::Exhausted(text)),
                    Ok(_) | Err(Failure::Picture(_) | Failure::Cancelled) => Ok(Instant::now()),
                });
            }),
        };
        if queue.send(work).is_err() {
            break;
        }
        sent += 1;
    }
    drop((sender, queue));
    let times: Vec<Instant> = answers.iter().collect::<Result<_, JobError>>()?;
    let probed = sent.min(sample.len() as u64);
    let rate = match slots {
        0 => rate(&times, pool.workers()),
        // Not even twice what may be on its way: the warm-up is in it, and nothing is left out.
        _ if times.len() < 2 * slots => times.last().and_then(|last| {
            let seconds = last.saturating_duration_since(start).as_secs_f64();
            (seconds > 0.0).then(|| times.len() as f64 / seconds)
        }),
        _ => rate(&times, slots),
    };
    Ok((probed, rate))
}

/// Answers a second after the first `warm` of them.
fn rate(times: &[Instant], warm: usize) -> Option<f64> {
    let warm = warm.min(times.len().saturating_sub(1));
    match (times.get(warm.saturating_sub(1)), times.last()) {
        (Some(&first), Some(&last)) if last > first && warm > 0 => {
            Some((times.len() - warm) as f64 / (last - first).as_secs_f64())
        }
        _ => None,
    }
}
