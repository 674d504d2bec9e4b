//! Networks whose weights are made by a formula, so that goldens need no weight files.
//!
//! u(name, i) = (z >> 11) · 2⁻⁵³ · 2 − 1 with z the splitmix64 finaliser of
//! fnv1a64(name) + (i + 1) · 0x9E3779B97F4A7C15, all modulo 2⁶⁴.

use haul::yolo::{Act, Network, Tensor, Weights};

/// Flat values of a tensor.
pub(crate) fn u(name: &str, count: usize) -> Vec<f64> {
    let mut seed = 0xCBF2_9CE4_8422_2325u64;
    for byte in name.bytes() {
        seed = (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    let value = |i: u64| {
        let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 * 2f64.powi(-53) * 2.0 - 1.0
    };
    (0..count as u64).map(value).collect()
}

/// The picture that goes with the goldens: planes of the given size, 0..=1.
pub(crate) fn input(height: usize, width: usize) -> Vec<f32> {
    u("input", 3 * height * width).into_iter().map(|x| (0.5 * x + 0.5) as f32).collect()
}

/// Widths (channels at strides 2..32), depths (layers 2, 4, 6, 8, 12, 15, 18, 21), classes.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    pub(crate) widths: Vec<usize>,
    pub(crate) depths: Vec<usize>,
    pub(crate) classes: usize,
}

impl Scale {
    /// Convolutions by name: input, output channels, kernel, whether normalised.
    pub(crate) fn convs(&self) -> Vec<(String, usize, usize, usize, bool)> {
        let mut list = Vec::new();
        let mut conv = |name: String, cin, cout, k| list.push((name, cin, cout, k, true));
        let (w, d) = (&self.widths, &self.depths);
        let c2f = |list: &mut dyn FnMut(String, usize, usize, usize), layer, cin, cout, n| {
            let c: usize = cout / 2;
            list(format!("model.{layer}.cv1"), cin, 2 * c, 1);
            for i in 0..n {
                list(format!("model.{layer}.m.{i}.cv1"), c, c, 3);
                list(format!("model.{layer}.m.{i}.cv2"), c, c, 3);
            }
            list(format!("model.{layer}.cv2"), (2 + n) * c, cout, 1);
        };
        conv("model.0".into(), 3, w[0], 3);
        for (i, layer) in [1, 3, 5, 7].into_iter().enumerate() {
            conv(format!("model.{layer}"), w[i], w[i + 1], 3);
            c2f(&mut conv, layer + 1, w[i + 1], w[i + 1], d[i]);
        }
        conv("model.9.cv1".into(), w[4], w[4] / 2, 1);
        conv("model.9.cv2".into(), w[4] / 2 * 4, w[4], 1);
        c2f(&mut conv, 12, w[4] + w[3], w[3], d[4]);
        c2f(&mut conv, 15, w[3] + w[2], w[2], d[5]);
        conv("model.16".into(), w[2], w[2], 3);
        c2f(&mut conv, 18, w[2] + w[3], w[3], d[6]);
        conv("model.19".into(), w[3], w[3], 3);
        c2f(&mut conv, 21, w[3] + w[4], w[4], d[7]);
        let (boxes, scores) = ((w[2] / 4).max(64), w[2].max(self.classes.min(100)));
        for (level, &cin) in w[2..].iter().enumerate() {
            for (branch, mid, out) in [("cv2", boxes, 64), ("cv3", scores, self.classes)] {
                list.push((format!("model.22.{branch}.{level}.0"), cin, mid, 3, true));
                list.push((format!("model.22.{branch}.{level}.1"), mid, mid, 3, true));
                list.push((format!("model.22.{branch}.{level}.2"), mid, out, 1, false));
            }
        }
        list
    }

    /// All tensors by the formula.
    pub(crate) fn weights(&self) -> Weights {
        let mut weights = Weights::new();
        let mut put = |name: String, shape: Vec<usize>, data: Vec<f32>| {
            weights.insert(name, Tensor { shape, data });
        };
        for (name, cin, cout, k, norm) in self.convs() {
            let weight =
                if norm { format!("{name}.conv.weight") } else { format!("{name}.weight") };
            let fan = cin * k * k;
            let scale = (3.0 / fan as f64).sqrt() * 1.6;
            let data = u(&weight, cout * fan).into_iter().map(|x| (x * scale) as f32).collect();
            put(weight, vec![cout, cin, k, k], data);
            let bias = |name: &str| u(name, cout).into_iter().map(|x| (0.1 * x) as f32).collect();
            if norm {
                let bn = |part: &str| format!("{name}.bn.{part}");
                put(bn("weight"), vec![cout], vec![1.0; cout]);
                put(bn("bias"), vec![cout], bias(&bn("bias")));
                put(bn("running_mean"), vec![cout], vec![0.0; cout]);
                put(bn("running_var"), vec![cout], vec![1.0; cout]);
            } else {
                let name = format!("{name}.bias");
                put(name.clone(), vec![cout], bias(&name));
            }
        }
        let dfl = (0..16).map(|i| i as f32).collect();
        put("model.22.dfl.conv.weight".into(), vec![1, 16, 1, 1], dfl);
        weights
    }

    pub(crate) fn network(&self) -> Network {
        let labels = (0..self.classes).map(|i| format!("class {i}")).collect();
        Network::new(self.weights(), labels, 1e-3, |_| Act::Silu).expect("the formula's network")
    }
}
