//! Executors of the network.
//!
//! An [`Engine`] holds the weights and is shared; a [`Worker`] holds the working memory and
//! belongs to one thread. An engine with devices of its own takes pictures in batches instead, one
//! [`Lane`] for each device. Which executor it is, only [`choose()`] and [`open`] know: another one is
//! added there.
//! Everything after the last convolution (scores, boxes, NMS) is `yolo`'s and the same for all; GPUs
//! decode boxes themselves, by its rule, and tests hold what comes out to the reference.
//!
//! Workers of one [`Team`] can share a picture: who has nothing to do assists who has. No worker
//! starts threads, but for [`fused::Fused::team_worker`], which is asked for them by name. candle's kernels split their work over the rayon pool
//! they are called in and ask RAYON_NUM_THREADS and CANDLE_NUM_THREADS for a count; `main` sets
//! both to 1 and every worker sits in a pool of one thread, so all of it stays inline. Elsewhere
//! (a test, a bench) the results are the same, only the threads are more.

mod api;
mod batch;
pub mod candle;
mod choose;
mod device;
mod fold;
pub mod fused;
mod head;

pub use crate::kernels::{Hook, Team};
pub use api::{Engine, EngineError, Input, NUMERICS_VERSION, Worker};
pub use batch::{Answered, Batch, Batching, HostMemory, Lane, Slot};
pub use choose::{
    Arithmetic, Chosen, Precision, TIER_VARIABLE, choose, decide, forced, load, load_packed, open,
};
pub use device::{Device, Gpu, gpus};
pub use fused::{PackedFile, Packing, form, packed};
pub use head::{RawHead, RawLevel};
