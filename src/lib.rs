//! `haul` runs YOLOv8 over every picture under a folder or an S3 prefix, once, and can prove it did.
//!
//! Data flows one way: bytes in a store → plan → fetch → decode → letterbox → network → boxes →
//! one JSON line → part → commit record → done marker. The modules are the rooms of that house;
//! `docs/DESIGN.md` has the promises they keep.
//!
//! | module | what it holds | whom it may know |
//! | --- | --- | --- |
//! | [`cli`] | one file per command; clap structs are syntax only | everything below |
//! | [`mod@bench`] | how fast this machine is with a model | everything below |
//! | [`job`] | specification, plan, manifest, runner, report | `pool`, `store`, `model`; plain values of those below |
//! | [`serve`] | HTTP and Lambda in front of the pool; translation only | `job`, `pool`, `store`; plain values of those below |
//! | [`pool`] | worker threads behind one byte-budgeted queue | `picture`, `engine`, `yolo` |
//! | [`picture`] | bytes to upright RGB, letterbox, drawing | nobody |
//! | [`engine`] | executors of the network | `yolo`, `kernels` |
//! | [`failpoint`] | places where tests make it fail; nothing in an ordinary build | nobody |
//! | [`kernels`] | convolution and friends per instruction set | nobody |
//! | [`model`] | checkpoint readers: `.pt`, `.safetensors`; packs | `yolo`, `store` |
//! | [`yolo`] | the YOLOv8 graph as data, box decoding, NMS | nobody |
//! | [`store`] | where bytes live, and the two ways to write them | nobody |

pub mod bench;
pub mod cli;
pub mod engine;
pub mod failpoint;
pub mod job;
pub mod kernels;
pub mod model;
pub mod picture;
pub mod pool;
pub mod serve;
pub mod store;
pub mod yolo;
