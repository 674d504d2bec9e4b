//! Compressed parts: one frame or member each, the same bytes on every machine, read with a bound.
//!
//! Fixed levels, one thread, no name and no time in a header. Both encoders choose what they write
//! by level alone, never by the processor they run on; crate and library are named in the
//! fingerprint, since another version may write other bytes.

use std::borrow::Cow;
use std::io::{self, Read, Write as _};
use std::str::FromStr;

/// How parts are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compress {
    /// As lines.
    #[default]
    None,
    /// One gzip member.
    Gzip,
    /// One zstd frame with its checksum.
    Zstd,
}

/// zlib's default. Levels above it gain some percent in size, and take several times as long.
const GZIP_LEVEL: u32 = 6;

/// zstd's default.
const ZSTD_LEVEL: i32 = 3;

/// What level 3 looks back at most (2 MiB); a frame that asks a reader for more is none of ours.
const ZSTD_WINDOW_LOG: u32 = 21;

impl FromStr for Compress {
    type Err = ();

    fn from_str(name: &str) -> Result<Compress, ()> {
        match name {
            "none" => Ok(Compress::None),
            "gzip" => Ok(Compress::Gzip),
            "zstd" => Ok(Compress::Zstd),
            _ => Err(()),
        }
    }
}

impl Compress {
    /// Every way there is.
    pub const ALL: [Compress; 3] = [Compress::None, Compress::Gzip, Compress::Zstd];

    /// What a part's name ends with.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Compress::None => ".jsonl",
            Compress::Gzip => ".jsonl.gz",
            Compress::Zstd => ".jsonl.zst",
        }
    }

    /// Level and encoder for the fingerprint; `None` where nothing is compressed.
    #[must_use]
    pub fn fingerprint(self) -> Option<String> {
        match self {
            Compress::None => None,
            Compress::Gzip => Some(format!("gzip-{GZIP_LEVEL} flate2 1.1.10, zlib-rs 0.6.8")),
            // The C library that is linked; a build may be told to take the system's.
            Compress::Zstd => {
                let library = zstd::zstd_safe::version_string();
                Some(format!("zstd-{ZSTD_LEVEL} zstd 0.13.3, libzstd {library}"))
            }
        }
    }

    /// The bytes that are published for a part's lines.
    ///
    /// # Errors
    /// When the encoder cannot have its memory (a few MiB).
    pub fn pack(self, lines: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Compress::None => Ok(lines),
            Compress::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                let packed = Vec::with_capacity(lines.len() / 4 + 64);
                let mut encoder = flate2::GzBuilder::new().write(packed, level);
                encoder.write_all(&lines)?;
                encoder.finish()
            }
            Compress::Zstd => {
                let mut encoder = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                encoder.compress(&lines)
            }
        }
    }

    /// The lines in a part of this kind, at most `limit` bytes of them.
    ///
    /// Memory follows what comes out, not what a header says: a part that would unpack to more
    /// than it may is damage, and so are a second frame and anything else behind the first.
    ///
    /// # Errors
    /// What is wrong with the part, as the end of a sentence about it.
    pub fn unpack(self, part: &[u8], limit: u64) -> Result<Cow<'_, [u8]>, String> {
        let (lines, rest) = match self {
            Compress::None => return Ok(Cow::Borrowed(part)),
            Compress::Gzip => {
                let mut decoder = flate2::bufread::GzDecoder::new(part);
                let lines = bounded(&mut decoder, limit, "gzip")?;
                (lines, decoder.into_inner().len())
            }
            Compress::Zstd => {
                let wrong = |error: io::Error| format!("it cannot be unpacked as zstd: {error}");
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(part).map_err(wrong)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(wrong)?;
                let lines = bounded(&mut decoder, limit, "zstd")?;
                (lines, decoder.finish().len())
            }
        };
        match rest {
            0 => Ok(Cow::Owned(lines)),
            rest => Err(format!("{rest} bytes follow the end of its compressed data")),
        }
    }
}

