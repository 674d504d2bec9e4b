//! The executor as a whole, on whatever answers as a GPU: a real one, or the emulator of
//! scripts/cuda/emulator.sh (CUDA_LIB_PATH). Skipped where there is neither.

use std::sync::Arc;

use super::{Cuda, count};
use crate::engine::candle::Candle;
use crate::engine::fused::tests::network::{Recipe, noise};
use crate::engine::{Arithmetic, Batch, Engine, Input, Precision, Slot};
use crate::yolo::{Candidate, Network};

const SIDE: usize = 96;

fn present() -> bool {
    if let Err(reason) = count() {
        println!("skipped: {reason}");
        return false;
    }
    true
}

fn arithmetic(precision: Precision, batch: usize) -> Arithmetic {
    Arithmetic { precision, batch: Some(batch), ..Arithmetic::default() }
}

fn open(network: &Network, precision: Precision, batch: usize) -> Cuda {
    Cuda::new(network, &[0], &arithmetic(precision, batch), None, SIDE).unwrap()
}

fn picture(name: &str, (width, height): (usize, usize)) -> Vec<u8> {
    noise(name).take(3 * width * height).map(|x| (127.5 * (x + 1.0)) as u8).collect()
}

fn slot(engine: &dyn Engine, picture: &[u8]) -> Slot {
    let mut slot = engine.slot(3 * SIDE * SIDE).unwrap();
    slot.bytes_mut()[..picture.len()].copy_from_slice(picture);
    slot
}

fn batch(engine: &Cuda, (width, height): (usize, usize), conf: f32, pictures: &[Vec<u8>]) -> Batch {
    let pictures = pictures.iter().map(|picture| slot(engine, picture)).collect();
    Batch { width, height, conf, pictures }
}

fn bits(candidates: &[Candidate]) -> Vec<[u32; 7]> {
    let bits = |c: &Candidate| {
        let [a, b, d, e] = c.bbox.map(f32::to_bits);
        [c.anchor, c.class, c.score.to_bits(), a, b, d, e]
    };
    candidates.iter().map(bits).collect()
}

/// Mean differences of scores and of sides of boxes, in pixels, of candidates with equal anchors.
fn differences(ours: &[Candidate], theirs: &[Candidate]) -> (f32, f32) {
    assert_eq!(ours.len(), theirs.len());
    let (mut score, mut side) = (0.0f32, 0.0f32);
    for (a, b) in ours.iter().zip(theirs) {
        assert_eq!(a.anchor, b.anchor);
        score += (a.score - b.score).abs();
        side += a.bbox.iter().zip(&b.bbox).map(|(a, b)| (a - b).abs()).sum::<f32>() / 4.0;
    }
    (score / ours.len() as f32, side / ours.len() as f32)
}

