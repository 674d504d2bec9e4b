//! Files made wrong: by any byte, and where their formats keep chunks, lengths and sizes.

use std::ops::Range;

/// A small generator, so that a number says which file it was.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        // splitmix64, so that neighbouring seeds have nothing in common.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((z ^ (z >> 31)) | 1)
    }

    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 where that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 16) % end.max(1) as u64) as usize
    }

    /// One of `items`.
    pub(crate) fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    fn range(&mut self, end: usize, most: usize) -> Range<usize> {
        let start = self.below(end);
        start..(start + 1 + self.below(most)).min(end)
    }
}

/// A number in a file: where it is, how many bytes it has, and whether the high one comes first.
type Field = (usize, usize, bool);

/// What a format gives to get wrong.
#[derive(Default)]
struct Anatomy {
    /// Pieces that could stand in another order.
    chunks: Vec<Range<usize>>,
    /// Lengths, sizes, offsets and counts.
    fields: Vec<Field>,
}

/// `file` with one to four things wrong in it; `other` is a file to take pieces from.
pub(crate) fn mutated(file: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for _ in 0..=random.below(4) {
        // Bytes at random leave hardly a header that is JSON.
        if bytes.get(8) == Some(&b'{') && random.below(4) > 0 {
            header(&mut bytes, random);
        } else if bytes.first() == Some(&b'{') && random.below(4) > 0 {
            if let Ok(text) = std::str::from_utf8(&bytes) {
                bytes = reworded(text, bytes.len() as u64, random).into_bytes();
            }
        } else {
            once(&mut bytes, other, random);
        }
    }
    // Behind its checksums a PNG is only looked at if they are right.
    if random.below(2) == 0 {
        mend_png(&mut bytes);
    }
    bytes
}

fn once(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let anatomy = anatomy(bytes);
    let length = bytes.len();
    // Heads decide more than pixels do.
    let reach = if random.below(2) == 0 { length.min(256) } else { length };
    match random.below(12) {
        0 | 1 => {
            for _ in 0..=random.below(8) {
                bytes[random.below(reach)] ^= 1 << random.below(8);
            }
        }
        2 => {
            for _ in 0..=random.below(4) {
                bytes[random.below(reach)] = *random.of(&[0, 1, 0x7f, 0x80, 0xff, 0x20]);
            }
        }
        3 => bytes.truncate(random.below(length)),
        4 => {
            let at = random.below(reach);
            let some: Vec<u8> = (0..=random.below(64)).map(|_| random.below(256) as u8).collect();
            bytes.splice(at..at, some);
        }
        5 => {
            let cut = random.range(length, 1024);
            bytes.drain(cut);
        }
        6 => {
            let again = random.range(length, 4096);
            let (copy, at) = (bytes[again].to_vec(), random.below(length));
            bytes.splice(at..at, copy);
        }
        7 => {
            let (from, at) = (random.range(other.len(), 4096), random.below(length));
            bytes.truncate(at);
            bytes.extend(&other[from.start.min(other.len())..]);
        }
        8 if anatomy.chunks.len() > 1 => {
            let one = random.of(&anatomy.chunks).clone();
            let two = random.of(&anatomy.chunks).clone();
            let (one, two) = if one.start <= two.start { (one, two) } else { (two, one) };
            if one != two {
                let first = bytes[one.clone()].to_vec();
                let second = bytes.splice(two, first).collect::<Vec<u8>>();
                bytes.splice(one, second);
            }
        }
        9 if !anatomy.chunks.is_empty() => {
            let one = random.of(&anatomy.chunks).clone();
            let copy = bytes[one.clone()].to_vec();
            let at = if random.below(2) == 0 { one.start } else { random.below(length) };
            match random.below(2) {
                0 => drop(bytes.drain(one)),
                _ => drop(bytes.splice(at..at, copy)),
            }
        }
        _ => {
            let anywhere = (random.below(reach), *random.of(&[2, 4, 8]), random.below(2) == 0);
            let field = match anatomy.fields.is_empty() || random.below(8) == 0 {
                true => anywhere,
                false => *random.of(&anatomy.fields),
            };
            number(bytes, field, random);
        }
    }
}

/// Puts another number into a field.
fn number(bytes: &mut [u8], (at, width, high_first): Field, random: &mut Random) {
    let length = bytes.len() as u64;
    let Some(field) = bytes.get_mut(at..at + width) else { return };
    let ordered = |mut raw: Vec<u8>| {
        if high_first {
            raw.reverse();
        }
        raw.resize(8, 0);
        u64::from_le_bytes(raw.try_into().expect("eight bytes"))
    };
    let was = ordered(field.to_vec());
    let top = u64::MAX >> (64 - 8 * width);
    let value = match random.below(14) {
        0 => 0,
        1 => 1,
        2 => top,
        3 => top / 2,
        4 => top / 2 + 1,
        5 => was.wrapping_add(1),
        6 => was.wrapping_sub(1),
        7 => was.wrapping_mul(2),
        8 => length,
        9 => length.wrapping_sub(at as u64),
        10 => 1 << random.below(8 * width),
        11 => (1 << random.below(8 * width)) - 1,
        12 => random.below(70_000) as u64,
        _ => random.next(),
    };
    let mut raw = value.to_le_bytes()[..width].to_vec();
    if high_first {
        raw.reverse();
    }
    field.copy_from_slice(&raw);
}