/// Everything that a decoder gives, unless that is more than `limit` bytes.
fn bounded(decoder: &mut impl Read, limit: u64, form: &str) -> Result<Vec<u8>, String> {
    let mut lines = Vec::new();
    let read = decoder.take(limit.saturating_add(1)).read_to_end(&mut lines);
    read.map_err(|error| format!("it cannot be unpacked as {form}: {error}"))?;
    if lines.len() as u64 > limit {
        return Err(format!("it unpacks to more than the {limit} bytes that its lines may have"));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: [Compress; 2] = [Compress::Gzip, Compress::Zstd];

    fn lines() -> Vec<u8> {
        (0..2000u32)
            .flat_map(|i| format!("{{\"image\":\"{}.jpg\"}}\n", i * i).into_bytes())
            .collect()
    }

    #[test]
    fn what_was_packed_is_unpacked_and_packs_to_the_same_bytes() {
        for compress in Compress::ALL {
            for lines in [vec![], lines()] {
                let packed = compress.pack(lines.clone()).unwrap();
                assert_eq!(packed, compress.pack(lines.clone()).unwrap());
                assert_eq!(compress.unpack(&packed, lines.len() as u64).unwrap(), lines);
            }
        }
        let gzip = Compress::Gzip.pack(lines()).unwrap();
        assert_eq!(gzip[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255], "no name, no time");
    }

    /// These bytes are a promise: if they change, so must the fingerprint.
    #[test]
    fn the_packed_bytes_are_pinned() {
        let digest = |compress: Compress| crate::store::sha256(&compress.pack(lines()).unwrap());
        assert_eq!(
            digest(Compress::Gzip),
            "17686bf1e027df82cc8d603d9a3efd0f8e6a0780850db4623627a62d580554fd"
        );
        assert_eq!(
            digest(Compress::Zstd),
            "edf135773c5d8a8bd0c6a979ffee089f549324499607a3141b42e0eba33426df"
        );
    }

    #[test]
    fn the_fingerprint_names_what_is_linked() {
        let lock =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
        let has = |name: &str, version: &str| {
            lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\""))
        };
        let text = |compress: Compress| compress.fingerprint().unwrap();
        assert!(has("flate2", "1.1.10") && has("zlib-rs", "0.6.8"));
        assert_eq!(text(Compress::Gzip), "gzip-6 flate2 1.1.10, zlib-rs 0.6.8");
        assert!(has("zstd", "0.13.3"));
        assert_eq!(text(Compress::Zstd), "zstd-3 zstd 0.13.3, libzstd 1.5.7");
        assert_eq!(Compress::None.fingerprint(), None);
    }

    #[test]
    fn damage_is_named() {
        for compress in PACKED {
            let lines = lines();
            let (limit, packed) = (lines.len() as u64, compress.pack(lines.clone()).unwrap());
            let refused = |part: &[u8]| compress.unpack(part, limit).unwrap_err();
            assert!(refused(&lines).contains("cannot be unpacked"));
            assert!(refused(&[]).contains("cannot be unpacked"));
            for cut in 1..packed.len() {
                assert!(refused(&packed[..cut]).contains("cannot be unpacked"), "{cut}");
            }
            // A whole frame more is what `cat` of two parts gives, and no part of a job.
            let twice = packed.repeat(2);
            assert!(refused(&twice).contains("bytes follow"), "{}", refused(&twice));
            assert!(refused(&[&packed[..], &[0; 3]].concat()).contains("3 bytes follow"));
            for at in 0..packed.len() {
                let mut flipped = packed.clone();
                flipped[at] ^= 4;
                // Only fields that carry no data (gzip: time and system) may differ unnoticed.
                if let Ok(unpacked) = compress.unpack(&flipped, limit) {
                    assert!(unpacked == lines, "{compress:?}: byte {at}");
                    assert!(at < 10, "{compress:?}: byte {at}");
                }
            }
        }
    }

    #[test]
    fn bombs_take_no_more_than_the_limit() {
        for compress in PACKED {
            let packed = compress.pack(vec![b'x'; 64 << 20]).unwrap();
            assert!(packed.len() < 1 << 20);
            let error = compress.unpack(&packed, 1000).unwrap_err();
            assert!(error.contains("more than the 1000 bytes"), "{error}");
        }
        // A frame whose window is larger than ours is refused before memory for it is taken.
        let mut wide = zstd::bulk::Compressor::new(ZSTD_LEVEL).unwrap();
        wide.set_parameter(zstd::zstd_safe::CParameter::WindowLog(24)).unwrap();
        wide.set_parameter(zstd::zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
        let packed = wide.compress(&vec![b'x'; 32 << 20]).unwrap();
        assert!(
            Compress::Zstd.unpack(&packed, u64::MAX).unwrap_err().contains("cannot be unpacked")
        );
    }
}
