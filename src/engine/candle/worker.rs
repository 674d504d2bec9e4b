//! One thread's use of the reference executor.

use std::sync::Arc;

use super::super::api::{EngineError, Input, Worker};
use super::executor::Plan;
use crate::yolo::Candidate;

/// candle allocates as it goes, so there is nothing to keep between pictures.
pub(super) struct CandleWorker {
    pub(super) plan: Arc<Plan>,
}

impl Worker for CandleWorker {
    fn run(
        &mut self,
        input: Input<'_>,
        conf: f32,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), EngineError> {
        candidates.clear();
        input.check()?;
        let pixels = input.width * input.height;
        let mut planes = vec![0.0f32; 3 * pixels];
        let (r, rest) = planes.split_at_mut(pixels);
        let (g, b) = rest.split_at_mut(pixels);
        for (((rgb, r), g), b) in input.rgb.chunks_exact(3).zip(r).zip(g).zip(b) {
            *r = f32::from(rgb[0]) / 255.0;
            *g = f32::from(rgb[1]) / 255.0;
            *b = f32::from(rgb[2]) / 255.0;
        }
        let head = self.plan.head(planes, input.width, input.height)?;
        head.view().candidates(conf, candidates);
        Ok(())
    }
}
