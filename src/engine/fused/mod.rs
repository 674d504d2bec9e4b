//! Our own executor for CPUs: the whole network planned at once.
//!
//! How a network becomes fast, in the order of the files:
//! 1. `lower`: slices, concatenations, sums and upsampling disappear into the convolutions.
//! 2. `pack`: normalisation is folded into the weights, which are laid out as kernels read them;
//!    `weights`: or they were packed before, and are mapped from a file.
//! 3. `plan`: for an input size, every tensor gets its place in one arena, and rows are worked on
//!    depth first in strips, so that what is written is read again while in the cache.
//! 4. `exec`: the steps of the plan, handed to the kernels of this CPU.
//!
//! The hot path is [`Worker::run`]: bytes of a picture in, candidates out, nothing allocated.

mod custom_op;
mod dense;
mod exec;
mod finds;
mod lower;
mod pack;
mod plan;
mod profile;
#[cfg(test)]
pub(super) mod tests;
mod weights;
mod worker;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use super::api::{Engine, EngineError, Worker};
use crate::kernels::{Crew, Kernels, Team, Tier};
use crate::yolo::{Graph, Network};
use exec::Program;
use lower::Net;
use pack::Index;
use weights::Weights;

pub use custom_op::HeadOp;
pub use dense::Dense;
pub use plan::Strips;
pub use profile::{Layer, Profile};
pub use weights::{PackedFile, Packing, form, packed};
pub use worker::FusedWorker;

/// The fused executor of one network on one tier of kernels.
pub struct Fused {
    shared: Arc<Shared>,
}

/// Beside the arena a worker has its lists, its stack and its share of the plans.
const BESIDES: u64 = 2 << 20;

/// What workers share.
struct Shared {
    net: Net,
    index: Index,
    weights: Weights,
    kernels: Kernels,
    strips: Strips,
    /// Plans by (width, height). The hot path looks in its own list first.
    programs: Mutex<HashMap<(usize, usize), Arc<Program>>>,
}

impl Fused {
    /// Prepares `network` for the kernels of `tier`.
    ///
    /// # Errors
    /// [`EngineError::Tier`] where this CPU has no such kernels; else the convolution at fault.
    pub fn new(network: &Network, tier: Tier) -> Result<Self, EngineError> {
        Self::with_strips(network, tier, Strips::default())
    }

    /// The same with another schedule, which changes speed and nothing else.
    ///
    /// # Errors
    /// As [`Fused::new`].
    pub fn with_strips(network: &Network, tier: Tier, strips: Strips) -> Result<Self, EngineError> {
        Self::make(&network.graph, tier, strips, |net, index| {
            pack::pack(network, net, index).map(Weights::Own)
        })
    }

    /// Takes weights that [`packed`] has made before from a file.
    ///
    /// # Errors
    /// As [`Fused::new`], and [`EngineError::Packed`] where they are not what `graph` and `tier` need.
    pub fn from_packed(
        graph: &Graph,
        tier: Tier,
        packed: &PackedFile<'_>,
    ) -> Result<Self, EngineError> {
        Self::make(graph, tier, Strips::default(), |net, index| {
            weights::map(packed, tier, net, index)
        })
    }

    fn make(
        graph: &Graph,
        tier: Tier,
        strips: Strips,
        weights: impl FnOnce(&Net, &Index) -> Result<Weights, EngineError>,
    ) -> Result<Self, EngineError> {
        let kernels = Kernels::new(tier).ok_or(EngineError::Tier { tier: tier.name() })?;
        let net = lower::lower(graph, tier)?;
        let index = pack::index(&net);
        let weights = weights(&net, &index)?;
        let programs = Mutex::new(HashMap::new());
        Ok(Self { shared: Arc::new(Shared { net, index, weights, kernels, strips, programs }) })
    }

    /// A worker with the head's raw numbers besides.
    ///
    /// # Errors
    /// When its memory cannot be had.
    pub fn fused_worker(&self) -> Result<FusedWorker, EngineError> {
        FusedWorker::new(self.shared.clone(), None, None)
    }

    /// A worker that has `threads` threads of its own work on one picture at a time, each convolution
    /// divided among them: for measurements and tests of what [`Engine::member`] does where there
    /// are idle workers. The results are the same bits.
    ///
    /// # Errors
    /// When its memory or threads cannot be had.
    pub fn team_worker(&self, threads: NonZeroUsize) -> Result<FusedWorker, EngineError> {
        let kernels = self.shared.kernels;
        let crew = Crew::new(threads, move || kernels.idle());
        let crew = crew.map_err(|source| EngineError::Execute {
            step: "starting threads".into(),
            source: Box::new(source),
        })?;
        FusedWorker::new(self.shared.clone(), Some(crew.team().clone()), Some(crew))
    }

    /// The kernels it runs on.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.shared.kernels.tier()
    }
}

impl Shared {
    fn program(&self, width: usize, height: usize) -> Arc<Program> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let program = programs.entry((width, height)).or_insert_with(|| {
            let plan = plan::plan(&self.net, width, height, self.strips);
            Arc::new(Program::new(&self.net, plan, &self.index.blocks))
        });
        program.clone()
    }
}

impl Engine for Fused {
    fn numeric_class(&self) -> &str {
        self.shared.kernels.tier().numeric_class()
    }

    fn weight_bytes(&self) -> u64 {
        self.shared.weights.bytes().len() as u64
    }

    fn scratch_bytes(&self, width: usize, height: usize) -> u64 {
        let program = self.shared.program(width, height);
        (program.plan.bytes + program.plan.scratch) as u64 + BESIDES
    }

    fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
        Ok(Box::new(self.fused_worker()?))
    }

    fn member(&self, team: &Arc<Team>) -> Result<Box<dyn Worker>, EngineError> {
        let team = self.shared.kernels.can_share().then(|| team.clone());
        Ok(Box::new(FusedWorker::new(self.shared.clone(), team, None)?))
    }
}
