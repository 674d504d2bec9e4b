//! The plan, as values: which objects make which mini-batch, and the text of its segments.
//!
//! Everything here is a pure function of keys and sizes in listing order, so that several listers
//! of the same input cut the same segments. Reading and publishing is `planner`'s.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::line::Meta;
use crate::store::{Identity, Key, LinkFault, Object, Skip};

/// Whole mini-batches in a segment; the last segment may have fewer.
pub(super) const SEGMENT_BATCHES: usize = 64;

/// The version of the segments' text.
pub const PLAN_SCHEMA: &str = "haul.plan/1";

/// How much one mini-batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of pictures; one larger picture is a mini-batch of its own.
    pub payload: u64,
    /// Pictures.
    pub pictures: usize,
}

/// The unit of commit: some objects in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Position in the plan, from 0.
    pub id: u64,
    /// Its pictures.
    pub objects: Vec<Object>,
}

impl Batch {
    /// The sum of the sizes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // A plan that somebody has edited may say sizes that no disk has.
        self.objects.iter().fold(0, |sum, object| sum.saturating_add(object.size))
    }
}

/// The unit in which a plan is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Position in the chain, from 0.
    pub number: u64,
    /// Digest of the segment before it.
    pub previous: Option<String>,
    /// Its mini-batches, in order.
    pub batches: Vec<Batch>,
    /// What was counted and not planned, up to its last key.
    pub skipped: BTreeMap<Skip, u64>,
    /// Whether the plan ends here.
    pub last: bool,
}

impl Segment {
    /// The last key it plans.
    #[must_use]
    pub fn last_key(&self) -> Option<&Key> {
        Some(&self.batches.last()?.objects.last()?.key)
    }

    /// The first key it plans.
    #[must_use]
    pub fn first_key(&self) -> Option<&Key> {
        Some(&self.batches.first()?.objects.first()?.key)
    }

    /// How many pictures it plans.
    #[must_use]
    pub fn pictures(&self) -> u64 {
        self.batches.iter().map(|batch| batch.objects.len() as u64).sum()
    }

    /// How many bytes it plans.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.batches.iter().fold(0, |sum, batch| sum.saturating_add(batch.bytes()))
    }

    /// The segment's text: a head, a line for each mini-batch, a foot.
    ///
    /// # Panics
    /// Never: every value has a JSON form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = Head {
            schema: PLAN_SCHEMA.to_owned(),
            segment: self.number,
            previous: self.previous.clone(),
        };
        let foot = Foot {
            batches: self.batches.len() as u64,
            pictures: self.pictures(),
            bytes: self.bytes(),
            first: self.first_key().map(KeyText::of),
            last: self.last_key().map(KeyText::of),
            skipped: self.skipped.iter().map(|(k, v)| (k.as_str().to_owned(), *v)).collect(),
            end: self.last,
        };
        let lines = self.batches.iter().map(|batch| BatchLine {
            batch: batch.id,
            pictures: batch.objects.iter().map(ObjectText::of).collect(),
        });
        let mut text = Vec::new();
        let mut add = |line: serde_json::Result<Vec<u8>>| {
            text.extend(line.expect("plan lines have string keys. This is a bug."));
            text.push(b'\n');
        };
        add(serde_json::to_vec(&head));
        lines.for_each(|line| add(serde_json::to_vec(&line)));
        add(serde_json::to_vec(&foot));
        text
    }

    /// Reads a segment's text, and checks it against itself.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn decode(text: &[u8]) -> Result<Segment, String> {
        let mut lines: Vec<&[u8]> = text
            .strip_suffix(b"\n")
            .ok_or("its last line is torn")?
            .split(|&b| b == b'\n')
            .collect();
        let foot = lines.pop().filter(|_| !lines.is_empty()).ok_or("it has no foot")?;
        let head: Head = parse(lines[0])?;
        let foot: Foot = parse(foot)?;
        if head.schema != PLAN_SCHEMA {
            let schema = head.schema;
            return Err(format!("its schema is {schema}; this haul reads {PLAN_SCHEMA}"));
        }
        let mut batches = Vec::with_capacity(lines.len() - 1);
        for line in &lines[1..] {
            let line: BatchLine = parse(line)?;
            let objects: Result<Vec<Object>, String> =
                line.pictures.into_iter().map(ObjectText::object).collect();
            batches.push(Batch { id: line.batch, objects: objects? });
        }
        let skipped = Skip::ALL
            .into_iter()
            .filter_map(|skip| Some((skip, *foot.skipped.get(skip.as_str())?)))
            .collect();
        let segment = Segment {
            number: head.segment,
            previous: head.previous,
            batches,
            skipped,
            last: foot.end,
        };
        let counted = (segment.batches.len() as u64, segment.pictures(), segment.bytes());
        if counted != (foot.batches, foot.pictures, foot.bytes) {
            return Err("its counts do not match its lines".to_owned());
        }
        let keys: Vec<&Key> =
            segment.batches.iter().flat_map(|b| &b.objects).map(|o| &o.key).collect();
        if !keys.is_sorted_by(|a, b| a < b) {
            return Err("its keys are not in byte order".to_owned());
        }
        Ok(segment)
    }
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| format!("a line of it cannot be read: {error}"))
}

