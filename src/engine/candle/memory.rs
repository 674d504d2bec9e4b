//! How much memory one picture takes: the executor's own schedule, in bytes.

use crate::yolo::{Graph, Op};

/// Peak bytes of activations and temporaries for a picture of this size.
///
/// Walks the graph as the executor does and adds up, at each step, what is alive and what candle
/// allocates besides, as read in candle-core 0.11.1's `cpu_backend/conv2d.rs`:
/// - 1 × 1 kernels copy the input, keep the product and copy it to the output;
/// - 3 × 3 kernels copy the input to NHWC and the kernel, then work in tiles of 512 pixels
///   (im2col matrix, product), written to the output;
/// - bias and SiLU each make a new tensor while the old one is alive;
/// - concat and padding copy.
///
/// Measured by tests/memory.rs as the growth of a process's VmHWM, in MiB, the same after 3 and
/// after 12 pictures: 18.3 where this says 22.3 (n, 640 × 640), 110 and 116 (n, 1280 × 1280),
/// 30.7 and 38.0 (s, 640 × 640), 188 and 208 (s, 1280 × 1280), 45.8 and 55.1 (m, 640 × 640).
pub(super) fn peak(graph: &Graph, width: usize, height: usize) -> u64 {
    let size = |index: usize| {
        let node = &graph.nodes[index];
        let (w, h) = ((width / node.stride) as u64, (height / node.stride) as u64);
        4 * node.channels as u64 * w * h
    };
    // A slice is a view: it keeps what it was cut from.
    let owner = |mut index: usize| {
        while let Op::Slice { .. } = graph.nodes[index].op {
            index = graph.nodes[index].inputs[0];
        }
        index
    };
    let mut last = vec![0; graph.nodes.len()];
    for (value, &use_) in graph.last_uses().iter().enumerate() {
        last[owner(value)] = use_.max(last[owner(value)]);
    }
    for output in &graph.outputs {
        last[owner(output.features)] = usize::MAX;
    }

    // The f32 planes and, while they are filled, the caller's bytes are the caller's.
    let mut alive = size(0);
    let mut peak = alive;
    for (index, node) in graph.nodes.iter().enumerate().skip(1) {
        let out = size(index);
        let extra = match &node.op {
            Op::Conv(conv) => {
                let input = size(node.inputs[0]);
                let k = (conv.cin * conv.kernel * conv.kernel) as u64;
                let convolving = if conv.kernel == 1 {
                    input + 2 * out
                } else {
                    let tile = 4 * 512 * (k + conv.cout as u64);
                    // gemm packs blocks of both operands; their size is bounded by the caches.
                    input + out + 4 * k * conv.cout as u64 + tile
                };
                // product + bias → sum → SiLU: two at a time.
                convolving.max(2 * out)
            }
            Op::Slice { .. } | Op::Input => 0,
            // Both directions padded by copies, each two small pieces and their concatenation.
            Op::MaxPool5 => 4 * out,
            Op::Add | Op::Concat | Op::Upsample2 => out,
        };
        peak = peak.max(alive + extra);
        if !matches!(node.op, Op::Slice { .. }) {
            alive += out;
        }
        for (value, end) in last.iter_mut().enumerate().take(index + 1) {
            if *end == index && owner(value) == value {
                alive = alive.saturating_sub(size(value));
                *end = 0;
            }
        }
    }
    // The head's numbers are copied out once more, beside the tensors they come from.
    let head: u64 = graph.outputs.iter().map(|o| size(o.boxes) + size(o.scores)).sum();
    let peak = peak.max(alive + head);
    peak + if peak > ONE_HEAP { peak * 5 / 8 } else { peak / 16 } + SLACK
}

/// Packing buffers of gemm, small vectors.
const SLACK: u64 = 4 << 20;

/// glibc gives a thread heaps of 64 MiB. What does not fit into one is spread over several with
/// holes between, which cost half as much again in the measurements above.
const ONE_HEAP: u64 = 56 << 20;
