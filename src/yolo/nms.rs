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
/// Neither a NaN score passes nor a box with a coordinate that is not finite.
/// Each candidate is compared with the kept boxes (of its class) only, so the cost is bounded by
/// `max_nms · max_det` overlaps: with the default 300, some ten milliseconds at worst.
pub fn nms(options: &NmsOptions, candidates: &mut Vec<Candidate>) {
    candidates.retain(|c| {
        c.score > options.conf
            && c.bbox.iter().all(|v| v.is_finite())
            && options.classes.as_ref().is_none_or(|set| set.contains(&c.class))
    });
    candidates.sort_unstable_by(|a, b| {
        // No NaN is left, and the descending order of the rest is total_cmp's.
        b.score.total_cmp(&a.score).then(a.class.cmp(&b.class)).then(a.anchor.cmp(&b.anchor))
    });
    candidates.truncate(options.max_nms);

    let mut kept_of_class: Vec<(u32, Vec<[f32; 4]>)> = Vec::new();
    let mut kept = 0;
    candidates.retain(|c| {
        if kept == options.max_det {
            return false;
        }
        let class = if options.agnostic { 0 } else { c.class };
        let slot = kept_of_class.iter().position(|(of, _)| *of == class).unwrap_or_else(|| {
            kept_of_class.push((class, Vec::new()));
            kept_of_class.len() - 1
        });
        let others = &mut kept_of_class[slot].1;
        if others.iter().any(|other| iou(other, &c.bbox) > options.iou) {
            return false;
        }
        others.push(c.bbox);
        kept += 1;
        true
    });
}

/// Intersection over union, without the "+ 1 pixel" of older code. NaN where the union is zero or
/// overflows, and NaN exceeds no threshold.
fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let inter = width * height;
    let area = |r: &[f32; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    inter / (area(a) + area(b) - inter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        prop::collection::vec(one, 0..60).prop_map(|list| {
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
            conf in prop_oneof![Just(0.0f32), Just(0.25), 0.0f32..1.0],
            iou in prop_oneof![Just(0.0f32), Just(0.5), Just(1.0), 0.0f32..1.0],
            (max_det, max_nms) in (0usize..20, 0usize..50),
            agnostic: bool,
            classes in prop::option::of(prop::collection::vec(0u32..3, 0..3)),
        ) {
            let options = NmsOptions { conf, iou, max_det, max_nms, agnostic, classes };
            let mut ours = list.clone();
            nms(&options, &mut ours);
            // Compared by anchor: NaN coordinates are not equal to themselves.
            let anchors = |list: &[Candidate]| list.iter().map(|c| c.anchor).collect::<Vec<_>>();
            prop_assert_eq!(anchors(&ours), anchors(&naive(&options, &list)));
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
