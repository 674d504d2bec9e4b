//! A job: what is asked for, what is planned, what is committed, and the loop that gets it done.
//!
//! Read in this order: `spec` (validated once), `plan` (pure), `planner` (the chain of
//! segments), `manifest` (files and their order), `session` (how a job is opened), `runner` (the
//! dispatcher). This module knows the pool, stores and models; no front end.

mod chain;
mod compress;
mod estimate;
mod events;
mod exit;
pub mod export;
mod feeder;
mod fingerprint;
mod gate;
mod inference;
mod line;
mod lister;
mod manifest;
mod memory;
mod notices;
mod pack;
mod plan;
mod planner;
mod report;
mod retry;
mod runner;
mod sample;
mod select;
mod session;
mod settings;
mod shard;
mod since;
mod spec;
mod strikes;
mod survey;
mod tally;
mod terminal;
mod transform;
mod verify;

pub use chain::Chain;
pub use compress::Compress;
pub use estimate::{Estimate, dry_run};
pub use exit::{EXIT_HELP, Exit, JobError};
pub use feeder::size_fault;
pub use fingerprint::{Fingerprint, ModelFacts};
pub use gate::{Gate, GateResult, Totals, judge};
pub(crate) use inference::{Asked, about_batch, refused};
pub use inference::{Inference, Loaded, arithmetic, resolve_classes};
pub use line::{
    BoxUnit, Detection, LINE_SCHEMA, LINE_SCHEMA_JSON, Line, LineError, LineSchema, Meta,
    write_detections, write_error,
};
pub use manifest::{Ancestor, Failure, Job, MANIFEST_SCHEMA, Manifest, Record, Success, part_name};
pub use memory::{Shares, mib, peak};
pub use notices::{Ended, MOST_NAMED, Notices, failures};
pub use pack::{CheckedPack, MadePack, check_packs, pack_model};
pub use plan::{Batch, Caps, Cutter, PLAN_SCHEMA, PlanSummary, Segment, segment_name};
pub use planner::{Drift, Planner, Terms, drift};
pub use report::{Report, Share, Stages};
pub use retry::{CHOOSING, Retrial, Retry, retry};
pub use runner::{Outcome, run};
pub use sample::Sample;
pub use select::{Names, is_picture_name};
pub use session::{
    Load, Mode, Opened, Session, load_model, open, open_on, open_output, open_source,
};
pub use settings::{S3Flags, Settings};
pub use shard::{Shard, ShardArray, ShardChoice};
pub use since::Known;
pub use spec::{IfLocked, Input, MaxFailures, Spec, parse_duration, parse_size};
pub use survey::{State, Status, Survey};
pub use tally::Tally;
pub use terminal::{Progress, Standing, Terminal, Verbosity, tell};
pub use verify::{Verdict, verify};