/// The name of a segment's file.
#[must_use]
pub fn segment_name(number: u64) -> String {
    format!("_manifest/plan-{number:08}.jsonl")
}

/// Cuts a listing into mini-batches and segments.
#[derive(Debug)]
pub struct Cutter {
    caps: Caps,
    number: u64,
    next_batch: u64,
    batches: Vec<Batch>,
    open: Vec<Object>,
    open_bytes: u64,
    skipped: BTreeMap<Skip, u64>,
    // Counted since the last object: theirs is the segment of the next one, or a lister that goes
    // on after the last key would count them twice.
    skipped_since: BTreeMap<Skip, u64>,
}

impl Cutter {
    /// Starts at a segment and a mini-batch.
    #[must_use]
    pub fn new(caps: Caps, number: u64, next_batch: u64) -> Cutter {
        Cutter {
            caps,
            number,
            next_batch,
            batches: Vec::new(),
            open: Vec::new(),
            open_bytes: 0,
            skipped: BTreeMap::new(),
            skipped_since: BTreeMap::new(),
        }
    }

    /// Counts a name that is not planned.
    pub fn skip(&mut self, reason: Skip) {
        *self.skipped_since.entry(reason).or_default() += 1;
    }

    /// Takes the next object; gives the finished segment that it does not fit in, if that is so.
    pub fn push(&mut self, object: Object, previous: Option<&str>) -> Option<Segment> {
        let fits = self.open.len() < self.caps.pictures
            && self.open_bytes.saturating_add(object.size) <= self.caps.payload;
        let mut full = None;
        if !fits && !self.open.is_empty() {
            self.close_batch();
            if self.batches.len() == SEGMENT_BATCHES {
                full = Some(self.close_segment(previous, false));
            }
        }
        for (skip, count) in std::mem::take(&mut self.skipped_since) {
            *self.skipped.entry(skip).or_default() += count;
        }
        self.open_bytes += object.size;
        self.open.push(object);
        full
    }

    /// The last segment: whatever is left, maybe nothing.
    pub fn finish(mut self, previous: Option<&str>) -> Segment {
        if !self.open.is_empty() {
            self.close_batch();
        }
        for (skip, count) in std::mem::take(&mut self.skipped_since) {
            *self.skipped.entry(skip).or_default() += count;
        }
        self.close_segment(previous, true)
    }

    fn close_batch(&mut self) {
        self.batches.push(Batch { id: self.next_batch, objects: std::mem::take(&mut self.open) });
        self.next_batch += 1;
        self.open_bytes = 0;
    }

    fn close_segment(&mut self, previous: Option<&str>, last: bool) -> Segment {
        let segment = Segment {
            number: self.number,
            previous: previous.map(str::to_owned),
            batches: std::mem::take(&mut self.batches),
            skipped: std::mem::take(&mut self.skipped),
            last,
        };
        self.number += 1;
        segment
    }
}

/// What the whole plan amounts to: `_manifest/plan.json`, a pure function of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// Schema of this file and the segments.
    pub schema: String,
    /// Segments in the chain.
    pub segments: u64,
    /// Mini-batches.
    pub batches: u64,
    /// Pictures.
    pub pictures: u64,
    /// Bytes of the pictures.
    pub bytes: u64,
    /// Names that were counted and not planned, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Digest of the last segment, and so of the chain.
    pub sha256: String,
}

