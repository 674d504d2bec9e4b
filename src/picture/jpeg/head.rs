//! Everything before the first scan: frame, colours, orientation.

use std::ops::Deref;

use super::super::error::PictureError;
use super::super::orient;
use super::super::probe::{Format, Header};

pub(super) const SOI: u8 = 0xD8;
pub(super) const EOI: u8 = 0xD9;
pub(super) const SOS: u8 = 0xDA;
pub(super) const DQT: u8 = 0xDB;
pub(super) const DNL: u8 = 0xDC;
pub(super) const DRI: u8 = 0xDD;
pub(super) const DHT: u8 = 0xC4;
pub(super) const DAC: u8 = 0xCC;

/// What the components mean, decided as libjpeg decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Gray,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

/// One component of the frame.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factors, 1, 2 or 4 (horizontal) and 1 to 4 (vertical).
    pub(super) h: u32,
    pub(super) v: u32,
    pub(super) table: u8,
}

/// Most components of a frame that is read.
pub(super) const MOST_COMPONENTS: usize = 4;

/// The components of a frame, without memory of their own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Components {
    all: [Component; MOST_COMPONENTS],
    count: usize,
}

impl Deref for Components {
    type Target = [Component];

    fn deref(&self) -> &[Component] {
        &self.all[..self.count]
    }
}

/// The frame header and what the segments before the first scan say about it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) progressive: bool,
    pub(super) components: Components,
    pub(super) colour: Colour,
    pub(super) orientation: u8,
    /// The first scan holds every component, so rows can be finished while they are read.
    pub(super) interleaved: bool,
}

/// A marker and, but for those without, its segment's content.
pub(super) struct Segment<'a> {
    pub(super) marker: u8,
    pub(super) body: &'a [u8],
    /// Where the next marker may begin.
    pub(super) end: usize,
}

/// The segment at or after `at`. Bytes that are no marker are skipped, as libjpeg does.
pub(super) fn segment(bytes: &[u8], mut at: usize) -> Result<Segment<'_>, PictureError> {
    let short = || PictureError::truncated(bytes.len());
    let marker = loop {
        let gap = bytes.get(at..).ok_or_else(short)?;
        at += gap.iter().position(|&b| b == 0xFF).ok_or_else(short)?;
        match *bytes.get(at + 1).ok_or_else(short)? {
            0xFF => at += 1,
            0 => at += 2,
            marker => break marker,
        }
    };
    if matches!(marker, SOI | EOI | 0x01 | 0xD0..=0xD7) {
        return Ok(Segment { marker, body: &[], end: at + 2 });
    }
    let length = bytes.get(at + 2..at + 4).ok_or_else(short)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length < 2 {
        return Err(PictureError::corrupt("JPEG"));
    }
    let end = at + 2 + length;
    Ok(Segment { marker, body: bytes.get(at + 4..end).ok_or_else(short)?, end })
}

impl Head {
    /// Read from the first byte to the first scan.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, PictureError> {
        let corrupt = || PictureError::corrupt("JPEG");
        let (mut frame, mut jfif, mut adobe, mut orientation) = (None::<Self>, false, None, None);
        let mut at = 2;
        loop {
            let segment = segment(bytes, at)?;
            let body = segment.body;
            at = segment.end;
            match segment.marker {
                0xC0..=0xC2 if frame.is_some() => return Err(corrupt()),
                0xC0..=0xC2 => frame = Some(read_frame(body, segment.marker == 0xC2)?),
                DHT => {}
                0xC3 => return Err(PictureError::unsupported("lossless JPEG")),
                0xC5..=0xC7 => return Err(PictureError::unsupported("hierarchical JPEG")),
                0xC9..=0xCB | DAC | 0xCD..=0xCF => {
                    return Err(PictureError::unsupported("arithmetic-coded JPEG"));
                }
                0xF7 => return Err(PictureError::unsupported("JPEG-LS")),
                DNL => return Err(PictureError::unsupported("JPEG with a late line count")),
                EOI => return Err(PictureError::truncated(bytes.len())),
                SOI => return Err(corrupt()),
                0xE0 => jfif |= body.starts_with(b"JFIF\0"),
                0xE1 if orientation.is_none() && body.starts_with(b"Exif\0\0") => {
                    orientation = Some(orient::from_exif(body).unwrap_or(1));
                }
                0xEE if body.len() >= 12 && body.starts_with(b"Adobe") => adobe = Some(body[11]),
                SOS => {
                    let mut head = frame.ok_or_else(corrupt)?;
                    head.interleaved = body.first().copied() == Some(head.components.len() as u8);
                    head.colour = colour(&head.components, jfif, adobe)?;
                    head.orientation = orientation.unwrap_or(1);
                    return Ok(head);
                }
                _ => {}
            }
        }
    }

    /// Most sampling factors, horizontal and vertical.
    pub(super) fn max_sampling(&self) -> (u32, u32) {
        let fold = |f: fn(&Component) -> u32| self.components.iter().map(f).max().unwrap_or(1);
        (fold(|c| c.h), fold(|c| c.v))
    }

    /// Size in MCUs of an interleaved scan.
    pub(super) fn mcus(&self) -> (u32, u32) {
        let (h, v) = self.max_sampling();
        (self.width.div_ceil(8 * h), self.height.div_ceil(8 * v))
    }

    /// Upper bound of what decoding allocates, in bytes, for a file of `file` bytes.
    fn decode_bytes(&self, file: u64) -> u64 {
        let pixels = u64::from(self.width) * u64::from(self.height);
        let (h, v) = self.max_sampling();
        let (mcu_x, mcu_y) = self.mcus();
        let blocks = self.components.iter().map(|c| u64::from(c.h * c.v)).sum::<u64>()
            * u64::from(mcu_x)
            * u64::from(mcu_y);
        let whole = self.progressive || !self.interleaved;
        let coefficients = if whole { blocks * 64 * 2 } else { 0 };
        // One row of MCUs of every component: coefficients, upsampled rows, scratch, each i16.
        let row = u64::from(mcu_x * 8 * h) * u64::from(8 * v) * 2;
        let rows = row * (4 * self.components.len() as u64 + 1);
        let four = if self.components.len() == 4 { 4 * pixels } else { 0 };
        let upright = if self.orientation == 1 { 0 } else { 3 * pixels };
        // Neither the four channels nor the coefficients outlive the decoder.
        3 * pixels + (four + coefficients + rows + file).max(upright) + (256 << 10)
    }
}

