//! Weights as convolutions on a GPU read them.

use super::layers::{Conv, Segment};

/// The kernel as (channels of the sums, height, width, channels of the input), and the bias by channel
/// of the sums. Channels that only fill up are zero.
///
/// `kernel` is (cout, cin, height, width) and `bias` (cout), the normalisation folded in.
pub(super) fn pack(
    conv: &Conv,
    input_channels: usize,
    kernel: &[f32],
    bias: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let taps = conv.kernel * conv.kernel;
    let inputs: usize = conv.inputs.iter().map(|segment| segment.count).sum();
    let mut packed = vec![0.0; conv.channels * taps * input_channels];
    let mut biases = vec![0.0; conv.channels];
    for (out, row) in channels(&conv.outputs) {
        biases[row] = bias[out];
        for (input, column) in channels(&conv.inputs) {
            for tap in 0..taps {
                let value = kernel[(out * inputs + input) * taps + tap];
                packed[(row * taps + tap) * input_channels + column] = value;
            }
        }
    }
    (packed, biases)
}

/// Channels by the network's number, with their places in memory.
fn channels(segments: &[Segment]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let each = |segment: &Segment| {
        let Segment { first, count, at } = *segment;
        (0..count).map(move |i| (first + i, at + i))
    };
    segments.iter().flat_map(each)
}
