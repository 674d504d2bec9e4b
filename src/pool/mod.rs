//! The worker pool: every front end's pictures go through here.
//!
//! One queue in submission order, one byte budget, one thread for each worker. A worker decodes,
//! letterboxes, runs the network and selects boxes; it knows neither files nor jobs, and answers
//! only through the reply that came with the work. If the process dies of a picture, what remains
//! is that picture's [`CrashNote`].
//!
//! Where the engine has devices of its own, workers do all but the network, and there is one more
//! thread for each device: see [`lanes`].

mod answer;
mod budget;
mod crash;
mod lanes;
mod threads;
mod work;
mod worker;

pub use budget::{Budget, Closed, Ticket};
pub use crash::CrashNote;
pub use lanes::{Devices, DevicesSoFar};
pub use threads::{Pool, kept_bytes, places, slot_bytes};
pub use work::{
    Analysis, Annotate, Failure, Found, Idle, Outcome, Params, Spent, StartError, Work,
};
