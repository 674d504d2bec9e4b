//! Growing the plan's chain of segments.
//!
//! Several listers may grow one chain: each reads the next segment before it lists for it, and a
//! loser of the race for a name adopts the winner's segment and lists on after its last key.

use std::path::Path;

use super::chain::Chain;
use super::exit::JobError;
use super::plan::{Caps, Cutter, PlanSummary, Segment, segment_name};
use super::sample::Sample;
use super::since::Known;
use crate::failpoint;
use crate::store::{Key, Listed, Listing, Object, PutNew, Select, Source, Store};

/// What a lister needs to know of a job.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// The input.
    pub source: &'a dyn Source,
    /// Which names are planned.
    pub select: &'a dyn Select,
    /// What a mini-batch may hold.
    pub caps: Caps,
    /// Most pictures.
    pub limit: Option<u64>,
    /// The outputs named by `--since`.
    pub known: Option<&'a Known>,
    /// Which of the pictures, if not all.
    pub sample: Option<Sample>,
}

impl<'a> Terms<'a> {
    /// The objects that a plan of these terms holds, in order, and what is only counted.
    ///
    /// # Errors
    /// When the input cannot be listed.
    pub fn list(&self, after: Option<&Key>, planned: u64) -> Result<Listing<'a>, JobError> {
        let listing: Listing<'a> = match self.sample {
            None => self.eligible(after)?,
            Some(sample) => {
                // Once for the ranks, once for the keys: so memory holds 8 bytes a picture.
                let mut threshold = sample.threshold(self.eligible(after)?, planned)?;
                Box::new(self.eligible(after)?.map(move |item| Ok(threshold.pass(item?))))
            }
        };
        // A limit comes after the sample: while a plan goes on, what is planned of one is planned
        // of the other.
        let mut left = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(planned));
        Ok(Box::new(listing.map_while(move |item| {
            if matches!(item, Ok(Listed::Object(_))) {
                left = left.checked_sub(1)?;
            }
            Some(item)
        })))
    }
}

impl<'a> Terms<'a> {
    /// What may be planned: selected by name, and new.
    fn eligible(&self, after: Option<&Key>) -> Result<Listing<'a>, JobError> {
        let listing = self.source.list(self.select, after)?;
        Ok(match self.known {
            None => listing,
            Some(known) => Box::new(known.filter(listing)?),
        })
    }
}

/// Grows a chain to its end, a segment at a time.
pub struct Planner<'a> {
    chain: Chain<'a>,
    terms: Terms<'a>,
    listing: Option<(Listing<'a>, Cutter)>,
}

impl<'a> Planner<'a> {
    /// A planner on whatever part of the chain there is.
    #[must_use]
    pub fn new(store: &'a dyn Store, terms: Terms<'a>) -> Planner<'a> {
        Planner { chain: Chain::new(store), terms, listing: None }
    }

    /// What has been planned so far.
    #[must_use]
    pub fn summary(&self) -> &PlanSummary {
        self.chain.summary()
    }

    /// Whether the plan has come to its end.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.chain.ended()
    }

    /// The next segment, durable; `None` after the last.
    ///
    /// # Errors
    /// When the input cannot be listed or the segment cannot be published.
    pub fn next_segment(&mut self) -> Result<Option<Segment>, JobError> {
        if let Some(segment) = self.chain.next_segment()? {
            // Somebody was faster: what we have listed may overlap it, and it may not be durable.
            self.listing = None;
            self.chain.store().settle(Path::new("_manifest"))?;
            return Ok(Some(segment));
        }
        if self.chain.ended() {
            return Ok(None);
        }
        let segment = self.cut()?;
        let text = segment.encode();
        let name = segment_name(segment.number);
        match self.chain.store().put_new(Path::new(&name), &text)? {
            PutNew::Created => {
                self.chain.accept(&segment, &text);
                failpoint::hit("after_segment").map_err(JobError::Internal)?;
                Ok(Some(segment))
            }
            PutNew::Exists => self.next_segment(),
        }
    }

    fn cut(&mut self) -> Result<Segment, JobError> {
        let summary = self.chain.summary();
        let previous = (summary.segments > 0).then(|| summary.sha256.clone());
        let (listing, cutter) = match &mut self.listing {
            Some(open) => (&mut open.0, &mut open.1),
            none => {
                let listing = self.terms.list(self.chain.after(), summary.pictures)?;
                let cutter = Cutter::new(self.terms.caps, summary.segments, summary.batches);
                let open = none.insert((listing, cutter));
                (&mut open.0, &mut open.1)
            }
        };
        let mut last: Option<Key> = None;
        for item in listing {
            match item? {
                Listed::Skipped(reason) => cutter.skip(reason),
                Listed::Object(object) => {
                    // The whole plan rests on this order; a store that breaks it is named.
                    if last.as_ref().is_some_and(|last| object.key <= *last) {
                        return Err(JobError::Usage(format!(
                            "`{}` does not list in byte order: `{}` came after a later key",
                            self.terms.source.describe(),
                            object.key
                        )));
                    }
                    last = Some(object.key.clone());
                    if let Some(segment) = cutter.push(object, previous.as_deref()) {
                        return Ok(segment);
                    }
                }
            }
        }
        let (_, cutter) = self.listing.take().expect("it was opened above. This is a bug.");
        Ok(cutter.finish(previous.as_deref()))
    }
}

