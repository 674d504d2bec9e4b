//! What was asked of S3, and what had to be asked again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Counts of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Requests, those that were repeated among them.
    pub requests: u64,
    /// Bytes of objects read.
    pub bytes_read: u64,
    /// Bytes of objects written.
    pub bytes_written: u64,
    /// Requests that were made again, by what was wrong with the one before.
    pub retried: BTreeMap<String, u64>,
    /// Writes whose answer was lost and that were found to have been done.
    pub answers_lost: u64,
    /// The fewest requests that throttling left at once; 0 if there was none.
    pub throttled_to: u64,
}

impl Traffic {
    /// All requests that were made again.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.retried.values().sum()
    }
}

/// Counts that several threads add to.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<Traffic>);

impl Counts {
    pub(super) fn add(&self, change: impl FnOnce(&mut Traffic)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn get(&self) -> Traffic {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
