//! The scans: is everything there? And the file written anew for the decoder.

use super::super::decode::empty;
use super::super::error::PictureError;
use super::head::{Colour, DHT, DNL, DQT, DRI, EOI, Head, MOST_COMPONENTS, SOI, SOS, segment};

/// Scans after which a file is called damaged. Encoders write about ten; every scan costs a pass
/// over the whole picture, so their number is what bounds the time that a small file can take.
const MAX_SCANS: usize = 100;

/// All ones: no JPEG Huffman code may consist of ones, so a decoder that reads on here fails.
/// Stuffed (`FF 00`), and long enough for any code and its extra bits to end in it.
const POISON: [u8; 32] = {
    let mut poison = [0; 32];
    let mut i = 0;
    while i < poison.len() {
        poison[i] = 0xFF;
        i += 2;
    }
    poison
};

/// The file as the decoder shall see it, and whether it is whole.
pub(super) struct Walk<'a> {
    bytes: &'a mut Vec<u8>,
    /// Where the last scan's data ends in `bytes`.
    end: usize,
    /// The structure is whole: EOI reached and every coefficient was sent.
    pub(super) complete: bool,
}

impl Walk<'_> {
    /// The file, with poison behind its last scan.
    pub(super) fn poisoned(&mut self) -> &[u8] {
        self.bytes.truncate(self.end);
        self.bytes.extend_from_slice(&POISON);
        self.bytes.extend_from_slice(&[0xFF, EOI]);
        self.bytes
    }

    /// The file, ending where its data ends.
    pub(super) fn plain(&mut self) -> &[u8] {
        self.bytes.truncate(self.end);
        self.bytes.extend_from_slice(&[0xFF, EOI]);
        self.bytes
    }
}

/// How much of each coefficient the scans have brought.
struct Coverage {
    /// Per component and coefficient: the lowest bit sent so far; 255: none.
    low: [[u8; 64]; MOST_COMPONENTS],
    scans: usize,
}

/// Read the whole file's structure, and write the file anew into `out`.
///
/// # Errors
/// A structure no decoder should see. That data is missing is no error here but
/// [`Walk::complete`], unless not even a first scan begins.
pub(super) fn walk<'a>(
    bytes: &[u8],
    head: &Head,
    out: &'a mut Vec<u8>,
) -> Result<Walk<'a>, PictureError> {
    let corrupt = || PictureError::corrupt("JPEG");
    empty(out, bytes.len() + 128);
    out.extend_from_slice(&[0xFF, SOI]);
    if matches!(head.colour, Colour::Cmyk | Colour::Ycck) {
        let transform = if head.colour == Colour::Ycck { 2 } else { 0 };
        let at = push(out, 0xEE, b"Adobe\0\x64\0\0\0\0\0");
        out[at + 11] = transform;
    }
    let mut coverage = Coverage { low: [[255; 64]; MOST_COMPONENTS], scans: 0 };
    let (mut at, mut interval, mut tables) = (2, 0, false);
    let mut walk = Walk { bytes: out, end: 0, complete: false };
    loop {
        let segment = match segment(bytes, at) {
            Ok(segment) => segment,
            // The file ends between or inside segments behind a scan.
            Err(e) if e.code == super::super::Code::Truncated && coverage.scans > 0 => {
                return Ok(walk);
            }
            Err(e) => return Err(e),
        };
        at = segment.end;
        match segment.marker {
            DHT | DQT => {
                tables |= segment.marker == DHT;
                push(walk.bytes, segment.marker, segment.body);
            }
            DRI => {
                let &[high, low] = segment.body else { return Err(corrupt()) };
                interval = u32::from(u16::from_be_bytes([high, low]));
                push(walk.bytes, DRI, segment.body);
            }
            0xC0..=0xC2 if coverage.scans == 0 => {
                let at = push(walk.bytes, segment.marker, segment.body);
                rename_frame(&mut walk.bytes[at..], head);
            }
            SOS => {
                if !tables {
                    // Motion JPEG frames leave out the standard tables. The decoder supplies
                    // them for this mark, as libjpeg does for everybody.
                    push(walk.bytes, 0xE0, b"AVI1\0\0\0\0");
                    tables = true;
                }
                let header = push(walk.bytes, SOS, segment.body);
                let mcus = coverage.scan(&mut walk.bytes[header..], head)?;
                let data = entropy(&bytes[at..])?;
                walk.bytes.extend_from_slice(&bytes[at..at + data.length]);
                walk.end = walk.bytes.len();
                at += data.length;
                if data.restarts > 0 && interval == 0 {
                    return Err(corrupt());
                }
                let expected = mcus.checked_div(interval).map_or(0, |n| {
                    if mcus.is_multiple_of(interval) { n.saturating_sub(1) } else { n }
                });
                if data.ended || data.restarts < expected {
                    return Ok(walk);
                }
            }
            EOI => {
                walk.complete = coverage.complete(head);
                return if coverage.scans > 0 { Ok(walk) } else { Err(corrupt()) };
            }
            0xE0..=0xEF | 0xFE | 0x01 | 0xD0..=0xD7 => {}
            DNL => return Err(PictureError::unsupported("JPEG with a late line count")),
            _ => return Err(corrupt()),
        }
    }
}

