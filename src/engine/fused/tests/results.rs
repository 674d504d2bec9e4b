//! What comes out.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::super::{Fused, Strips};
use super::network::Recipe;
use super::{SIZES, bits, picture, schedules, single, tiers, worker};
use crate::engine::candle::Candle;
use crate::engine::{Engine, Input, RawLevel, Team, Worker};
use crate::kernels::{Cpu, Tier};
use crate::yolo::Candidate;

/// ‖a − b‖ / ‖b‖
fn relative(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |x: f64| x * x;
    let pairs = ours.iter().zip(theirs);
    let error: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = theirs.iter().map(|&b| square(f64::from(b))).sum();
    (error / norm).sqrt()
}

#[test]
fn the_schedule_changes_no_bit() {
    let recipe = Recipe::odd();
    let mut first = worker(&recipe, single(), Strips { up_to_stride: 0, ..Strips::default() });
    let expected: Vec<_> =
        SIZES.iter().map(|&(w, h)| bits(&first.head(&picture((w, h)), w, h).unwrap())).collect();
    for strips in schedules() {
        let mut other = worker(&recipe, single(), strips);
        for (&(w, h), expected) in SIZES.iter().zip(&expected) {
            // The large one is dear: some schedules are enough.
            if (w, h) == (480, 640) && strips.rows.is_some_and(|rows| rows < 96) {
                continue;
            }
            let ours = bits(&other.head(&picture((w, h)), w, h).unwrap());
            assert!(ours == *expected, "{w}x{h} {strips:?}");
        }
    }
}

#[test]
fn the_schedule_changes_no_bit_of_other_networks_and_tiers() {
    for recipe in Recipe::all() {
        for tier in tiers() {
            let mut expected = None;
            for strips in [
                Strips::default(),
                Strips { up_to_stride: 0, ..Strips::default() },
                Strips { up_to_stride: 32, rows: Some(32), ..Strips::default() },
                Strips { up_to_stride: 16, rows: Some(33), ..Strips::default() },
            ] {
                let mut other = worker(&recipe, tier, strips);
                let ours = bits(&other.head(&picture((96, 64)), 96, 64).unwrap());
                assert!(ours == *expected.get_or_insert(ours.clone()), "{tier} {strips:?}");
            }
        }
    }
}

#[test]
fn tiers_of_one_class_agree_bit_for_bit() {
    for recipe in Recipe::all() {
        let network = recipe.network();
        let mut first: Vec<(&str, usize, Vec<u32>)> = Vec::new();
        for tier in Tier::ALL.into_iter().filter(|&tier| Cpu::get().has(tier)) {
            let mut worker = Fused::new(&network, tier).unwrap().fused_worker().unwrap();
            // The naive one takes its time.
            let sizes = if tier == Tier::Reference { &SIZES[..1] } else { &SIZES[..] };
            for (index, &(w, h)) in sizes.iter().enumerate() {
                let ours = bits(&worker.head(&picture((w, h)), w, h).unwrap());
                let class = tier.numeric_class();
                match first.iter().find(|(c, i, _)| (*c, *i) == (class, index)) {
                    Some((.., expected)) => assert!(ours == *expected, "{tier} {w}x{h}"),
                    None => first.push((class, index, ours)),
                }
            }
        }
    }
}

#[test]
fn a_team_changes_no_bit() {
    for recipe in [Recipe::odd(), Recipe::all().remove(2)] {
        let network = recipe.network();
        for tier in tiers() {
            let fused = Fused::new(&network, tier).unwrap();
            let mut alone = fused.fused_worker().unwrap();
            for threads in [1, 2, 3] {
                let mut team = fused.team_worker(NonZeroUsize::new(threads).unwrap()).unwrap();
                for &(w, h) in &SIZES[..6] {
                    let expected = bits(&alone.head(&picture((w, h)), w, h).unwrap());
                    team.head(&picture((w, h)), w, h).unwrap();
                    team.poison();
                    let ours = bits(&team.head(&picture((w, h)), w, h).unwrap());
                    assert!(ours == expected, "{tier} {w}x{h} by {threads}");
                }
            }
        }
    }
}

#[test]
fn close_to_the_reference_executor() {
    for recipe in Recipe::all() {
        let network = recipe.network();
        let candle = Candle::new(&network).unwrap();
        let mut workers: Vec<_> =
            tiers().map(|tier| (tier, worker(&recipe, tier, Strips::default()))).collect();
        for (w, h) in SIZES {
            let theirs = candle.head(picture((w, h)), w, h).unwrap();
            for (tier, worker) in &mut workers {
                let ours = worker.head(&picture((w, h)), w, h).unwrap();
                // bf16 keeps 8 bits of what goes from layer to layer.
                let close = if tier.numeric_class().starts_with("f32") { 2e-5 } else { 5e-2 };
                let parts: [fn(&RawLevel) -> &[f32]; 3] =
                    [|l| &l.features, |l| &l.boxes, |l| &l.scores];
                for (a, b) in ours.levels.iter().zip(&theirs.levels) {
                    for (part, pick) in ["features", "boxes", "scores"].iter().zip(parts) {
                        let error = relative(pick(a), pick(b));
                        assert!(
                            error <= close,
                            "{:?} {tier} {w}x{h} stride {} {part}: {error:.1e}",
                            recipe.widths,
                            a.stride
                        );
                    }
                }
            }
        }
    }
}