impl PlanSummary {
    /// Adds the next segment of the chain, whose text has the given digest.
    pub fn add(&mut self, segment: &Segment, sha256: &str) {
        self.schema = PLAN_SCHEMA.to_owned();
        self.segments += 1;
        self.batches += segment.batches.len() as u64;
        self.pictures += segment.pictures();
        self.bytes = self.bytes.saturating_add(segment.bytes());
        for (skip, count) in &segment.skipped {
            let sum = self.skipped.entry(skip.as_str().to_owned()).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.sha256 = sha256.to_owned();
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    schema: String,
    segment: u64,
    previous: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct BatchLine {
    batch: u64,
    pictures: Vec<ObjectText>,
}

#[derive(Serialize, Deserialize)]
struct Foot {
    batches: u64,
    pictures: u64,
    bytes: u64,
    first: Option<KeyText>,
    last: Option<KeyText>,
    skipped: BTreeMap<String, u64>,
    end: bool,
}

#[derive(Serialize, Deserialize)]
struct KeyText {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
}

impl KeyText {
    fn of(key: &Key) -> KeyText {
        let (key, key_b64) = key_text(key);
        KeyText { key, key_b64 }
    }
}

#[derive(Serialize, Deserialize)]
struct ObjectText {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime_ns: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    meta: Option<Meta>,
}

impl ObjectText {
    fn of(object: &Object) -> ObjectText {
        let (key, key_b64) = key_text(&object.key);
        let mut text = ObjectText {
            key,
            key_b64,
            size: object.size,
            mtime_ns: None,
            sha256: None,
            etag: None,
            fault: None,
            meta: object.meta.as_deref().map(|text| {
                serde_json::from_str(text).expect("meta is no object of texts. This is a bug.")
            }),
        };
        match &object.identity {
            Identity::Mtime(ns) => text.mtime_ns = Some(*ns),
            Identity::Size => {}
            Identity::Sha256(digest) => text.sha256 = Some(digest.clone()),
            Identity::Etag(tag) => text.etag = Some(tag.clone()),
            Identity::Link(LinkFault::Broken) => text.fault = Some("broken_link".to_owned()),
            Identity::Link(LinkFault::Outside) => text.fault = Some("outside_link".to_owned()),
            Identity::Missing => text.fault = Some("missing".to_owned()),
        }
        text
    }

    fn object(self) -> Result<Object, String> {
        let fault = self.fault.as_deref();
        let identity = match (self.mtime_ns, self.sha256, self.etag, fault) {
            (Some(ns), None, None, None) => Identity::Mtime(ns),
            (None, Some(digest), None, None) => Identity::Sha256(digest),
            (None, None, Some(tag), None) => Identity::Etag(tag),
            (None, None, None, None) => Identity::Size,
            (None, None, None, Some("broken_link")) => Identity::Link(LinkFault::Broken),
            (None, None, None, Some("outside_link")) => Identity::Link(LinkFault::Outside),
            (None, None, None, Some("missing")) => Identity::Missing,
            _ => return Err(format!("the identity of {:?} makes no sense", self.key)),
        };
        let meta = self.meta.map(|meta| meta.to_text());
        Ok(Object { key: key_of(self.key, self.key_b64)?, size: self.size, identity, meta })
    }
}

/// A key as JSON text, and in base64 where the text is not the key.
pub(super) fn key_text(key: &Key) -> (String, Option<String>) {
    match std::str::from_utf8(key.as_bytes()) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (key.to_text().into_owned(), Some(BASE64.encode(key.as_bytes()))),
    }
}

/// The key behind such text.
pub(super) fn key_of(text: String, base64: Option<String>) -> Result<Key, String> {
    match base64 {
        None => Ok(Key::new(text)),
        Some(code) => match BASE64.decode(&code) {
            Ok(bytes) => Ok(Key::new(bytes)),
            Err(error) => Err(format!("{code:?} is not base64: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(key: &str, size: u64) -> Object {
        Object { key: Key::from(key), size, identity: Identity::Mtime(7), meta: None }
    }

    fn cut(sizes: &[u64], caps: Caps) -> Vec<Segment> {
        let mut cutter = Cutter::new(caps, 0, 0);
        let mut segments: Vec<Segment> = Vec::new();
        for (index, &size) in sizes.iter().enumerate() {
            segments.extend(cutter.push(object(&format!("{index:06}"), size), None));
        }
        segments.push(cutter.finish(None));
        segments
    }

    #[test]
    fn a_bigger_picture_is_a_mini_batch_of_its_own() {
        let segments = cut(&[3, 3, 11, 3, 10, 0, 1], Caps { payload: 10, pictures: 3 });
        let sizes: Vec<Vec<u64>> = segments[0]
            .batches
            .iter()
            .map(|b| b.objects.iter().map(|o| o.size).collect())
            .collect();
        assert_eq!(sizes, [vec![3, 3], vec![11], vec![3], vec![10, 0], vec![1]]);
    }

    #[test]
    fn sizes_that_no_disk_has_are_no_panic() {
        let huge = cut(&[u64::MAX], Caps { payload: 1, pictures: 1 }).remove(0);
        let text = String::from_utf8(huge.encode()).unwrap();
        let twice = text.replace("[{", "[{\"key\":\"0\",\"size\":7,\"mtime_ns\":7},{");
        let twice = twice.replace("\"pictures\":1", "\"pictures\":2");
        let mut segment = Segment::decode(twice.as_bytes()).unwrap();
        assert_eq!((segment.pictures(), segment.bytes()), (2, u64::MAX));
        segment.skipped.insert(Skip::Hidden, u64::MAX);
        let mut summary = PlanSummary::default();
        summary.add(&segment, "");
        summary.add(&segment, "");
        assert_eq!((summary.bytes, summary.skipped["hidden"]), (u64::MAX, u64::MAX));
    }

    #[test]
    fn segments_hold_64_whole_mini_batches() {
        let segments = cut(&[1; 129], Caps { payload: 1, pictures: 9 });
        let counts: Vec<usize> = segments.iter().map(|s| s.batches.len()).collect();
        assert_eq!(counts, [64, 64, 1]);
        assert_eq!(segments.iter().map(|s| s.last).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(segments[2].batches[0].id, 128);
        assert_eq!(cut(&[], Caps { payload: 1, pictures: 1 })[0].batches.len(), 0);
    }

    #[test]
    fn names_skipped_after_the_last_key_belong_to_the_next_segment() {
        let mut cutter = Cutter::new(Caps { payload: 1, pictures: 1 }, 0, 0);
        for index in 0..64 {
            assert!(cutter.push(object(&format!("{index:02}"), 1), None).is_none());
        }
        cutter.skip(Skip::Foreign);
        let first = cutter.push(object("64", 1), None).unwrap();
        assert!(first.skipped.is_empty());
        assert_eq!(cutter.finish(None).skipped[&Skip::Foreign], 1);
    }

    #[test]
    fn any_key_and_identity_survives_the_text() {
        let identities = [
            Identity::Mtime(-5),
            Identity::Size,
            Identity::Sha256("ab".into()),
            Identity::Etag("d41d8cd98f00b204e9800998ecf8427e-2".into()),
            Identity::Link(LinkFault::Broken),
            Identity::Link(LinkFault::Outside),
            Identity::Missing,
        ];
        let keys: [&[u8]; 6] =
            [b"a\nb", b"b b", b"c\x01", b"d\xff\xfe", "é".as_bytes(), b"\xf0\x28"];
        let mut objects: Vec<Object> = keys
            .iter()
            .zip(identities)
            .map(|(key, identity)| Object { key: Key::new(*key), size: 1, identity, meta: None })
            .collect();
        objects[2].meta = Some(r#"{"site":"A \"1\"","a":"é"}"#.into());
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        let segment = Segment {
            number: 3,
            previous: Some("00".into()),
            batches: vec![Batch { id: 192, objects }],
            skipped: BTreeMap::from([(Skip::Hidden, 2)]),
            last: true,
        };
        assert_eq!(Segment::decode(&segment.encode()).unwrap(), segment);
    }

    #[test]
    fn damage_is_found() {
        let segment = &cut(&[1, 2, 3], Caps { payload: 3, pictures: 9 })[0];
        let text = segment.encode();
        for length in 0..text.len() {
            assert!(Segment::decode(&text[..length]).is_err(), "cut at {length}");
        }
        let swapped = String::from_utf8(text).unwrap().replace("000001", "000003");
        assert!(Segment::decode(swapped.as_bytes()).unwrap_err().contains("byte order"));
    }

    proptest! {
        #[test]
        fn listing_on_from_any_segment_gives_the_same_plan(
            sizes in prop::collection::vec(0u64..8, 0..700), payload in 1u64..12, pictures in 1usize..5
        ) {
            let caps = Caps { payload, pictures };
            let whole = cut(&sizes, caps);
            let planned: usize = whole.iter().flat_map(|s| &s.batches).map(|b| b.objects.len()).sum();
            prop_assert_eq!(planned, sizes.len());
            for segment in &whole[..whole.len() - 1] {
                let done: usize = whole[..=segment.number as usize]
                    .iter().flat_map(|s| &s.batches).map(|b| b.objects.len()).sum();
                let batches = (segment.number + 1) * SEGMENT_BATCHES as u64;
                let mut cutter = Cutter::new(caps, segment.number + 1, batches);
                let mut rest = Vec::new();
                for (index, &size) in sizes.iter().enumerate().skip(done) {
                    rest.extend(cutter.push(object(&format!("{index:06}"), size), None));
                }
                rest.push(cutter.finish(None));
                prop_assert_eq!(&rest[..], &whole[segment.number as usize + 1..]);
            }
        }
    }
}
