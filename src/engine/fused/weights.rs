//! Where packed weights are: in memory, or in a file that was packed before.
//!
//! Packed weights are the bytes of one way to lay them out. What they are good for is said by
//! [`Packing`], and weights that were packed under another one are never used.

use std::fs::File;

use super::super::api::{EngineError, NUMERICS_VERSION};
use super::lower::{self, Net, Op};
use super::pack::{self, Index, PACKING_VERSION};
use crate::kernels::task::Element;
use crate::kernels::{Mapped, Memory, Tier};
use crate::yolo::Network;

/// How weights are laid out, and by which rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The form that a tier of kernels reads: a short name, the same for all networks.
    pub form: &'static str,
    /// Everything else that decides the bytes: versions, and a digest of where each weight lies.
    pub rules: String,
    /// Bytes they have.
    pub bytes: usize,
}

/// Names the form in which the kernels of `tier` read weights.
#[must_use]
pub fn form(tier: Tier) -> &'static str {
    match tier.element() {
        Element::Bf16 if tier.has_tiles() => "bf16-tiles",
        Element::Bf16 => "bf16-pairs",
        Element::F32 => "f32-winograd",
    }
}

/// The weights of `network` as the kernels of `tier` read them, whether this CPU has those or not.
///
/// # Errors
/// [`EngineError`] names the convolution whose weights could not be prepared.
pub fn packed(network: &Network, tier: Tier) -> Result<(Packing, Memory), EngineError> {
    let net = lower::lower(&network.graph, tier)?;
    let index = pack::index(&net);
    Ok((Packing::of(tier, &net, &index), pack::pack(network, &net, &index)?))
}

/// Weights that were packed before, in a file that is never altered.
#[derive(Debug)]
pub struct PackedFile<'a> {
    /// Open for reading.
    pub file: &'a File,
    /// Where they begin.
    pub offset: usize,
    /// How many bytes there are.
    pub bytes: usize,
    /// [`Packing::form`], as the file has it.
    pub form: &'a str,
    /// [`Packing::rules`], as the file has them.
    pub rules: &'a str,
}

/// Packed weights, shared by all workers.
pub(super) enum Weights {
    /// Packed by this process.
    Own(Memory),
    /// Packed before.
    Mapped(Mapped),
}

impl Weights {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Weights::Own(memory) => memory.bytes(),
            Weights::Mapped(mapped) => mapped.bytes(),
        }
    }
}

/// Maps weights that were packed before, if they are what `net` needs.
///
/// # Errors
/// [`EngineError::Packed`] says what they are not.
pub(super) fn map(
    packed: &PackedFile<'_>,
    tier: Tier,
    net: &Net,
    index: &Index,
) -> Result<Weights, EngineError> {
    let wrong = |reason: String| Err(EngineError::Packed { reason });
    let ours = Packing::of(tier, net, index);
    if packed.form != ours.form {
        return wrong(format!(
            "it is in the form {}, and {tier} kernels read {}",
            packed.form, ours.form
        ));
    }
    if packed.rules != ours.rules || packed.bytes != ours.bytes {
        return wrong("another version of haul made it".into());
    }
    match Mapped::new(packed.file, packed.offset, packed.bytes) {
        Ok(mapped) => Ok(Weights::Mapped(mapped)),
        Err(error) => wrong(format!("it cannot be mapped: {error}")),
    }
}

impl Packing {
    fn of(tier: Tier, net: &Net, index: &Index) -> Self {
        let rules = format!(
            "packing {PACKING_VERSION}, numerics {NUMERICS_VERSION}, layout {:016x}",
            layout(net, index)
        );
        Packing { form: form(tier), rules, bytes: index.bytes }
    }
}

/// A digest of where each weight goes: of everything that packing reads but the weights themselves.
/// It makes packs stale when the lowering changes, without anybody having to think of it.
fn layout(net: &Net, index: &Index) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let mut add = |number: usize| {
        for byte in (number as u64).to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    };
    add(usize::from(net.tiled));
    add(net.element.bytes());
    for (op, blocks) in net.ops.iter().zip(&index.blocks) {
        let Op::Conv(conv) = op else { continue };
        [conv.node, conv.kernel, conv.stride, conv.steps.len(), blocks.len()]
            .into_iter()
            .for_each(&mut add);
        [conv.winograd, conv.init.is_some()].into_iter().for_each(|flag| add(usize::from(flag)));
        for step in &conv.steps {
            let plane = net.tensors[step.tensor].planes[step.plane];
            let kind = net.tensors[step.tensor].kind;
            [step.first, step.count, plane.lanes, plane.used, kind as usize]
                .into_iter()
                .for_each(&mut add);
            [step.dy, step.dx].into_iter().for_each(|by| add(by.cast_unsigned()));
        }
        for ((part, plane), packed) in pack::outputs(net, conv).zip(blocks) {
            let kind = net.tensors[part.tensor].kind;
            [part.first, plane.first, plane.lanes, plane.used, kind as usize]
                .into_iter()
                .for_each(&mut add);
            [packed.bias, packed.weights].into_iter().for_each(&mut add);
        }
    }
    hash
}
