//! Reading the plan's chain of segments, each checked against the one before.

use std::path::Path;

use super::exit::JobError;
use super::plan::{PlanSummary, Segment, segment_name};
use crate::store::{Key, Store, sha256};

/// Reads the segments of a chain in order, checking each against the one before.
pub struct Chain<'a> {
    store: &'a dyn Store,
    summary: PlanSummary,
    after: Option<Key>,
    ended: bool,
}

impl<'a> Chain<'a> {
    /// Starts before the first segment.
    #[must_use]
    pub fn new(store: &'a dyn Store) -> Chain<'a> {
        Chain { store, summary: PlanSummary::default(), after: None, ended: false }
    }

    /// What has been read so far.
    #[must_use]
    pub fn summary(&self) -> &PlanSummary {
        &self.summary
    }

    /// The store that holds the chain.
    pub(super) fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// The last key planned so far.
    pub(super) fn after(&self) -> Option<&Key> {
        self.after.as_ref()
    }

    /// Whether the last segment has been read.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The next segment, or `None` where it is not published yet or the chain has ended.
    ///
    /// # Errors
    /// When a segment is not what haul published.
    pub fn next_segment(&mut self) -> Result<Option<Segment>, JobError> {
        if self.ended {
            return Ok(None);
        }
        let name = segment_name(self.summary.segments);
        let Some(text) = self.store.read(Path::new(&name))? else { return Ok(None) };
        let segment = self.check(&text).map_err(|what| {
            JobError::Damaged(format!(
                "`{}/{name}` is not what haul published: {what} (was it edited, or is the disk failing?)",
                self.store.describe()
            ))
        })?;
        self.accept(&segment, &text);
        Ok(Some(segment))
    }

    fn check(&self, text: &[u8]) -> Result<Segment, String> {
        let segment = Segment::decode(text)?;
        let previous = (self.summary.segments > 0).then_some(self.summary.sha256.as_str());
        if segment.number != self.summary.segments || segment.previous.as_deref() != previous {
            return Err("it does not follow the segment before it".to_owned());
        }
        let ids = segment.batches.iter().map(|batch| batch.id);
        if !ids.eq((self.summary.batches..).take(segment.batches.len())) {
            return Err("its mini-batches are not numbered on".to_owned());
        }
        if let (Some(before), Some(first)) = (&self.after, segment.first_key())
            && first <= before
        {
            return Err("its keys do not come after those of the segment before it".to_owned());
        }
        Ok(segment)
    }

    /// Takes a segment that has just been published as read.
    pub(super) fn accept(&mut self, segment: &Segment, text: &[u8]) {
        self.summary.add(segment, &sha256(text));
        self.after = segment.last_key().cloned().or(self.after.take());
        self.ended = segment.last;
    }
}
