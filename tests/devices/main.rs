//! Engines with devices of their own: the pool's side of them, on devices that are threads.
//!
//! What devices compute is held to what workers compute of the same pictures with the same
//! arithmetic, while everything else varies by chance: how many there are of whom, how large batches
//! are, how long anything takes, and which device fails how. Chance is drawn from a seed that a
//! failing test names; threads add their own.

#[path = "../common/mod.rs"]
mod common;
mod double;
mod faults;
mod jobs;
mod pictures;
mod same;
mod trial;
