//! Networks of any width and depth, with weights that look random.

use crate::yolo::{Act, Network, Tensor, Weights};

/// A YOLOv8 by its sizes.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Recipe {
    /// Channels at strides 2, 4, 8, 16, 32.
    pub(in crate::engine) widths: [usize; 5],
    /// Bottlenecks in layers 2, 4, 6, 8, 12, 15, 18, 21.
    pub(in crate::engine) depths: [usize; 8],
    /// Channels by which the halves of a C2f are wider than half of what it gives.
    pub(in crate::engine) wider: usize,
    pub(in crate::engine) classes: usize,
    pub(in crate::engine) reg_max: usize,
    pub(in crate::engine) act: fn(&str) -> Act,
}

/// SiLU everywhere.
pub(in crate::engine) fn silu(_: &str) -> Act {
    Act::Silu
}

/// Every third convolution without an activation.
pub(in crate::engine) fn mixed(name: &str) -> Act {
    let sum: usize = name.bytes().map(usize::from).sum();
    if sum.is_multiple_of(3) { Act::Identity } else { Act::Silu }
}

impl Recipe {
    /// A bit of everything: widths that fill no plane, deep blocks, both activations.
    pub(in crate::engine) fn odd() -> Self {
        Recipe {
            widths: [8, 24, 40, 100, 72],
            depths: [1, 2, 3, 1, 2, 1, 1, 3],
            wider: 2,
            classes: 17,
            reg_max: 8,
            act: mixed,
        }
    }

    /// That, the smallest scale's shape, and some between.
    pub(in crate::engine) fn all() -> Vec<Self> {
        let one = [1; 8];
        let n = [1, 2, 2, 1, 1, 1, 1, 1];
        vec![
            Self::odd(),
            Recipe {
                widths: [2, 4, 4, 6, 8],
                depths: one,
                wider: 0,
                classes: 1,
                reg_max: 16,
                act: silu,
            },
            Recipe {
                widths: [16, 32, 64, 128, 256],
                depths: n,
                wider: 0,
                classes: 80,
                reg_max: 16,
                act: silu,
            },
            Recipe {
                widths: [10, 18, 34, 50, 66],
                depths: [3, 1, 1, 2, 1, 2, 3, 1],
                wider: 5,
                classes: 3,
                reg_max: 2,
                act: silu,
            },
            Recipe {
                widths: [32, 16, 48, 80, 32],
                depths: one,
                wider: 0,
                classes: 100,
                reg_max: 11,
                act: |_| Act::Identity,
            },
        ]
    }

    pub(in crate::engine) fn network(&self) -> Network {
        let mut maker = Maker { weights: Weights::new() };
        let (w, d) = (&self.widths, &self.depths);
        maker.conv("model.0", 3, w[0], 3);
        for (i, layer) in [1, 3, 5, 7].into_iter().enumerate() {
            maker.conv(&format!("model.{layer}"), w[i], w[i + 1], 3);
            maker.c2f(layer + 1, (w[i + 1], w[i + 1]), d[i], self.wider);
        }
        let half = w[4] / 2;
        maker.conv("model.9.cv1", w[4], half, 1);
        maker.conv("model.9.cv2", 4 * half, w[4], 1);
        maker.c2f(12, (w[4] + w[3], w[3]), d[4], self.wider);
        maker.c2f(15, (w[3] + w[2], w[2]), d[5], self.wider);
        maker.conv("model.16", w[2], w[2], 3);
        maker.c2f(18, (w[2] + w[3], w[3]), d[6], self.wider);
        maker.conv("model.19", w[3], w[3], 3);
        maker.c2f(21, (w[3] + w[4], w[4]), d[7], self.wider);
        for (level, &cin) in w[2..].iter().enumerate() {
            for (branch, mid, out) in
                [("cv2", w[2] + 4, 4 * self.reg_max), ("cv3", w[2], self.classes)]
            {
                let name = format!("model.22.{branch}.{level}");
                maker.conv(&format!("{name}.0"), cin, mid, 3);
                maker.conv(&format!("{name}.1"), mid, mid, 3);
                maker.plain(&format!("{name}.2"), mid, out);
            }
        }
        let labels = (0..self.classes).map(|i| format!("class {i}")).collect();
        Network::new(maker.weights, labels, 1e-3, self.act).unwrap()
    }
}

/// Numbers in −1..1 that depend on a name only.
pub(in crate::engine) fn noise(name: &str) -> impl Iterator<Item = f64> + use<> {
    let mut state = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    })
}

struct Maker {
    weights: Weights,
}

impl Maker {
    fn put(&mut self, name: String, shape: &[usize], of: impl Fn(f64) -> f64) {
        let count = shape.iter().product();
        let data = noise(&name).take(count).map(|x| of(x) as f32).collect();
        self.weights.insert(name, Tensor { shape: shape.to_vec(), data });
    }

    fn conv(&mut self, name: &str, cin: usize, cout: usize, kernel: usize) {
        // Keeps the size of what goes through about the same.
        let scale = 1.6 * (3.0 / (cin * kernel * kernel) as f64).sqrt();
        self.put(format!("{name}.conv.weight"), &[cout, cin, kernel, kernel], |x| scale * x);
        self.put(format!("{name}.bn.weight"), &[cout], |x| 1.0 + 0.2 * x);
        self.put(format!("{name}.bn.bias"), &[cout], |x| 0.2 * x);
        self.put(format!("{name}.bn.running_mean"), &[cout], |x| 0.2 * x);
        self.put(format!("{name}.bn.running_var"), &[cout], |x| 1.0 + 0.2 * x);
    }

    fn plain(&mut self, name: &str, cin: usize, cout: usize) {
        let scale = 1.6 * (3.0 / cin as f64).sqrt();
        self.put(format!("{name}.weight"), &[cout, cin, 1, 1], |x| scale * x);
        self.put(format!("{name}.bias"), &[cout], |x| 0.2 * x);
    }

    fn c2f(&mut self, layer: usize, (cin, cout): (usize, usize), depth: usize, wider: usize) {
        let half = cout / 2 + wider;
        let name = format!("model.{layer}");
        self.conv(&format!("{name}.cv1"), cin, 2 * half, 1);
        for i in 0..depth {
            // The first of a bottleneck may be narrower or wider than the second.
            let inner = half + i;
            self.conv(&format!("{name}.m.{i}.cv1"), half, inner, 3);
            self.conv(&format!("{name}.m.{i}.cv2"), inner, half, 3);
        }
        self.conv(&format!("{name}.cv2"), (2 + depth) * half, cout, 1);
    }
}
