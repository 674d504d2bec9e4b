//! Non-maximum suppression: of boxes that overlap much, the best stays.

use super::decode::Candidate;

/// What to keep.
#[derive(Clone, Debug, PartialEq)]
pub struct NmsOptions {
    /// Scores up to this are dropped, 0..=1.
    pub conf: f32,
    /// A box is dropped where it overlaps a kept one by more than this (intersection over union,
    /// 0..=1).
    pub iou: f32,
    /// At most so many are kept.
    pub max_det: usize,
    /// At most so many, the best, are looked at.
    pub max_nms: usize,
    /// Whether boxes of different classes suppress each other.
    pub agnostic: bool,
    /// Only these classes, if given.
    pub classes: Option<Vec<u32>>,
}

impl Default for NmsOptions {
    /// What Ultralytics' `predict` does.
    fn default() -> Self {
        Self { conf: 0.25, iou: 0.7, max_det: 300, max_nms: 30000, agnostic: false, classes: None }
    }
}

/// Leaves the kept candidates, by score descending, then class, then anchor.
///
/// [`Nms::run`] does the same without asking for memory each time.
pub fn nms(options: &NmsOptions, candidates: &mut Vec<Candidate>) {
    Nms::new().run(options, candidates);
}

/// Suppresses for one picture after another in the same memory.
#[derive(Debug, Default)]
pub struct Nms {
    order: Vec<u128>,
    kept: Vec<Candidate>,
    /// Kept boxes by class; those behind `classes` are memory of earlier pictures.
    of_class: Vec<Class>,
    classes: usize,
}

impl Nms {
    /// Without memory yet: the first pictures take it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves the kept candidates, by score descending, then class, then anchor.
    ///
    /// Neither a NaN score passes nor a box with a coordinate that is not finite.
    /// Each candidate is compared with the kept boxes (of its class) only, so the cost is bounded
    /// by `max_nms · max_det` overlaps: with the default 300, some milliseconds at worst.
    pub fn run(&mut self, options: &NmsOptions, candidates: &mut Vec<Candidate>) {
        candidates.retain(|c| {
            c.score > options.conf
                && c.bbox.iter().all(|v| v.is_finite())
                && options.classes.as_ref().is_none_or(|set| set.contains(&c.class))
        });
        self.order.clear();
        self.order.extend(candidates.iter().enumerate().map(|(index, c)| key(c, index)));
        self.order.sort_unstable();
        self.order.truncate(options.max_nms);
        self.kept.clear();
        self.classes = 0;
        for &key in &self.order {
            if self.kept.len() == options.max_det {
                break;
            }
            let c = candidates[key as u32 as usize];
            let class = if options.agnostic { 0 } else { c.class };
            if class_of(&mut self.of_class, &mut self.classes, class).admits(&c.bbox, options.iou) {
                self.kept.push(c);
            }
        }
        candidates.clear();
        candidates.extend_from_slice(&self.kept);
    }
}

/// Sorts as the result is sorted; its lowest 32 bits are the index.
fn key(c: &Candidate, index: usize) -> u128 {
    // As f32::total_cmp: a negative number's bits grow towards minus infinity.
    let bits = c.score.to_bits();
    let ascending = bits ^ (((bits as i32 >> 31) as u32) | 1 << 31);
    u128::from(!ascending) << 96
        | u128::from(c.class) << 64
        | u128::from(c.anchor) << 32
        | index as u128
}

/// The kept boxes of `class`, of which there may be none yet.
fn class_of<'a>(of_class: &'a mut Vec<Class>, used: &mut usize, class: u32) -> &'a mut Class {
    let known = of_class[..*used].iter().position(|of| of.class == class);
    let slot = known.unwrap_or_else(|| {
        if *used == of_class.len() {
            of_class.push(Class::default());
        }
        of_class[*used].begin(class);
        *used += 1;
        *used - 1
    });
    &mut of_class[slot]
}

/// The kept boxes of one class.
#[derive(Debug, Default)]
struct Class {
    class: u32,
    count: usize,
    blocks: Vec<Block>,
}

impl Class {
    fn begin(&mut self, class: u32) {
        (self.class, self.count) = (class, 0);
        self.blocks.clear();
    }

    /// Whether no kept box overlaps this one by more than `most`; if so, it is kept.
    fn admits(&mut self, bbox: &[f32; 4], most: f32) -> bool {
        let area = area(bbox);
        if self.blocks.iter().any(|block| block.overlaps(bbox, area, most)) {
            return false;
        }
        let lane = self.count % LANES;
        if lane == 0 {
            self.blocks.push(Block { area: [f32::NAN; LANES], ..Block::default() });
        }
        if let Some(block) = self.blocks.last_mut() {
            [block.x1[lane], block.y1[lane], block.x2[lane], block.y2[lane]] = *bbox;
            block.area[lane] = area;
        }
        self.count += 1;
        true
    }
}

/// Boxes that are compared together.
const LANES: usize = 8;

/// Boxes side by side, so that the compiler compares them in one go. A lane without a box has an
/// area that is NaN.
#[derive(Debug, Default)]
struct Block {
    x1: [f32; LANES],
    y1: [f32; LANES],
    x2: [f32; LANES],
    y2: [f32; LANES],
    area: [f32; LANES],
}

