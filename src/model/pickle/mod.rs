//! A machine that reads pickles (protocols 2 to 5) into plain data and runs nothing.
//!
//! Values live in one arena and refer to each other by index, so that a pickle's cycles are
//! harmless here and dropping is not recursive; whoever walks the result must expect them.
//! Memory is bounded by the number of instructions, each of which makes at most one node.

mod build;
mod data;
mod globals;
mod machine;

pub(super) use data::{Data, Node, TensorRef, Value};
pub(super) use machine::parse;
