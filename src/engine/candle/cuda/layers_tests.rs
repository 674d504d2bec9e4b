//! The lowered network, executed naively in an arena of NaN, against candle's own execution.

use super::super::arena::{Arena, Shape, life};
use super::super::weights::pack;
use super::*;
use crate::engine::candle::Candle;
use crate::engine::fold::fold;
use crate::engine::fused::tests::network::{Recipe, noise};
use crate::yolo::{Network, Op as Node};

/// Executes `layers` on one batch; what a GPU does, without any of its means.
struct Naive<'a> {
    layers: &'a Layers,
    network: &'a Network,
    shape: Shape,
    arena: Arena,
    memory: Vec<f32>,
}

impl Naive<'_> {
    fn value(&self, tensor: Id, pixel: usize, channel: usize) -> f32 {
        let pitch = self.layers.tensors[tensor].channels;
        self.memory[self.arena.tensors[tensor] / 4 + pixel * pitch + channel]
    }

    fn put(&mut self, place: &Place, pixel: usize, width: usize, result: &[f32]) {
        let pitch = self.layers.tensors[place.tensor].channels;
        let base = self.arena.tensors[place.tensor] / 4;
        let (row, column) = (pixel / width, pixel % width);
        let pixels = match place.up {
            false => vec![pixel],
            true => (0..4)
                .map(|i| (2 * row + i / 2) * 2 * width + 2 * column + i % 2)
                .collect::<Vec<_>>(),
        };
        for pixel in pixels {
            let at = base + pixel * pitch + place.first;
            self.memory[at..at + place.channels]
                .copy_from_slice(&result[place.from..place.from + place.channels]);
        }
    }

    fn run(&mut self, pictures: &[Vec<f32>]) {
        let Shape { width, height, .. } = self.shape;
        let base = self.arena.tensors[self.layers.picture] / 4;
        for (n, planes) in pictures.iter().enumerate() {
            for pixel in 0..width * height {
                for c in 0..GROUP {
                    let value = if c < 3 { planes[c * width * height + pixel] } else { 0.0 };
                    self.memory[base + (n * width * height + pixel) * GROUP + c] = value;
                }
            }
        }
        for index in 0..self.layers.ops.len() {
            match &self.layers.ops[index] {
                Op::Conv(conv) => self.conv(index, conv),
                Op::Pool(pool) => self.pool(pool),
            }
        }
    }

    fn conv(&mut self, index: usize, conv: &Conv) {
        let Node::Conv(node) = &self.network.graph.nodes[conv.node].op else { panic!("a conv") };
        let (kernel, bias) = fold(self.network, node).unwrap();
        let cin = self.layers.tensors[conv.from].channels;
        let (weights, bias) = pack(conv, cin, &kernel, &bias);
        let input = self.layers.tensors[conv.from].stride;
        let (w, h) = (self.shape.width / input, self.shape.height / input);
        let (ow, oh) = (self.shape.width / conv.scale, self.shape.height / conv.scale);
        let pad = conv.kernel / 2;
        let sums = self.arena.sums[index].unwrap() / 4;
        for n in 0..self.shape.pictures {
            for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
                let pixel = (n * oh + y) * ow + x;
                for c in 0..conv.channels {
                    let mut sum = 0.0;
                    for (v, u) in
                        (0..conv.kernel).flat_map(|v| (0..conv.kernel).map(move |u| (v, u)))
                    {
                        let (iy, ix) = (y * conv.stride + v, x * conv.stride + u);
                        if iy < pad || ix < pad || iy - pad >= h || ix - pad >= w {
                            continue;
                        }
                        let from = (n * h + iy - pad) * w + ix - pad;
                        let tap = (c * conv.kernel + v) * conv.kernel + u;
                        for i in 0..cin {
                            sum += self.value(conv.from, from, i) * weights[tap * cin + i];
                        }
                    }
                    self.memory[sums + pixel * conv.channels + c] = sum;
                }
            }
        }
        for pixel in 0..self.shape.pixels(conv.scale) {
            let result: Vec<f32> = (0..conv.channels)
                .map(|c| {
                    let x = self.memory[sums + pixel * conv.channels + c] + bias[c];
                    let x = if conv.act == Act::Silu { x / (1.0 + (-x).exp()) } else { x };
                    let added = conv.residual.map(|v| self.value(v.tensor, pixel, v.first + c));
                    x + added.unwrap_or(0.0)
                })
                .collect();
            for place in &conv.places {
                self.put(place, pixel, ow, &result);
            }
        }
    }

    fn pool(&mut self, pool: &Pool) {
        let (w, h) = (self.shape.width / pool.scale, self.shape.height / pool.scale);
        for pixel in 0..self.shape.pixels(pool.scale) {
            let (x, y, top) = (pixel % w, pixel / w % h, pixel / w / h * h);
            let result: Vec<f32> = (0..pool.channels)
                .map(|c| {
                    let mut most = f32::NEG_INFINITY;
                    for v in y.saturating_sub(2)..(y + 3).min(h) {
                        for u in x.saturating_sub(2)..(x + 3).min(w) {
                            let value = (top + v) * w + u;
                            let value = self.value(pool.from.tensor, value, pool.from.first + c);
                            assert!(!value.is_nan(), "something was read that nobody wrote");
                            most = most.max(value);
                        }
                    }
                    most
                })
                .collect();
            for place in &pool.places {
                self.put(place, pixel, w, &result);
            }
        }
    }

    /// Logits of a picture as planes, as the reference has them.
    fn planes(&self, tensor: Id, stride: usize, picture: usize, channels: usize) -> Vec<f32> {
        let cells = self.shape.pixels(stride) / self.shape.pictures;
        (0..channels * cells)
            .map(|i| self.value(tensor, picture * cells + i % cells, i / cells))
            .collect()
    }
}