/// The header of a JPEG file.
pub(in super::super) fn header(bytes: &[u8]) -> Result<Header, PictureError> {
    let head = Head::read(bytes)?;
    Ok(Header {
        format: Format::Jpeg,
        width: head.width,
        height: head.height,
        orientation: head.orientation,
        decode_bytes: head.decode_bytes(bytes.len() as u64),
    })
}

fn read_frame(body: &[u8], progressive: bool) -> Result<Head, PictureError> {
    let corrupt = || PictureError::corrupt("JPEG");
    let (fixed, rest) = body.split_at_checked(6).ok_or_else(corrupt)?;
    if fixed[0] != 8 {
        return Err(PictureError::unsupported(format_args!("{}-bit JPEG", fixed[0])));
    }
    let height = u32::from(u16::from_be_bytes([fixed[1], fixed[2]]));
    let width = u32::from(u16::from_be_bytes([fixed[3], fixed[4]]));
    let count = usize::from(fixed[5]);
    if height == 0 && width != 0 {
        return Err(PictureError::unsupported("JPEG with a late line count"));
    }
    if width == 0 || rest.len() != count * 3 {
        return Err(corrupt());
    }
    if !matches!(count, 1 | 3 | 4) {
        return Err(PictureError::unsupported(format_args!("JPEG of {count} components")));
    }
    let mut components = Components::default();
    for c in rest.chunks_exact(3) {
        let (h, v) = (u32::from(c[1] >> 4), u32::from(c[1] & 15));
        if h == 0 || v == 0 || h > 4 || v > 4 || c[2] > 3 {
            return Err(corrupt());
        }
        if components.iter().any(|other: &Component| other.id == c[0]) {
            return Err(corrupt());
        }
        components.all[components.count] = Component { id: c[0], h, v, table: c[2] };
        components.count += 1;
    }
    if components.count == 1 {
        // A single component is not interleaved: its sampling factors mean nothing.
        (components.all[0].h, components.all[0].v) = (1, 1);
    }
    let head = Head {
        width,
        height,
        progressive,
        components,
        colour: Colour::Gray,
        orientation: 1,
        interleaved: true,
    };
    let (h, v) = head.max_sampling();
    let first = head.components.first().ok_or_else(corrupt)?;
    let odd = |c: &Component| h % c.h != 0 || v % c.v != 0 || c.h == 3;
    // Nobody writes a luma coarser than its chroma, and the decoder would get it wrong.
    if (first.h, first.v) != (h, v) || head.components.iter().any(odd) {
        return Err(PictureError::unsupported(format_args!(
            "JPEG with sampling factors {}x{} of {h}x{v}",
            first.h, first.v
        )));
    }
    Ok(head)
}

/// libjpeg's rules (`default_decompress_parms`), which cv2 follows.
fn colour(components: &[Component], jfif: bool, adobe: Option<u8>) -> Result<Colour, PictureError> {
    let named_rgb = || components.iter().map(|c| c.id).eq(*b"RGB");
    Ok(match (components.len(), adobe) {
        (1, _) => Colour::Gray,
        (3, _) if jfif => Colour::YCbCr,
        (3, Some(0)) => Colour::Rgb,
        (3, None) if named_rgb() => Colour::Rgb,
        (3, _) => Colour::YCbCr,
        (4, None | Some(0)) => Colour::Cmyk,
        (4, Some(_)) => Colour::Ycck,
        _ => return Err(PictureError::corrupt("JPEG")),
    })
}
