//! What a run tells other programs when it ends: whether its gates hold.
//!
//! Pure functions from totals to values and text; none of them knows the runner or a front end.

mod gate;

pub use gate::{Gate, GateResult, Totals, judge};
