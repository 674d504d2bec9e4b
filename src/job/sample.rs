//! `--sample`: so many pictures of all, chosen by a hash of their keys.
//!
//! The choice depends on the seed and the keys alone: not on their order, on who lists, or on how
//! often a lister was interrupted.

use std::collections::BinaryHeap;

use sha2::{Digest as _, Sha256};

use crate::store::{Key, Listed, Listing, Skip, StoreError};

/// How many pictures, and which of the choices of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Pictures to choose.
    pub pictures: u64,
    /// Another seed chooses others.
    pub seed: u64,
}

impl Sample {
    /// The rank of a key: the first 8 bytes of the SHA-256 of the seed (8 bytes, little-endian)
    /// and the key, as a big-endian number. The keys of the lowest ranks are the sample.
    #[must_use]
    pub fn rank(self, key: &Key) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(key.as_bytes());
        let digest = hash.finalize();
        digest.iter().take(8).fold(0, |rank, &byte| rank << 8 | u64::from(byte))
    }

    /// What is to be let through of a listing when `planned` pictures of the sample come before it.
    ///
    /// These are the `pictures - planned` lowest ranks in it, and so the rest of the sample: the
    /// plan takes the sample's keys in order, so all of them up to the last planned key are
    /// planned, and `pictures - planned` lie after it. Every other key after it has a higher rank
    /// than all of the sample, and so than these.
    ///
    /// Memory: 8 bytes for each picture of the sample, or of the listing if that is shorter.
    pub(super) fn threshold(
        self,
        listing: Listing<'_>,
        planned: u64,
    ) -> Result<Threshold, StoreError> {
        let wanted = self.pictures.saturating_sub(planned);
        let mut lowest: BinaryHeap<u64> = BinaryHeap::new();
        for item in listing {
            let Listed::Object(object) = item? else { continue };
            let rank = self.rank(&object.key);
            if (lowest.len() as u64) < wanted {
                lowest.push(rank);
            } else if let Some(mut highest) = lowest.peek_mut()
                && rank < *highest
            {
                *highest = rank;
            }
        }
        let full = lowest.len() as u64 == wanted;
        let highest = if full { lowest.peek().copied().unwrap_or(0) } else { u64::MAX };
        let at_highest = lowest.iter().filter(|&&rank| rank == highest).count() as u64;
        Ok(Threshold { sample: self, left: wanted, highest, at_highest, full })
    }
}

/// Lets the sample's part of a listing through.
#[derive(Debug)]
pub(super) struct Threshold {
    sample: Sample,
    /// Pictures still to be let through; the input may have grown since the threshold was found.
    left: u64,
    highest: u64,
    /// Keys of the highest rank that belong to the sample: the first ones, if there are more.
    at_highest: u64,
    full: bool,
}

impl Threshold {
    /// The listing's item, or [`Skip::NotSampled`] in its place.
    pub(super) fn pass(&mut self, item: Listed) -> Listed {
        let Listed::Object(object) = &item else { return item };
        let rank = self.sample.rank(&object.key);
        let mut taken = self.left > 0 && rank <= self.highest;
        if taken && self.full && rank == self.highest {
            taken = self.at_highest > 0;
            self.at_highest = self.at_highest.saturating_sub(1);
        }
        if !taken {
            return Listed::Skipped(Skip::NotSampled);
        }
        self.left -= 1;
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Identity, Object};

    fn keys(count: usize) -> Vec<Key> {
        (0..count).map(|number| Key::new(format!("cam{}/{number:06}.jpg", number % 7))).collect()
    }

    fn listing(keys: &[Key]) -> Listing<'_> {
        let object =
            |key: &Key| Object { key: key.clone(), size: 1, identity: Identity::Size, meta: None };
        Box::new(keys.iter().map(move |key| Ok(Listed::Object(object(key)))))
    }

    fn sampled(sample: Sample, keys: &[Key], planned: u64) -> Vec<Key> {
        let mut threshold = sample.threshold(listing(keys), planned).unwrap();
        let passed = listing(keys).map(|item| threshold.pass(item.unwrap()));
        passed
            .filter_map(|item| match item {
                Listed::Object(object) => Some(object.key),
                Listed::Skipped(reason) => {
                    assert_eq!(reason, Skip::NotSampled);
                    None
                }
            })
            .collect()
    }

    #[test]
    fn the_rank_is_the_one_in_the_documents() {
        // printf '\x01\0\0\0\0\0\0\0a/b.jpg' | sha256sum
        let rank = Sample { pictures: 1, seed: 1 }.rank(&Key::from("a/b.jpg"));
        assert_eq!(format!("{rank:016x}"), "e25c502b71f8c564");
    }

    #[test]
    fn a_sample_is_the_keys_of_lowest_rank_whatever_comes_before() {
        let mut all = keys(500);
        all.sort();
        for pictures in [1, 2, 100, 499, 500, 501, u64::MAX] {
            let sample = Sample { pictures, seed: 3 };
            let whole = sampled(sample, &all, 0);
            let mut ranked = all.clone();
            ranked.sort_by_key(|key| sample.rank(key));
            ranked.truncate(usize::try_from(pictures).unwrap_or(usize::MAX));
            ranked.sort();
            assert_eq!(whole, ranked, "{pictures}");
            // Going on after any key of the sample gives the rest of it.
            for planned in 1..=whole.len() {
                let after = all.iter().position(|key| *key == whole[planned - 1]).unwrap() + 1;
                let rest = sampled(sample, &all[after..], planned as u64);
                assert_eq!(rest, whole[planned..], "{pictures} after {planned}");
            }
        }
    }

    #[test]
    fn no_part_of_the_input_is_preferred() {
        // 2,000 of 20,000 keys in 10 ranges: 200 each, give or take 5 standard deviations of 12.7
        // (hypergeometric); and two seeds share about a tenth, 200 ± 64.
        let all = keys(20_000);
        let one = sampled(Sample { pictures: 2000, seed: 1 }, &all, 0);
        let two = sampled(Sample { pictures: 2000, seed: 2 }, &all, 0);
        assert_eq!((one.len(), two.len()), (2000, 2000));
        for range in all.chunks(2000) {
            let range: std::collections::BTreeSet<&Key> = range.iter().collect();
            let count = one.iter().filter(|key| range.contains(key)).count();
            assert!((136..=264).contains(&count), "{count}");
        }
        let one: std::collections::BTreeSet<&Key> = one.iter().collect();
        let both = two.iter().filter(|key| one.contains(key)).count();
        assert!((136..=264).contains(&both), "{both}");
    }

    #[test]
    fn keys_of_one_rank_are_taken_in_order_and_no_more_than_asked() {
        let all = keys(4);
        let sample = Sample { pictures: 2, seed: 0 };
        let highest = sample.rank(&all[2]);
        // As if all keys had one rank.
        let same = vec![all[2].clone(); 4];
        let mut threshold = sample.threshold(listing(&same), 0).unwrap();
        assert_eq!((threshold.highest, threshold.at_highest), (highest, 2));
        let passed = listing(&same).map(|item| threshold.pass(item.unwrap()));
        let taken: Vec<bool> = passed.map(|item| matches!(item, Listed::Object(_))).collect();
        assert_eq!(taken, [true, true, false, false]);
        // An input that grows between the two passes does not make the sample larger.
        let mut threshold = sample.threshold(listing(&all[..1]), 0).unwrap();
        let passed = listing(&all).map(|item| threshold.pass(item.unwrap()));
        assert_eq!(passed.filter(|item| matches!(item, Listed::Object(_))).count(), 2);
    }
}