fn anatomy(bytes: &[u8]) -> Anatomy {
    let mut anatomy = match bytes {
        [0x89, b'P', b'N', b'G', ..] => png(bytes),
        [b'R', b'I', b'F', b'F', ..] => riff(bytes),
        [0xff, 0xd8, ..] => jpeg(bytes),
        [b'I', b'I', 42, 0, ..] => tiff(bytes, false),
        [b'M', b'M', 0, 42, ..] => tiff(bytes, true),
        [b'B', b'M', ..] => bmp(),
        [b'G', b'I', b'F', ..] => gif(bytes),
        [b'P', b'K', 3, 4, ..] => zip(bytes),
        [_, _, _, _, _, _, _, _, b'{', ..] => safetensors(bytes),
        _ => Anatomy::default(),
    };
    // What is left of a file may be shorter than its head says.
    anatomy.chunks.retain(|chunk| chunk.end <= bytes.len());
    anatomy
}

fn word(bytes: &[u8], at: usize, high_first: bool) -> Option<usize> {
    let raw = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(if high_first { u32::from_be_bytes(raw) } else { u32::from_le_bytes(raw) } as usize)
}

fn half(bytes: &[u8], at: usize, high_first: bool) -> Option<usize> {
    let raw = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(if high_first { u16::from_be_bytes(raw) } else { u16::from_le_bytes(raw) }.into())
}

fn png(bytes: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy::default();
    let mut at = 8;
    while let Some(length) = word(bytes, at, true) {
        let end = at.saturating_add(length).saturating_add(12);
        anatomy.fields.push((at, 4, true));
        if bytes.get(at + 4..at + 8) == Some(b"IHDR") {
            anatomy.fields.extend([(at + 8, 4, true), (at + 12, 4, true), (at + 16, 2, true)]);
        } else {
            // A frame's size in an APNG, an EXIF block's head, a gamma.
            anatomy.fields.extend([(at + 8, 4, true), (at + 12, 4, true)]);
        }
        if end > bytes.len() {
            break;
        }
        anatomy.chunks.push(at..end);
        at = end;
    }
    anatomy
}

/// Sets the checksum of each chunk to what its bytes have.
fn mend_png(bytes: &mut [u8]) {
    if !bytes.starts_with(b"\x89PNG") {
        return;
    }
    for chunk in png(bytes).chunks {
        let (body, sum) = (chunk.start + 4..chunk.end - 4, chunk.end - 4..chunk.end);
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[body]);
        bytes[sum].copy_from_slice(&crc.sum().to_be_bytes());
    }
}

fn riff(bytes: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy { fields: vec![(4, 4, false)], ..Anatomy::default() };
    let mut at = 12;
    while let Some(length) = word(bytes, at + 4, false) {
        let end = at.saturating_add(8).saturating_add(length).saturating_add(length & 1);
        // Its length, and the first words of its body: flags, sides, offsets, durations.
        anatomy.fields.extend([4, 8, 12, 16, 20].map(|field| (at + field, 4, false)));
        if end > bytes.len() {
            break;
        }
        anatomy.chunks.push(at..end);
        at = end;
    }
    anatomy
}

fn jpeg(bytes: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy::default();
    let mut at = 2;
    while let (Some(0xff), Some(&marker)) = (bytes.get(at), bytes.get(at + 1)) {
        let Some(length) = half(bytes, at + 2, true) else { break };
        let end = at + 2 + length;
        anatomy.fields.push((at + 2, 2, true));
        if matches!(marker, 0xc0..=0xc2) {
            // Precision and sides, and one byte more: the number of components.
            anatomy.fields.extend([(at + 5, 2, true), (at + 7, 2, true), (at + 9, 2, true)]);
        }
        if marker == 0xda || end > bytes.len() {
            // The scan, and whatever follows it.
            anatomy.chunks.push(at..bytes.len());
            break;
        }
        anatomy.chunks.push(at..end);
        at = end;
    }
    anatomy
}

fn tiff(bytes: &[u8], high_first: bool) -> Anatomy {
    let mut anatomy = Anatomy { fields: vec![(4, 4, high_first)], ..Anatomy::default() };
    let Some(at) = word(bytes, 4, high_first) else { return anatomy };
    let entries = half(bytes, at, high_first).unwrap_or(0).min(100);
    anatomy.fields.push((at, 2, high_first));
    for entry in 0..entries {
        let at = at + 2 + 12 * entry;
        if at + 12 > bytes.len() {
            break;
        }
        anatomy.chunks.push(at..at + 12);
        let [tag, kind, count, value] = [(0, 2), (2, 2), (4, 4), (8, 4)];
        for (field, width) in [tag, kind, count, value, value, (8, 2)] {
            anatomy.fields.push((at + field, width, high_first));
        }
    }
    anatomy
}