/// Nothing that a run leaves in memory gets into the next one.
#[test]
fn what_is_stale_is_never_read() {
    for recipe in [Recipe::odd(), Recipe::all().remove(3)] {
        for tier in tiers() {
            for strips in [
                Strips::default(),
                Strips { up_to_stride: 0, ..Strips::default() },
                Strips { up_to_stride: 32, rows: Some(32), ..Strips::default() },
            ] {
                let mut used = worker(&recipe, tier, strips);
                // The largest first, so that the arena is longer than the others need.
                for &(w, h) in SIZES[..6].iter().rev() {
                    let fresh = worker(&recipe, tier, strips).head(&picture((w, h)), w, h).unwrap();
                    used.head(&picture((w, h)), w, h).unwrap();
                    used.poison();
                    let ours = used.head(&picture((w, h)), w, h).unwrap();
                    assert!(bits(&ours) == bits(&fresh), "{tier} {w}x{h} {strips:?}");
                    assert!(bits(&ours).iter().all(|&b| !f32::from_bits(b).is_nan()));
                }
            }
        }
    }
}

/// Bytes give the same as values 0..=1, and candidates are those of the head, though of the boxes only
/// those rows are made that finds need.
#[test]
fn the_hot_path_is_the_head_decoded() {
    let mut few = 0;
    for recipe in Recipe::all() {
        for tier in tiers() {
            let mut worker = worker(&recipe, tier, Strips::default());
            for (w, h) in [(96, 64), (32, 32), (160, 128), (64, 416)] {
                let rgb: Vec<u8> = (0..3 * w * h).map(|i| (i * 7 % 256) as u8).collect();
                let planes: Vec<f32> = (0..3)
                    .flat_map(|c| rgb[c..].iter().step_by(3).map(|&v| f32::from(v) / 255.0))
                    .collect();
                let head = worker.head(&planes, w, h).unwrap();
                let (mut scores, mut expected) = (Vec::new(), Vec::new());
                head.view().candidates(0.0, &mut expected);
                scores.extend(expected.iter().map(|found| found.score));
                scores.sort_by(|a, b| b.total_cmp(a));
                // The last ones are thresholds that the best, the best five, or a fifth pass.
                let few_pass =
                    [1, 5, scores.len() / 5].map(|rank| scores[rank.min(scores.len() - 1)]);
                let confs = [0.0, 0.001, 0.25, 0.5, 0.9, 0.9995, 1.0, -1.0, f32::NAN];
                for conf in confs.into_iter().chain(few_pass) {
                    let (mut expected, mut ours) = (Vec::new(), Vec::new());
                    head.view().candidates(conf, &mut expected);
                    few += usize::from((1..scores.len() / 8).contains(&expected.len()));
                    worker.poison();
                    ours.push(Candidate { anchor: 9, class: 9, score: 0.0, bbox: [0.0; 4] });
                    worker.run(Input { width: w, height: h, rgb: &rgb }, conf, &mut ours).unwrap();
                    assert_eq!(ours, expected, "{tier} {w}x{h} {conf}");
                }
            }
        }
    }
    assert!(few > 20, "{few} thresholds that few cells pass");
}

#[test]
fn pictures_of_other_sizes_are_refused() {
    let mut worker = worker(&Recipe::odd(), single(), Strips::default());
    for (w, h, bytes) in [(0, 0, 0), (32, 0, 0), (33, 32, 3168), (32, 16, 1536), (32, 32, 3071)] {
        let rgb = vec![0; bytes];
        let input = Input { width: w, height: h, rgb: &rgb };
        assert!(worker.run(input, 0.5, &mut Vec::new()).is_err(), "{w}x{h}");
        assert!(worker.head(&vec![0.0; bytes], w, h).is_err(), "{w}x{h}");
    }
    // A product that wraps round to what was given.
    assert!(worker.head(&[], 1 << 59, 32).is_err());
}

#[test]
fn whoever_assists_changes_no_bit() {
    let network = Recipe::odd().network();
    for tier in tiers() {
        let fused = Fused::new(&network, tier).unwrap();
        let shares = fused.shared.kernels.can_share();
        let team = Team::new(NonZeroUsize::new(3).unwrap());
        let rgb: Vec<u8> = (0..160 * 128 * 3).map(|i| (i * 7 % 251) as u8).collect();
        let input = Input { width: 160, height: 128, rgb: &rgb };
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        fused.worker().unwrap().run(input, 0.0, &mut expected).unwrap();
        assert!(!expected.is_empty());
        let (done, pieces) = (AtomicBool::new(false), AtomicUsize::new(0));
        let hook = |piece: &mut dyn FnMut()| {
            pieces.fetch_add(1, Ordering::Relaxed);
            piece();
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut assistant = fused.member(&team).unwrap();
                    while !done.load(Ordering::Relaxed) {
                        assistant.assist(&|| done.load(Ordering::Relaxed));
                        std::thread::yield_now();
                    }
                });
            }
            let mut leader = fused.member(&team).unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            // Until they have done their share, on tiers whose work can be shared.
            let enough = || !shares || pieces.load(Ordering::Relaxed) >= 100;
            for round in 0.. {
                leader.run_assisted(input, 0.0, &mut found, &hook).unwrap();
                if expected != found || enough() && round >= 20 || Instant::now() > deadline {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(expected == found, "{tier}");
        assert_eq!(pieces.into_inner() >= 100, shares, "{tier}");
    }
}
