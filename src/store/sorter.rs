//! Sorts more names than fit in memory: runs are sorted, spilled to unlinked files and merged.
//!
//! One folder may hold millions of files, and a readdir gives them in no order. The plan wants byte
//! order, in bounded memory.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

/// Names held in memory before a run is spilled; about 8 MiB of typical names.
const RUN: usize = 200_000;

/// Bytes of names held in memory: the rows of a table may be long.
const RUN_BYTES: usize = 32 << 20;

/// A name and one byte that travels with it (what kind of entry it is).
pub(super) type Item = (Vec<u8>, u8);

/// Collects items in any order, gives them back in byte order of the names.
pub(super) struct Sorter {
    run_length: usize,
    run_bytes: usize,
    run: Vec<Item>,
    spilled: Vec<BufReader<File>>,
}

impl Sorter {
    pub(super) fn new() -> Sorter {
        Sorter::with_run_length(RUN)
    }

    pub(super) fn with_run_length(run_length: usize) -> Sorter {
        Sorter { run_length: run_length.max(1), run_bytes: 0, run: Vec::new(), spilled: Vec::new() }
    }

    /// Adds an item.
    ///
    /// # Errors
    /// When a full run cannot be spilled to the temporary folder.
    pub(super) fn push(&mut self, name: Vec<u8>, tag: u8) -> io::Result<()> {
        self.run_bytes += name.len();
        self.run.push((name, tag));
        if self.run.len() >= self.run_length || self.run_bytes >= RUN_BYTES {
            self.spill()
        } else {
            Ok(())
        }
    }

    fn spill(&mut self) -> io::Result<()> {
        self.run.sort_unstable();
        self.run_bytes = 0;
        let mut writer = BufWriter::new(tempfile::tempfile()?);
        for (name, tag) in self.run.drain(..) {
            writer.write_all(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes())?;
            writer.write_all(&[tag])?;
            writer.write_all(&name)?;
        }
        let mut file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.spilled.push(BufReader::new(file));
        Ok(())
    }

    /// All items in order.
    ///
    /// # Errors
    /// When a spilled run cannot be read back.
    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        self.run.sort_unstable();
        let mut heads = BinaryHeap::new();
        for (index, reader) in self.spilled.iter_mut().enumerate() {
            if let Some(item) = next_spilled(reader)? {
                heads.push(Reverse((item, index)));
            }
        }
        let mut memory = self.run.into_iter();
        let index = self.spilled.len();
        if let Some(item) = memory.next() {
            heads.push(Reverse((item, index)));
        }
        Ok(Sorted { heads, spilled: self.spilled, memory })
    }
}

fn next_spilled(reader: &mut BufReader<File>) -> io::Result<Option<Item>> {
    let mut head = [0u8; 5];
    match reader.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let mut name = vec![0; length];
    reader.read_exact(&mut name)?;
    Ok(Some((name, head[4])))
}

/// The merged runs.
pub(super) struct Sorted {
    heads: BinaryHeap<Reverse<(Item, usize)>>,
    spilled: Vec<BufReader<File>>,
    memory: std::vec::IntoIter<Item>,
}

impl Iterator for Sorted {
    type Item = io::Result<Item>;

    fn next(&mut self) -> Option<io::Result<Item>> {
        let Reverse((item, index)) = self.heads.pop()?;
        let following = match self.spilled.get_mut(index) {
            Some(reader) => match next_spilled(reader) {
                Ok(following) => following,
                Err(error) => return Some(Err(error)),
            },
            None => self.memory.next(),
        };
        if let Some(following) = following {
            self.heads.push(Reverse((following, index)));
        }
        Some(Ok(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_run_length_gives_the_same_order() {
        let names: Vec<Vec<u8>> = (0..500u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) % 997).to_le_bytes().to_vec())
            .collect();
        let mut expected: Vec<Item> = names.iter().map(|n| (n.clone(), 1)).collect();
        expected.sort();
        for run_length in [1, 2, 7, 499, 500, 501, 10_000] {
            let mut sorter = Sorter::with_run_length(run_length);
            for name in &names {
                sorter.push(name.clone(), 1).unwrap();
            }
            let sorted: Vec<Item> = sorter.finish().unwrap().map(Result::unwrap).collect();
            assert_eq!(sorted, expected, "run length {run_length}");
        }
    }

    #[test]
    fn long_names_are_spilled_by_their_bytes() {
        let mut sorter = Sorter::new();
        for number in 0..20u8 {
            sorter.push(vec![20 - number; RUN_BYTES / 8], number).unwrap();
        }
        assert_eq!(sorter.spilled.len(), 2);
        let tags: Vec<u8> = sorter.finish().unwrap().map(|item| item.unwrap().1).collect();
        assert_eq!(tags, (0..20).rev().collect::<Vec<u8>>());
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(Sorter::new().finish().unwrap().count(), 0);
    }
}
