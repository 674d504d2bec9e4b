//! Where the time of a picture goes, op by op.

use std::time::Instant;

use super::super::api::{EngineError, Input};
use super::Fused;
use super::exec::{Observer, Wanted};
use super::lower::{Conv, Net, Op};
use super::plan::Step;
use super::worker::FusedWorker;
use crate::kernels::no_hook;

/// An op of the network at an input size.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The convolution's name in the checkpoint, or what else is done.
    pub name: String,
    /// Kernel, channels, pixels; W where Winograd's scheme does it with fewer multiplications.
    pub shape: String,
    /// Multiplications and additions that a direct convolution takes, in 10⁹; 0 where none counts.
    pub gflop: f64,
}

/// Times of one picture.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Nanoseconds by layer, in the order of [`Fused::layers`].
    pub nanos: Vec<u64>,
    /// How often the clock was read for them. Each reading is in the times.
    pub readings: Vec<u64>,
    /// The whole picture.
    pub total: u64,
}

/// Adds up strips of an op.
struct Clock<'a> {
    last: Instant,
    profile: &'a mut Profile,
}

impl Observer for Clock<'_> {
    fn done(&mut self, step: &Step) {
        let now = Instant::now();
        let layer = match *step {
            Step::Run { op, .. } => op,
            // The last layer is what is done between the ops.
            _ => self.profile.nanos.len() - 1,
        };
        let nanos = now.duration_since(self.last).as_nanos();
        self.profile.nanos[layer] += u64::try_from(nanos).unwrap_or(u64::MAX);
        self.profile.readings[layer] += 1;
        self.last = now;
    }
}

impl Fused {
    /// What there is to time for a picture of this size: all ops in order, and at the end what is
    /// done between them.
    #[must_use]
    pub fn layers(&self, width: usize, height: usize) -> Vec<Layer> {
        let net = &self.shared.net;
        let mut layers: Vec<Layer> =
            net.ops.iter().map(|op| layer(net, op, width, height)).collect();
        let name = "borders, moving rows".to_owned();
        layers.push(Layer { name, shape: String::new(), gflop: 0.0 });
        layers
    }
}

impl FusedWorker {
    /// Runs the whole network and times it into `profile`, whose old contents go. (Otherwise box
    /// branches are done in part, and a share of the peak would say little of them.)
    ///
    /// # Errors
    /// As [`super::super::Worker::run`].
    pub fn profile(&mut self, input: Input<'_>, profile: &mut Profile) -> Result<(), EngineError> {
        input.check()?;
        let layers = self.shared.net.ops.len() + 1;
        for counts in [&mut profile.nanos, &mut profile.readings] {
            counts.clear();
            counts.resize(layers, 0);
        }
        let size = (input.width, input.height);
        let start = Instant::now();
        let mut clock = Clock { last: start, profile };
        self.execute(size, input.into(), Wanted::All, &no_hook, &mut clock)?;
        profile.total = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(())
    }
}

fn layer(net: &Net, op: &Op, width: usize, height: usize) -> Layer {
    let at = |stride: usize| format!("{}x{}", width / stride, height / stride);
    let plain = |name: &str, shape| Layer { name: name.to_owned(), shape, gflop: 0.0 };
    match op {
        Op::Convert { .. } => plain("picture to elements", at(1)),
        Op::Pool { to, .. } => {
            let to = &net.tensors[*to];
            plain("maximum of 5x5", format!("{} at {}", to.channels, at(to.stride)))
        }
        Op::Scan { level } => plain("scan of scores", at(net.levels[*level].stride)),
        Op::Conv(conv) => convolution(net, conv, (width, height)),
    }
}

fn convolution(net: &Net, conv: &Conv, (width, height): (usize, usize)) -> Layer {
    let inputs: usize = conv.terms.iter().map(|term| net.tensors[term.tensor].channels).sum();
    let outputs: usize = conv.parts.iter().map(|part| net.tensors[part.tensor].channels).sum();
    let (kernel, scale) = (conv.kernel, net.tensors[conv.parts[0].tensor].stride);
    let pixels = (width / scale) * (height / scale);
    let stride = if conv.stride == 1 { String::new() } else { format!(" s{}", conv.stride) };
    Layer {
        name: conv.name.clone(),
        shape: format!(
            "{kernel}x{kernel}{stride} {inputs}→{outputs} at {}x{}{}",
            width / scale,
            height / scale,
            if conv.winograd { " W" } else { "" }
        ),
        gflop: (2 * inputs * outputs * kernel * kernel * pixels) as f64 / 1e9,
    }
}