#[test]
fn all_cells_are_those_of_the_reference() {
    if !present() {
        return;
    }
    for (number, recipe) in Recipe::all().into_iter().enumerate() {
        let network = recipe.network();
        let mut reference = Candle::new(&network).unwrap().worker().unwrap();
        for (precision, score, side) in [
            (Precision::F32, 1e-4, 1e-2),
            (Precision::F16, 0.03, 3.0),
            (Precision::Bf16, 0.2, 12.0),
        ] {
            // Without any activation its numbers grow beyond what f16 holds.
            if number == 4 && precision == Precision::F16 {
                let asked = arithmetic(precision, 3);
                let error = Cuda::new(&network, &[0], &asked, None, SIDE).err().unwrap();
                assert!(error.to_string().contains("--precision bf16"), "{error}");
                continue;
            }
            let engine = open(&network, precision, 3);
            let mut lane = engine.lane(0).unwrap();
            for size in [(32, 32), (96, 64), (64, 96)] {
                let pictures = ["a", "b"].map(|name| picture(name, size)).to_vec();
                // Less than any score: every cell comes back, far more than come back at once.
                lane.submit(batch(&engine, size, -1.0, &pictures)).unwrap();
                let done = lane.finish().unwrap();
                assert_eq!((done.slots.len(), done.candidates.len()), (2, 2));
                for (rgb, ours) in pictures.iter().zip(&done.candidates) {
                    let mut theirs = Vec::new();
                    let input = Input { width: size.0, height: size.1, rgb };
                    reference.run(input, -1.0, &mut theirs).unwrap();
                    let (scores, sides) = differences(ours, &theirs);
                    println!("recipe {number}, {precision}, {size:?}: {scores:e}, {sides} px");
                    assert!(
                        scores <= score && sides <= side,
                        "recipe {number}, {precision}, {size:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn neighbours_places_and_order_change_no_bit() {
    if !present() {
        return;
    }
    let network = Recipe::odd().network();
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        let engine = open(&network, precision, 4);
        let sizes = [(96, 96), (64, 96), (96, 32), (96, 96)];
        let names: Vec<String> = (0..4).map(|i| format!("picture {i}")).collect();
        // One after another, each alone.
        let mut alone = Vec::new();
        let mut worker = engine.worker().unwrap();
        for size in sizes {
            for name in &names {
                let rgb = picture(name, size);
                let mut found = Vec::new();
                let input = Input { width: size.0, height: size.1, rgb: &rgb };
                worker.run(input, 0.3, &mut found).unwrap();
                alone.push(bits(&found));
            }
        }
        assert!(alone.iter().any(|found| !found.is_empty()));
        // In batches of one to four, other sizes between, two batches in flight, several times, so that
        // launches are recorded and launched again.
        let mut lane = engine.lane(0).unwrap();
        for round in 0..6 {
            let mut flying = Vec::new();
            for (i, &size) in sizes.iter().enumerate() {
                let taken = 1 + (i + round) % 4;
                let order: Vec<usize> = (0..taken).map(|place| (place + round) % 4).collect();
                let pictures: Vec<_> = order.iter().map(|&n| picture(&names[n], size)).collect();
                lane.submit(batch(&engine, size, 0.3, &pictures)).unwrap();
                flying.push((i, order));
                if flying.len() == 2 || i + 1 == sizes.len() {
                    for (i, order) in flying.drain(..) {
                        let done = lane.finish().unwrap();
                        for (place, n) in order.into_iter().enumerate() {
                            let found = bits(&done.candidates[place]);
                            assert!(
                                found == alone[4 * i + n],
                                "{precision}, round {round}, {i}, {n}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_class_is_found_again_or_refused() {
    if !present() {
        return;
    }
    let network = Recipe::odd().network();
    let first = open(&network, Precision::Auto, 2);
    let class = first.numeric_class().to_owned();
    assert!(class.starts_with("cuda-f16-b2-"), "{class}");
    let again = |class: &str, batch| {
        let arithmetic = Arithmetic { batch, ..Arithmetic::default() };
        Cuda::new(&network, &[0], &arithmetic, Some(class), SIDE)
    };
    assert_eq!(again(&class, None).unwrap().numeric_class(), class);
    // Another batch is another class: its fingerprint is refused elsewhere, with both names.
    assert!(again(&class, Some(3)).unwrap().numeric_class().starts_with("cuda-f16-b3-"));
    let other = format!("{}00000000", &class[..class.len() - 8]);
    let error = again(&other, None).err().unwrap().to_string();
    assert!(error.contains(&other) && error.contains(&class), "{error}");
    let single = open(&network, Precision::F32, 2);
    assert_ne!(single.numeric_class()[class.len() - 8..], class[class.len() - 8..]);
}

#[test]
fn wrong_batches_are_refused_and_harm_nothing() {
    if !present() {
        return;
    }
    let network = Recipe::odd().network();
    let engine: Arc<Cuda> = Arc::new(open(&network, Precision::F16, 2));
    let mut lane = engine.lane(0).unwrap();
    let good = picture("good", (64, 64));
    let three = [good.clone(), good.clone(), good];
    for (size, pictures) in [
        ((64, 64), &three[..]),
        ((64, 64), &three[..0]),
        ((0, 64), &three[..1]),
        ((48, 64), &three[..1]),
        ((128, 96), &three[..1]),
        ((usize::MAX - 31, 64), &three[..1]),
    ] {
        assert!(lane.submit(batch(&engine, size, 0.3, pictures)).is_err(), "{size:?}");
    }
    assert!(lane.finish().is_err(), "nothing was begun");
    lane.submit(batch(&engine, (64, 64), 0.3, &three[..1])).unwrap();
    let found = lane.finish().unwrap().candidates;
    lane.submit(batch(&engine, (64, 64), 0.3, &three[..2])).unwrap();
    let more = lane.finish().unwrap().candidates;
    assert_eq!(bits(&found[0]), bits(&more[1]));
    assert!(engine.lane(1).is_err());
    // Dropped with work in flight.
    lane.submit(batch(&engine, (64, 64), 0.3, &three[..2])).unwrap();
    drop(lane);
}
