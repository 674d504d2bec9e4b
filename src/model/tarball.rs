//! `model.tar.gz`, the form in which SageMaker keeps models: the one checkpoint in it.
//!
//! Nothing is written anywhere, so no name in it can do harm. Bytes are counted where they come out
//! of the decompressor, whatever a header claims.

use std::cell::Cell;
use std::io::{self, Read};

use flate2::bufread::MultiGzDecoder;
use tar::Archive;

use super::error::Fault;
use super::read::MAX_FILE;
use crate::store::one_line;

/// What may come out of an archive altogether. Only the checkpoint is kept; the rest costs time.
const MAX_UNPACKED: u64 = 8 << 30;
/// Members of an archive.
const MAX_MEMBERS: usize = 100_000;
/// What headers may have before each member: long names and the like, which `tar` keeps in memory.
const MAX_HEADERS: u64 = 1 << 20;

/// A checkpoint that was in an archive.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// Whether a file is such an archive, compressed or not.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    // What a zip or .safetensors has at that place is its own affair.
    let other = bytes.starts_with(b"PK\x03\x04") || bytes.get(8) == Some(&b'{');
    is_gzip(bytes) || (bytes.get(257..262) == Some(b"ustar") && !other)
}

fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// The one `.pt` or `.safetensors` file in an archive, in whatever folder; other files may lie
/// beside it.
pub(super) fn checkpoint(bytes: &[u8]) -> Result<Member, Fault> {
    let reader: Box<dyn Read + '_> = match is_gzip(bytes) {
        true => Box::new(MultiGzDecoder::new(bytes)),
        false => Box::new(bytes),
    };
    // As in a zip: weights shrink little, so what is far beyond the file's size is a bomb.
    let most = (4 * bytes.len() as u64 + (16 << 20)).min(MAX_FILE);
    let (now, left) = (Cell::new(0), Cell::new(MAX_UNPACKED));
    let mut archive = Archive::new(Counted { reader, now: &now, left: &left });
    let broken = |error: io::Error| {
        Fault::malformed(format!("it is an archive that cannot be unpacked: {error}"))
    };
    let (mut found, mut old, mut members) = (None::<Member>, false, 0);
    let mut entries = archive.entries().map_err(broken)?;
    loop {
        now.set(MAX_HEADERS);
        let mut entry = match entries.next() {
            None => break,
            Some(Ok(entry)) => entry,
            Some(Err(_)) if members == 0 && is_other(bytes) => {
                let what = "a gzip file of something else than a tar archive (unpack it first)";
                return Err(Fault::Format(what.into()));
            }
            Some(Err(error)) => return Err(broken(error)),
        };
        members += 1;
        if members > MAX_MEMBERS {
            return Err(Fault::malformed(format!("its archive has over {MAX_MEMBERS} members")));
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let shown = one_line(&name);
        let kind = entry.header().entry_type();
        if kind.is_gnu_sparse() {
            return Err(Fault::malformed(format!(
                "`{shown}` in its archive is stored with holes (pack it without --sparse)"
            )));
        }
        let size = entry.size();
        now.set(size);
        old |= name == "storages";
        if !is_checkpoint(&name) || kind.is_dir() {
            io::copy(&mut entry, &mut io::sink()).map_err(broken)?;
            continue;
        }
        if !(kind.is_file() || kind.is_contiguous()) {
            let what = if kind.is_symlink() || kind.is_hard_link() { "a link" } else { "no file" };
            return Err(Fault::malformed(format!("`{shown}` in its archive is {what}")));
        }
        if let Some(first) = &found {
            let first = one_line(&first.name);
            return Err(Fault::Format(format!(
                "an archive with two checkpoints, `{first}` and `{shown}` (leave one in it)"
            )));
        }
        if size > most {
            return Err(Fault::malformed(format!(
                "`{shown}` in its archive unpacks to far more than the file's size"
            )));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        entry.read_to_end(&mut bytes).map_err(broken)?;
        if bytes.len() as u64 != size {
            let got = bytes.len();
            return Err(Fault::malformed(format!(
                "`{shown}` in its archive ends after {got} of {size} bytes"
            )));
        }
        found = Some(Member { name, bytes });
    }
    // The checksum of what was unpacked comes last.
    now.set(MAX_UNPACKED);
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    found.ok_or_else(|| {
        Fault::Format(match old {
            true => "a .pt in torch's old tar format".into(),
            false => "an archive without a .pt or .safetensors file in it".into(),
        })
    })
}

fn is_checkpoint(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or_default();
    // macOS puts a `._NAME` with attributes beside each file.
    let suffix = base.rsplit_once('.').map_or("", |(_, suffix)| suffix);
    !base.starts_with("._")
        && ["pt", "safetensors"].iter().any(|known| suffix.eq_ignore_ascii_case(known))
}

/// Whether a sound gzip file begins with something else than an archive.
fn is_other(bytes: &[u8]) -> bool {
    let mut first = Vec::new();
    let unpacked =
        is_gzip(bytes) && MultiGzDecoder::new(bytes).take(512).read_to_end(&mut first).is_ok();
    unpacked && first.get(257..262) != Some(b"ustar")
}

/// A reader that gives out so much now, and so much altogether.
struct Counted<'a, R> {
    reader: R,
    now: &'a Cell<u64>,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // `tar` reads padding and headers after what it was asked for.
        let most = self.now.get().min(self.left.get());
        let room = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 && !buffer.is_empty() {
            let what = match self.left.get() {
                0 => "more than 8 GiB come out of it",
                _ => "the names in it are too long",
            };
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let got = self.reader.read(&mut buffer[..room])?;
        self.now.set(self.now.get() - got as u64);
        self.left.set(self.left.get() - got as u64);
        Ok(got)
    }
}
