//! Small pictures of many shapes, and an engine that finds boxes in them by their pixels.

use haul::engine::{Engine, EngineError, Input, Worker};
use haul::yolo::Candidate;

use crate::double::Chance;

/// A bitmap whose pixels are the seed's.
pub(crate) fn bmp(width: u32, height: u32, seed: u64) -> Vec<u8> {
    let row = (3 * width).next_multiple_of(4);
    let size = 54 + row * height;
    let mut bytes = b"BM".to_vec();
    for field in [size, 0, 54, 40, width, height, 1 | 24 << 16, 0, row * height, 0, 0, 0, 0] {
        bytes.extend(field.to_le_bytes());
    }
    let mut chance = Chance(seed);
    bytes.resize_with(size as usize, || chance.below(256) as u8);
    bytes
}

/// Finds a few boxes that depend on every pixel and on where it is.
#[derive(Clone, Copy)]
pub(crate) struct ByPixels;

impl Engine for ByPixels {
    fn numeric_class(&self) -> &str {
        "by-pixels"
    }
    fn weight_bytes(&self) -> u64 {
        0
    }
    fn scratch_bytes(&self, _: usize, _: usize) -> u64 {
        0
    }
    fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
        Ok(Box::new(*self))
    }
}

impl Worker for ByPixels {
    fn run(
        &mut self,
        input: Input<'_>,
        conf: f32,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), EngineError> {
        input.check()?;
        candidates.clear();
        let sum = input.rgb.iter().fold(input.width as u64, |sum, &value| {
            (sum ^ u64::from(value)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut chance = Chance(sum);
        for anchor in 0..(1 + chance.below(6)) as u32 {
            let score = chance.below(1000) as f32 / 1000.0;
            let mut at = |side: usize| chance.below(side as u64) as f32;
            let (x, y) = (at(input.width), at(input.height));
            let bbox = [x, y, x + 1.0 + at(16), y + 1.0 + at(16)];
            if score > conf {
                candidates.push(Candidate { anchor, class: anchor % 3, score, bbox });
            }
        }
        Ok(())
    }
}
