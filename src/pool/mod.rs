//! The worker pool: every front end's pictures go through here.
//!
//! One queue in submission order, one byte budget, one thread for each worker. A worker decodes,
//! letterboxes, runs the network and selects boxes; it knows neither files nor jobs, and answers
//! only through the reply that came with the work. If the process dies of a picture, what remains
//! is that picture's [`CrashNote`].

mod budget;
mod crash;
mod worker;

pub use budget::{Budget, Closed, Ticket};
pub use crash::CrashNote;
pub use worker::{
    Analysis, Annotate, Failure, Found, Idle, Outcome, Params, Pool, Spent, Work, kept_bytes,
};