impl Coverage {
    /// Check a scan header, note what it brings and give the components our names. Returns the
    /// number of MCUs that its data holds.
    fn scan(&mut self, body: &mut [u8], head: &Head) -> Result<u32, PictureError> {
        let corrupt = || PictureError::corrupt("JPEG");
        self.scans += 1;
        let count = usize::from(*body.first().ok_or_else(corrupt)?);
        if self.scans > MAX_SCANS || !(1..=4).contains(&count) || body.len() != 4 + 2 * count {
            return Err(corrupt());
        }
        let (first, last) = (usize::from(body[1 + 2 * count]), usize::from(body[2 + 2 * count]));
        let (high, low) = (body[3 + 2 * count] >> 4, body[3 + 2 * count] & 15);
        if head.progressive && (first > last || last > 63 || (first == 0 && last != 0)) {
            return Err(corrupt());
        }
        let range = if head.progressive { first..=last } else { 0..=63 };
        let mut members = [0; MOST_COMPONENTS];
        for i in 0..count {
            let id = body[1 + 2 * i];
            let found = head.components.iter().position(|c| c.id == id);
            let component = found.filter(|c| !members[..i].contains(c)).ok_or_else(corrupt)?;
            body[1 + 2 * i] = name(head.colour, component);
            members[i] = component;
            for sent in &mut self.low[component][range.clone()] {
                // A first pass brings what was never sent; a refinement, the bit below the last.
                let fresh = *sent == 255;
                let fits = if high == 0 { fresh } else { !fresh && *sent == high };
                if !fits && (head.progressive || !fresh) {
                    return Err(corrupt());
                }
                *sent = if head.progressive { low } else { 0 };
            }
        }
        if head.progressive && first > 0 && count > 1 {
            return Err(corrupt());
        }
        if !head.progressive && count < head.components.len() && !separable(head) {
            return Err(PictureError::unsupported("subsampled JPEG in separate scans"));
        }
        let members = &members[..count];
        Ok(if let &[only] = members {
            let (c, (h, v)) = (head.components[only], head.max_sampling());
            (head.width * c.h).div_ceil(8 * h) * (head.height * c.v).div_ceil(8 * v)
        } else {
            let blocks: u32 = members.iter().map(|&m| head.components[m]).map(|c| c.h * c.v).sum();
            if blocks > 10 {
                return Err(corrupt());
            }
            head.mcus().0 * head.mcus().1
        })
    }

    /// Every coefficient was sent down to its last bit.
    fn complete(&self, head: &Head) -> bool {
        let whole = |low: &[u8; 64]| low.iter().all(|&l| l == 0);
        let low = &self.low[..head.components.len()];
        // Coding only the DC of a component is legal but no picture anybody means.
        if head.progressive { low.iter().all(whole) } else { low.iter().all(|l| l[0] == 0) }
    }
}

/// zune-jpeg puts the blocks of separate baseline scans in the right place only without vertical
/// subsampling and with the same sampling for both chroma components.
fn separable(head: &Head) -> bool {
    let chroma = head.components.get(1..).unwrap_or_default();
    head.max_sampling().1 == 1 && chroma.iter().all(|c| c.h == chroma[0].h)
}

/// What a run of entropy-coded data is like.
struct Entropy {
    /// Bytes up to the marker that ends it.
    length: usize,
    restarts: u32,
    /// The file ends inside it.
    ended: bool,
}

/// Measure the entropy-coded data at the start of `bytes`.
fn entropy(bytes: &[u8]) -> Result<Entropy, PictureError> {
    let (mut at, mut restarts) = (0, 0u32);
    loop {
        let Some(step) = memchr::memchr(0xFF, &bytes[at..]) else {
            return Ok(Entropy { length: bytes.len(), restarts, ended: true });
        };
        at += step;
        match bytes.get(at + 1) {
            // A lone FF at the end is half of something: it is left out.
            None => return Ok(Entropy { length: at, restarts, ended: true }),
            Some(0) => at += 2,
            Some(0xFF) => at += 1,
            Some(&marker @ 0xD0..=0xD7) => {
                if u32::from(marker - 0xD0) != restarts % 8 {
                    return Err(PictureError::corrupt("JPEG"));
                }
                restarts += 1;
                at += 2;
            }
            Some(_) => return Ok(Entropy { length: at, restarts, ended: false }),
        }
    }
}

/// Write a segment. Returns where its body begins in `out`.
fn push(out: &mut Vec<u8>, marker: u8, body: &[u8]) -> usize {
    // A body is at most a segment of the file, or short and ours: its length fits.
    let length = (body.len() + 2) as u16;
    out.extend_from_slice(&[0xFF, marker]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
    out.len() - body.len()
}

/// Our component names and normalised sampling factors in a frame header.
fn rename_frame(body: &mut [u8], head: &Head) {
    for (i, (to, c)) in body[6..].chunks_exact_mut(3).zip(head.components.iter()).enumerate() {
        to.copy_from_slice(&[name(head.colour, i), (c.h << 4 | c.v) as u8, c.table]);
    }
}

/// zune-jpeg takes components named R, G and B for RGB, whatever the file says elsewhere.
fn name(colour: Colour, component: usize) -> u8 {
    match colour {
        Colour::Rgb => b"RGB"[component],
        _ => component as u8 + 1,
    }
}