/// How an input differs from the plan made of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Listed, not planned.
    pub new: u64,
    /// Planned, and another version now.
    pub changed: u64,
    /// Planned, not listed.
    pub gone: u64,
}

/// Lists again and compares with the finished plan.
///
/// # Errors
/// When the input cannot be listed, or the plan read.
pub fn drift(store: &dyn Store, terms: Terms<'_>) -> Result<Drift, JobError> {
    let mut chain = Chain::new(store);
    let mut planned: std::collections::VecDeque<Object> = std::collections::VecDeque::new();
    let mut refill = |planned: &mut std::collections::VecDeque<Object>| -> Result<(), JobError> {
        while planned.is_empty() {
            let Some(segment) = chain.next_segment()? else { break };
            planned.extend(segment.batches.into_iter().flat_map(|batch| batch.objects));
        }
        Ok(())
    };
    let mut drift = Drift::default();
    for item in terms.list(None, 0)? {
        let Listed::Object(object) = item? else { continue };
        loop {
            refill(&mut planned)?;
            match planned.front() {
                Some(before) if before.key < object.key => {
                    drift.gone += 1;
                    planned.pop_front();
                }
                Some(before) if before.key == object.key => {
                    drift.changed += u64::from(!before.is_same_version(&object));
                    planned.pop_front();
                    break;
                }
                _ => {
                    drift.new += 1;
                    break;
                }
            }
        }
    }
    loop {
        refill(&mut planned)?;
        if planned.is_empty() {
            return Ok(drift);
        }
        drift.gone += planned.len() as u64;
        planned.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Identity, LocalStore, ReadError, Skip, StoreError};

    /// Objects by name, in the order given.
    #[derive(Debug)]
    struct Names(Vec<String>);

    impl Select for Names {
        fn file(&self, _: &Key) -> Result<(), Skip> {
            Ok(())
        }
        fn folder(&self, _: &Key) -> Result<(), Skip> {
            Ok(())
        }
    }

    impl Source for Names {
        fn list<'a>(
            &'a self,
            _: &'a dyn Select,
            after: Option<&Key>,
        ) -> Result<Listing<'a>, StoreError> {
            let after = after.cloned();
            let keys = self.0.iter().map(|name| Key::from(name.as_str()));
            let keys = keys.filter(move |key| after.as_ref().is_none_or(|after| key > after));
            let object = |key| Object { key, size: 1, identity: Identity::Size, meta: None };
            Ok(Box::new(keys.map(move |key| Ok(Listed::Object(object(key))))))
        }
        fn read(&self, _: &Object) -> Result<Vec<u8>, ReadError> {
            Err(ReadError::Gone)
        }
        fn vouches(&self, _: Option<&Key>) -> bool {
            true
        }
        fn root(&self) -> String {
            "names".into()
        }
        fn describe(&self) -> String {
            "names".into()
        }
    }

    fn names(numbers: impl Iterator<Item = u32>) -> Names {
        Names(numbers.map(|number| format!("{number:05}")).collect())
    }

    fn terms(names: &Names, limit: Option<u64>) -> Terms<'_> {
        let caps = Caps { payload: 10, pictures: 1 };
        Terms { source: names, select: names, caps, limit, known: None, sample: None }
    }

    #[test]
    fn several_listers_agree_on_one_chain() {
        let alone = tempfile::tempdir().unwrap();
        let store = LocalStore::new(alone.path(), "tmp");
        let whole = names(0..200);
        let mut planner = Planner::new(&store, terms(&whole, None));
        while planner.next_segment().unwrap().is_some() {}
        let expected = planner.summary().clone();
        assert_eq!((expected.segments, expected.batches, expected.pictures), (4, 200, 200));

        // Three listers race; the third sees an input that has lost its tail meanwhile.
        let shared = tempfile::tempdir().unwrap();
        let stores: Vec<LocalStore> =
            (0..3).map(|_| LocalStore::new(shared.path(), "tmp")).collect();
        let shorter = names(0..150);
        let inputs = [&whole, &whole, &shorter];
        let mut racers: Vec<Planner<'_>> = stores
            .iter()
            .zip(inputs)
            .map(|(store, input)| Planner::new(store, terms(input, None)))
            .collect();
        for order in [[0, 1, 2], [1, 0, 2], [0, 2, 1], [0, 1, 2], [0, 1, 2]] {
            for racer in order {
                racers[racer].next_segment().unwrap();
            }
        }
        for racer in &racers {
            assert!(racer.ended());
            assert_eq!(racer.summary(), &expected);
        }
    }

    #[test]
    fn a_limit_counts_what_earlier_runs_have_planned() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::new(dir.path(), "tmp");
        let whole = names(0..200);
        Planner::new(&store, terms(&whole, Some(100))).next_segment().unwrap();
        let mut planner = Planner::new(&store, terms(&whole, Some(100)));
        while planner.next_segment().unwrap().is_some() {}
        assert_eq!((planner.summary().pictures, planner.summary().segments), (100, 2));
    }

    #[test]
    fn a_sample_is_the_same_after_an_interruption_at_any_segment() {
        let whole = names(0..2000);
        for limit in [None, Some(150), Some(400)] {
            let sample = Some(Sample { pictures: 300, seed: 7 });
            let terms = Terms { sample, ..terms(&whole, limit) };
            let alone = tempfile::tempdir().unwrap();
            let store = LocalStore::new(alone.path(), "tmp");
            let mut planner = Planner::new(&store, terms);
            while planner.next_segment().unwrap().is_some() {}
            let expected = planner.summary();
            assert_eq!(expected.pictures, limit.unwrap_or(300).min(300));
            if limit != Some(150) {
                // Every name is planned or counted, once.
                assert_eq!(expected.skipped["not_sampled"], 1700);
            }
            // A lister that dies after each segment leaves the same chain.
            let dir = tempfile::tempdir().unwrap();
            let store = LocalStore::new(dir.path(), "tmp");
            loop {
                let mut planner = Planner::new(&store, terms);
                while planner.chain.next_segment().unwrap().is_some() {}
                if planner.next_segment().unwrap().is_none() {
                    assert_eq!(planner.summary(), expected);
                    break;
                }
            }
            assert_eq!(drift(&store, terms).unwrap(), Drift::default());
        }
    }

    #[test]
    fn a_store_that_lists_out_of_order_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::new(dir.path(), "tmp");
        let wrong = names([1, 3, 2].into_iter());
        let error = Planner::new(&store, terms(&wrong, None)).next_segment().unwrap_err();
        assert!(error.to_string().contains("`names` does not list in byte order"), "{error}");
    }

    #[test]
    fn drift_counts_new_changed_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::new(dir.path(), "tmp");
        let before = names((0..200).filter(|n| n % 10 != 5));
        let mut planner = Planner::new(&store, terms(&before, None));
        while planner.next_segment().unwrap().is_some() {}
        assert_eq!(drift(&store, terms(&before, None)).unwrap(), Drift::default());
        let after = names((3..210).filter(|n| n % 10 != 7));
        let found = drift(&store, terms(&after, None)).unwrap();
        // New: 5, 15, … 195 and 200 to 209 without 207; gone: 0 to 2 and 7, 17, … 197.
        assert_eq!(found, Drift { new: 20 + 9, changed: 0, gone: 3 + 20 });
    }
}
