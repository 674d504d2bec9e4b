//! YOLOv8-detect as data: the wiring, the meaning of the head's numbers, and NMS.
//!
//! Knows no file format and executes nothing. `model` fills a [`Network`], `engine` runs its
//! [`Graph`], and whatever the engine is, [`Head`] turns its raw outputs into [`Candidate`]s and
//! [`nms()`] chooses among them, so that all executors share every rule that is not a convolution.

mod decode;
mod graph;
mod math;
mod network;
mod nms;
mod wiring;

pub use decode::{Candidate, Cell, Head, Level, logit_floor};
pub use graph::{Act, Conv, Graph, Node, Op, Output, Value};
pub use math::{exp, sigmoid};
pub use network::{Network, NetworkError, Tensor, Weights};
pub use nms::{Nms, NmsOptions, nms};
pub use wiring::{WiringError, yolov8};
