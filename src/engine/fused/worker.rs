//! One thread's use of the fused executor.

use std::sync::Arc;

use super::super::api::{EngineError, Input, Worker};
use super::super::head::{RawHead, RawLevel};
use super::Shared;
use super::exec::{Machine, Observer, Program, Scratch, Source, Wanted};
use crate::kernels::{Crew, Hook, Team, no_hook};
use crate::yolo::{Candidate, Cell, logit_floor};

/// A worker: an arena, and the plans it has used.
pub struct FusedWorker {
    pub(super) shared: Arc<Shared>,
    pub(super) scratch: Scratch,
    /// The plan of the last picture; most have one size.
    program: Option<Arc<Program>>,
    pub(super) boxes: Vec<f32>,
    pub(super) scores: Vec<f32>,
    /// Threads that do nothing but help this worker.
    _crew: Option<Crew>,
}

impl FusedWorker {
    pub(super) fn new(
        shared: Arc<Shared>,
        team: Option<Arc<Team>>,
        crew: Option<Crew>,
    ) -> Result<Self, EngineError> {
        let scratch = Scratch::new(team).map_err(memory)?;
        let (boxes, scores) = (vec![0.0; 4 * shared.net.reg_max], vec![0.0; shared.net.classes]);
        Ok(FusedWorker { shared, scratch, program: None, boxes, scores, _crew: crew })
    }

    pub(super) fn execute(
        &mut self,
        (width, height): (usize, usize),
        source: Source<'_>,
        wanted: Wanted,
        hook: &Hook<'_>,
        observer: &mut impl Observer,
    ) -> Result<Arc<Program>, EngineError> {
        let fits = |p: &&Arc<Program>| (p.plan.width, p.plan.height) == (width, height);
        let program = match self.program.as_ref().filter(fits) {
            Some(program) => program.clone(),
            None => self.shared.program(width, height),
        };
        let Shared { net, kernels, weights, .. } = &*self.shared;
        let machine = Machine { net, kernels, weights: weights.bytes(), hook };
        program.run(machine, source, wanted, &mut self.scratch, observer).map_err(memory)?;
        self.program = Some(program.clone());
        Ok(program)
    }

    /// Fills all memory with NaN, so that a test sees whether any of it is read before written.
    #[cfg(test)]
    pub(super) fn poison(&mut self) {
        self.scratch.poison();
    }

    /// Runs the network on planes R, G, B of values 0..=1, each `height` rows of `width`, and
    /// gives all that the head says.
    ///
    /// # Errors
    /// [`EngineError::Input`] for a wrong size.
    pub fn head(
        &mut self,
        planes: &[f32],
        width: usize,
        height: usize,
    ) -> Result<RawHead, EngineError> {
        let wrong = |side: usize| side == 0 || !side.is_multiple_of(32);
        let values = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if wrong(width) || wrong(height) || values != Some(planes.len()) {
            return Err(EngineError::Input { width, height, bytes: planes.len() });
        }
        let source = Source::Planes(planes);
        let program = self.execute((width, height), source, Wanted::All, &no_hook, &mut ())?;
        let net = &self.shared.net;
        let take = |tensor| program.tensor(net, &self.scratch.arena, tensor);
        let level = |level: &super::lower::Level| RawLevel {
            stride: level.stride,
            width: width / level.stride,
            height: height / level.stride,
            boxes: take(level.boxes),
            scores: take(level.scores),
            features: take(level.features),
        };
        Ok(RawHead {
            levels: net.levels.iter().map(level).collect(),
            reg_max: net.reg_max,
            classes: net.classes,
        })
    }
}

fn memory(error: std::io::Error) -> EngineError {
    EngineError::Execute { step: "memory for activations".into(), source: Box::new(error) }
}

impl Worker for FusedWorker {
    fn idle(&mut self) {
        self.shared.kernels.idle();
    }

    fn assist(&mut self, until: &dyn Fn() -> bool) {
        if let Some(team) = &self.scratch.team {
            team.assist(&mut self.scratch.transformed, until);
        }
    }

    fn run(
        &mut self,
        input: Input<'_>,
        conf: f32,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), EngineError> {
        self.run_assisted(input, conf, candidates, &no_hook)
    }

    fn run_assisted(
        &mut self,
        input: Input<'_>,
        conf: f32,
        candidates: &mut Vec<Candidate>,
        hook: &Hook<'_>,
    ) -> Result<(), EngineError> {
        input.check()?;
        candidates.clear();
        let size = (input.width, input.height);
        let wanted = Wanted::Finds(logit_floor(conf));
        let program = self.execute(size, input.into(), wanted, hook, &mut ())?;
        let net = &self.shared.net;
        let mut first = 0;
        for (level, hits) in net.levels.iter().zip(&self.scratch.hits) {
            let (width, height) = (input.width / level.stride, input.height / level.stride);
            for &cell in hits {
                let arena = &self.scratch.arena;
                program.cell(net, arena, level.scores, cell as usize, &mut self.scores);
                program.cell(net, arena, level.boxes, cell as usize, &mut self.boxes);
                let cell = Cell {
                    anchor: first + cell,
                    x: cell as usize % width,
                    y: cell as usize / width,
                    stride: level.stride,
                };
                candidates.extend(cell.candidate(&self.boxes, &self.scores, conf));
            }
            first += (width * height) as u32;
        }
        Ok(())
    }
}