fn close(ours: &[f32], theirs: &[f32]) -> bool {
    let scale = theirs.iter().fold(1.0f32, |most, x| most.max(x.abs()));
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= 2e-4 * scale)
}

#[test]
fn the_lowered_network_is_the_network() {
    for (number, recipe) in Recipe::all().into_iter().enumerate() {
        let network = recipe.network();
        let layers = lower(&network.graph).unwrap();
        let candle = Candle::new(&network).unwrap();
        for (width, height) in [(32, 32), (96, 64)] {
            let shape = Shape { pictures: 2, width, height };
            let arena = Arena::new(&layers, shape, 4);
            let memory = vec![f32::NAN; arena.bytes / 4];
            let pictures: Vec<Vec<f32>> = ["first", "second"]
                .map(|name| noise(name).take(3 * width * height).map(|x| x as f32).collect())
                .to_vec();
            let mut naive = Naive { layers: &layers, network: &network, shape, arena, memory };
            naive.run(&pictures);
            for (n, planes) in pictures.into_iter().enumerate() {
                let head = candle.head(planes, width, height).unwrap();
                for (level, theirs) in layers.levels.iter().zip(&head.levels) {
                    let boxes = naive.planes(level.boxes, level.stride, n, 4 * layers.reg_max);
                    let scores = naive.planes(level.scores, level.stride, n, layers.classes);
                    assert!(close(&boxes, &theirs.boxes), "recipe {number}, boxes");
                    assert!(close(&scores, &theirs.scores), "recipe {number}, scores");
                }
            }
        }
    }
}

#[test]
fn tensors_that_live_together_lie_apart() {
    for recipe in Recipe::all() {
        let layers = lower(&recipe.network().graph).unwrap();
        let shape = Shape { pictures: 3, width: 160, height: 96 };
        let arena = Arena::new(&layers, shape, 2);
        let mut taken = Vec::new();
        for (id, tensor) in layers.tensors.iter().enumerate() {
            let bytes = shape.pixels(tensor.stride) * tensor.channels * 2;
            taken.push((arena.tensors[id], bytes, life(&layers, id)));
        }
        for (index, op) in layers.ops.iter().enumerate() {
            if let Op::Conv(conv) = op {
                let bytes = shape.pixels(conv.scale) * conv.channels * 2;
                taken.push((arena.sums[index].unwrap(), bytes, (index, index)));
            }
        }
        for (i, a) in taken.iter().enumerate() {
            assert!(a.0 % 256 == 0 && a.0 + a.1 <= arena.bytes);
            for b in &taken[..i] {
                let together = a.2.0 <= b.2.1 && b.2.0 <= a.2.1;
                assert!(!together || a.0 + a.1 <= b.0 || b.0 + b.1 <= a.0, "{a:?} {b:?}");
            }
        }
    }
}

#[test]
fn slices_concats_sums_and_upsampling_cost_nothing() {
    let recipe = Recipe::odd();
    let graph = recipe.network().graph;
    let layers = lower(&graph).unwrap();
    let convs = graph.convs().count();
    assert_eq!(layers.ops.len(), convs + 3, "convolutions and three pools");
    assert!(layers.ops.iter().all(|op| !op.places().is_empty()));
    let most = layers.ops.iter().map(|op| op.places().len()).max();
    assert_eq!(
        most,
        Some(3),
        "the halves of C2f: two places in its concat, and one for the first bottleneck"
    );
}
