//! The fused executor as a whole: its plans, and its results.
//!
//! Networks are small, of widths that no released model has, so that planes of every kind occur:
//! 16 and 32 lanes, full and not. Whatever the schedule, the bits are the same; whatever the plan,
//! a shadow of the arena ([`shadow`]) finds each number where it was left.

pub(in crate::engine) mod network;
mod packing;
mod plans;
mod results;
mod shadow;

use super::{Fused, FusedWorker, Strips};
use crate::engine::RawHead;
use crate::kernels::{Cpu, Tier};
use network::Recipe;

/// Sizes that the schedule finds awkward: one cell, one row of cells, one column, and usual ones.
const SIZES: [(usize, usize); 7] =
    [(32, 32), (64, 96), (96, 64), (160, 128), (640, 32), (32, 640), (480, 640)];

/// Schedules: nothing in strips, strips of given rows, and strips by cache.
fn schedules() -> Vec<Strips> {
    let usual = Strips::default();
    let mut all = vec![usual, Strips { up_to_stride: 0, ..usual }];
    for up_to_stride in [4, 8, 16, 32] {
        for rows in [Some(32), Some(64), Some(96), None] {
            all.push(Strips { up_to_stride, rows, ..usual });
        }
    }
    for (up_to_stride, cache) in [(1, 1 << 20), (2, 0), (8, 0), (8, 1 << 16), (32, 1 << 18)] {
        all.push(Strips { up_to_stride, cache, rows: None });
    }
    // Rows that no scale divides.
    all.extend([1, 7, 33].map(|rows| Strips { rows: Some(rows), ..usual }));
    all
}

/// The tiers of this CPU, but for the naive one, which takes minutes.
fn tiers() -> impl Iterator<Item = Tier> {
    Tier::ALL.into_iter().filter(|&tier| Cpu::get().has(tier) && tier != Tier::Reference)
}

/// The fastest one in single precision.
pub(super) fn single() -> Tier {
    tiers().find(|tier| tier.numeric_class().starts_with("f32")).unwrap()
}

pub(super) fn worker(recipe: &Recipe, tier: Tier, strips: Strips) -> FusedWorker {
    Fused::with_strips(&recipe.network(), tier, strips).unwrap().fused_worker().unwrap()
}

/// Everything the head says, as bits.
fn bits(head: &RawHead) -> Vec<u32> {
    let levels = head.levels.iter().flat_map(|l| [&l.boxes, &l.scores, &l.features]);
    levels.flatten().map(|x| x.to_bits()).collect()
}

/// A picture of planes of 0..=1.
pub(super) fn picture((width, height): (usize, usize)) -> Vec<f32> {
    network::noise("picture").take(3 * width * height).map(|x| (x as f32 + 1.0) / 2.0).collect()
}
