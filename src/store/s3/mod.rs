//! Buckets: an input ([`S3Source`]) or an output ([`S3Store`]) under a prefix, and its [`Lease`].
//!
//! All requests go through `calls`, which alone retries; `fault` says what an answer means, `gate`
//! how many requests may be under way. The futures run on one thread of their own (`client`) that
//! does nothing else; whoever asks waits outside of it.

mod calls;
mod client;
mod download;
mod fault;
mod gate;
mod lease;
mod listing;
mod options;
mod source;
mod store;
mod traffic;

pub use client::S3;
pub(crate) use client::service;
pub use lease::Lease;
pub use options::{Checksums, S3Options};
pub use source::{S3Source, S3SourceOptions};
pub use store::S3Store;
pub use traffic::Traffic;