impl Block {
    /// Whether any of the boxes overlaps this one by more than `most`: by intersection over union,
    /// without the "+ 1 pixel" of older code. It is NaN where the union is zero or overflows, and
    /// in empty lanes, and NaN exceeds no threshold.
    fn overlaps(&self, bbox: &[f32; 4], area: f32, most: f32) -> bool {
        // Nothing here is NaN, so these need not look for it as f32::min and f32::max do.
        let less = |a: f32, b: f32| if a < b { a } else { b };
        let more = |a: f32, b: f32| if a > b { a } else { b };
        let mut any = false;
        for lane in 0..LANES {
            let width = less(self.x2[lane], bbox[2]) - more(self.x1[lane], bbox[0]);
            let height = less(self.y2[lane], bbox[3]) - more(self.y1[lane], bbox[1]);
            let inter = more(width, 0.0) * more(height, 0.0);
            any |= inter / (self.area[lane] + area - inter) > most;
        }
        any
    }
}

fn area(r: &[f32; 4]) -> f32 {
    (r[2] - r[0]) * (r[3] - r[1])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
        let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
        let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
        let inter = width * height;
        inter / (area(a) + area(b) - inter)
    }

    /// The definition: sort, then strike out, pair by pair.
    fn naive(options: &NmsOptions, all: &[Candidate]) -> Vec<Candidate> {
        let mut list: Vec<Candidate> = all
            .iter()
            .filter(|c| !c.score.is_nan() && c.score > options.conf)
            .filter(|c| !c.bbox.iter().any(|v| v.is_nan() || v.is_infinite()))
            .filter(|c| options.classes.as_ref().is_none_or(|set| set.contains(&c.class)))
            .copied()
            .collect();
        list.sort_by_key(|c| (c.class, c.anchor));
        list.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap());
        list.truncate(options.max_nms);
        let mut struck = vec![false; list.len()];
        for i in 0..list.len() {
            for j in i + 1..list.len() {
                let rivals = options.agnostic || list[i].class == list[j].class;
                if !struck[i] && rivals && iou(&list[i].bbox, &list[j].bbox) > options.iou {
                    struck[j] = true;
                }
            }
        }
        let kept = list.iter().zip(&struck).filter(|(_, struck)| !**struck).map(|(c, _)| *c);
        kept.take(options.max_det).collect()
    }

    fn coordinate() -> impl Strategy<Value = f32> {
        // Few values, so that ties, equal boxes and zero areas are common.
        prop_oneof![
            20 => (0u8..6).prop_map(|v| f32::from(v) * 10.0),
            2 => 0.0f32..60.0,
            1 => Just(f32::NAN),
            1 => Just(f32::INFINITY),
            1 => Just(f32::NEG_INFINITY),
            // Areas and unions that overflow.
            1 => Just(f32::MAX),
            1 => Just(-1e30f32),
            1 => Just(-0.0f32),
        ]
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let score = prop_oneof![
            8 => (0u8..5).prop_map(|v| f32::from(v) / 4.0),
            4 => 0.0f32..1.0,
            1 => Just(f32::NAN),
            1 => Just(-0.0f32),
        ];
        let one = (score, 0u32..3, prop::array::uniform4(coordinate()));
        prop::collection::vec(one, 0..120).prop_map(|list| {
            let candidate = |(i, (score, class, bbox)): (usize, (f32, u32, [f32; 4]))| Candidate {
                anchor: i as u32,
                class,
                score,
                bbox,
            };
            list.into_iter().enumerate().map(candidate).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn agrees_with_the_definition(
            list in candidates(),
            mut before in candidates(),
            conf in prop_oneof![Just(0.0f32), Just(0.25), 0.0f32..1.0],
            iou in prop_oneof![Just(0.0f32), Just(0.5), Just(1.0), 0.0f32..1.0],
            (max_det, max_nms) in (0usize..40, 0usize..110),
            agnostic: bool,
            classes in prop::option::of(prop::collection::vec(0u32..3, 0..3)),
        ) {
            let options = NmsOptions { conf, iou, max_det, max_nms, agnostic, classes };
            let mut ours = list.clone();
            // With the memory of another picture.
            let mut nms = Nms::new();
            nms.run(&NmsOptions { conf: 0.0, iou: 0.9, ..NmsOptions::default() }, &mut before);
            nms.run(&options, &mut ours);
            prop_assert_eq!(ours, naive(&options, &list));
        }
    }

    #[test]
    fn thirty_thousand_disjoint_boxes_take_no_second() {
        let mut list: Vec<Candidate> = (0..30000u32)
            .map(|anchor| {
                let (x, y) = ((anchor % 200) as f32 * 20.0, (anchor / 200) as f32 * 20.0);
                let score = 1.0 - anchor as f32 / 60000.0;
                Candidate { anchor, class: anchor % 3, score, bbox: [x, y, x + 10.0, y + 10.0] }
            })
            .collect();
        let started = std::time::Instant::now();
        nms(&NmsOptions::default(), &mut list);
        assert_eq!(list.len(), 300);
        assert!(started.elapsed().as_secs() < 1, "{:?}", started.elapsed());
    }
}