fn bmp() -> Anatomy {
    let words = [2, 10, 14, 18, 22, 30, 34, 46, 50].map(|at| (at, 4, false));
    let halves = [26, 28].map(|at| (at, 2, false));
    Anatomy { fields: [&words[..], &halves].concat(), chunks: std::iter::once(14..54).collect() }
}

fn gif(bytes: &[u8]) -> Anatomy {
    let mut fields = vec![(6, 2, false), (8, 2, false), (10, 2, false), (12, 2, false)];
    // Where an image could begin: its place and sides, and the size of its first code.
    for at in (13..bytes.len()).filter(|&at| bytes[at] == b',').take(20) {
        fields.extend([1, 3, 5, 7, 9].map(|field| (at + field, 2, false)));
    }
    Anatomy { fields, ..Anatomy::default() }
}

fn zip(bytes: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy::default();
    for at in 0..bytes.len().saturating_sub(4) {
        let fields: &[(usize, usize)] = match bytes[at..at + 4] {
            // A member: flags, method, checksum, sizes, lengths of name and extra field.
            [b'P', b'K', 3, 4] => &[(6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
            // The same in the directory, and where the member is.
            [b'P', b'K', 1, 2] => {
                &[(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)]
            }
            // The directory's end: counts, size, place.
            [b'P', b'K', 5, 6] => &[(8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
            _ => continue,
        };
        anatomy.fields.extend(fields.iter().map(|&(field, width)| (at + field, width, false)));
        if let Some(last) = anatomy.chunks.last_mut() {
            last.end = at;
        }
        anatomy.chunks.push(at..bytes.len());
    }
    anatomy
}

/// Another word or number in the header of a `.safetensors`, whose length stays right.
fn header(bytes: &mut Vec<u8>, random: &mut Random) {
    let length = word(bytes, 0, false).unwrap_or(0).min(bytes.len() - 8);
    let Ok(text) = std::str::from_utf8(&bytes[8..8 + length]) else { return };
    let text = reworded(text, bytes.len() as u64, random);
    bytes[..8].copy_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.splice(8..8 + length, text.into_bytes());
}

/// JSON with another word or number in it.
fn reworded(text: &str, length: u64, random: &mut Random) -> String {
    let mut text = text.to_owned();
    if random.below(3) == 0 {
        let words = [
            ("\"F32\"", "\"F16\""),
            ("\"F16\"", "\"BF16\""),
            ("\"F32\"", "\"I64\""),
            ("\"F16\"", "\"F64\""),
            (".weight", ".bias"),
            ("silu", "identity"),
            ("model.1", "model.2"),
            (".cv1", ".cv2"),
            ("[", "[]"),
            ("]", ",1]"),
            ("detect", "segment"),
            ("haul.model/1", "haul.model/2"),
            ("\"", "\\u0000"),
            ("{", "{\"x\":"),
            ("true", "false"),
            ("null", "{}"),
            ("\n", ""),
            ("}", "}\n"),
            ("1", "-1"),
            ("0.", "1e999"),
            (".jpg", "\\ud800"),
        ];
        let (from, to) = *random.of(&words);
        let places: Vec<usize> = text.match_indices(from).map(|(at, _)| at).collect();
        if !places.is_empty() {
            let at = *random.of(&places);
            text.replace_range(at..at + from.len(), to);
        }
    } else {
        let mut numbers = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let digits = text.as_bytes()[at..].iter().take_while(|b| b.is_ascii_digit()).count();
            if digits > 0 {
                numbers.push(at..at + digits);
            }
            at += digits + 1;
        }
        if !numbers.is_empty() {
            let number = random.of(&numbers).clone();
            let was: u64 = text[number.clone()].parse().unwrap_or(0);
            let values = [
                0,
                1,
                was.wrapping_add(1),
                was.wrapping_sub(1),
                was.wrapping_mul(2),
                u64::MAX,
                u64::MAX / 4,
                1 << 31,
                1 << 40,
                length,
                random.below(100) as u64,
            ];
            text.replace_range(number, &random.of(&values).to_string());
        }
    }
    text
}

fn safetensors(bytes: &[u8]) -> Anatomy {
    let mut anatomy = Anatomy { fields: vec![(0, 8, false), (0, 2, false)], ..Anatomy::default() };
    let header = word(bytes, 0, false).unwrap_or(0).min(bytes.len().saturating_sub(8));
    let header = 8..8 + header;
    // Each number of the header as a field of digits; each entry as a chunk.
    let (mut start, mut digits) = (header.start, None);
    for at in header {
        match (bytes[at].is_ascii_digit(), digits) {
            (true, None) => digits = Some(at),
            (false, Some(first)) => {
                anatomy.fields.push((first, (at - first).min(8), true));
                digits = None;
            }
            _ => {}
        }
        if bytes[at] == b'}' || bytes[at] == b',' {
            anatomy.chunks.push(start..at + 1);
            start = at + 1;
        }
    }
    anatomy
}
