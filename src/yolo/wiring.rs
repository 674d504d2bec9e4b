//! How YOLOv8 is put together, written once.
//!
//! Widths, depths, class count and bins come from the shapes of the tensors, so any scale fits.
//! Layer numbers are those of the state dict (`model.0` … `model.22`).

use thiserror::Error;

use super::graph::{Act, Conv, Graph, Node, Op, Output, Value};

/// Why tensors do not form a YOLOv8-detect network.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WiringError {
    /// A tensor the wiring needs is absent.
    #[error("tensor `{name}` is missing (another architecture than YOLOv8 detect?)")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape than its neighbours imply.
    #[error("tensor `{name}` has shape {found:?} where YOLOv8 detect needs {expected}")]
    Shape {
        /// Its name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// What fits.
        expected: String,
    },
    /// Two branches that meet differ.
    #[error("{what} differ between scales or branches: {left} and {right}")]
    Mismatch {
        /// What was compared.
        what: &'static str,
        /// The one.
        left: usize,
        /// The other.
        right: usize,
    },
}

/// Builds the graph from tensor shapes (`shape_of` by state-dict name) and the activation of each
/// convolution (`act_of` by [`Conv::name`]).
///
/// # Errors
/// A [`WiringError`] names the first tensor that is missing or does not fit.
pub fn yolov8<'s>(
    shape_of: impl Fn(&str) -> Option<&'s [usize]>,
    act_of: impl Fn(&str) -> Act,
) -> Result<Graph, WiringError> {
    let mut b = Builder { shape_of, act_of, nodes: Vec::new(), depths: Vec::new() };
    let input = b.push(Op::Input, vec![], 3, 1);

    // Backbone: halve five times; C2f with residuals after each but the first.
    let x0 = b.conv("model.0", input, 3, 2)?;
    let x1 = b.conv("model.1", x0, 3, 2)?;
    let x2 = b.c2f("model.2", x1, true)?;
    let x3 = b.conv("model.3", x2, 3, 2)?;
    let x4 = b.c2f("model.4", x3, true)?;
    let x5 = b.conv("model.5", x4, 3, 2)?;
    let x6 = b.c2f("model.6", x5, true)?;
    let x7 = b.conv("model.7", x6, 3, 2)?;
    let x8 = b.c2f("model.8", x7, true)?;
    let x9 = b.sppf("model.9", x8)?;

    // Neck: up to stride 8, then down again, joined with the backbone and with itself.
    let x10 = b.upsample(x9);
    let x11 = b.concat(vec![x10, x6]);
    let x12 = b.c2f("model.12", x11, false)?;
    let x13 = b.upsample(x12);
    let x14 = b.concat(vec![x13, x4]);
    let x15 = b.c2f("model.15", x14, false)?;
    let x16 = b.conv("model.16", x15, 3, 2)?;
    let x17 = b.concat(vec![x16, x12]);
    let x18 = b.c2f("model.18", x17, false)?;
    let x19 = b.conv("model.19", x18, 3, 2)?;
    let x20 = b.concat(vec![x19, x9]);
    let x21 = b.c2f("model.21", x20, false)?;

    let outputs = [x15, x18, x21]
        .into_iter()
        .enumerate()
        .map(|(level, features)| b.head(level, features))
        .collect::<Result<Vec<_>, _>>()?;
    let (bins, classes) = (b.nodes[outputs[0].boxes].channels, b.nodes[outputs[0].scores].channels);
    for output in &outputs {
        same("box channels", bins, b.nodes[output.boxes].channels)?;
        same("class counts", classes, b.nodes[output.scores].channels)?;
    }
    if !bins.is_multiple_of(4) || bins < 8 {
        return Err(WiringError::Shape {
            name: "model.22.cv2.0.2.weight".into(),
            found: vec![bins],
            expected: "4 sides of at least 2 bins each".into(),
        });
    }
    let widths = [x0, x1, x3, x5, x7].map(|value| b.nodes[value].channels).to_vec();
    Ok(Graph { nodes: b.nodes, outputs, classes, reg_max: bins / 4, widths, depths: b.depths })
}

fn same(what: &'static str, left: usize, right: usize) -> Result<(), WiringError> {
    if left == right { Ok(()) } else { Err(WiringError::Mismatch { what, left, right }) }
}

struct Builder<S, A> {
    shape_of: S,
    act_of: A,
    nodes: Vec<Node>,
    depths: Vec<usize>,
}

impl<'s, S: Fn(&str) -> Option<&'s [usize]>, A: Fn(&str) -> Act> Builder<S, A> {
    fn push(&mut self, op: Op, inputs: Vec<Value>, channels: usize, stride: usize) -> Value {
        self.nodes.push(Node { op, inputs, channels, stride });
        self.nodes.len() - 1
    }

    /// Convolution, batch normalisation, activation.
    fn conv(&mut self, name: &str, x: Value, k: usize, s: usize) -> Result<Value, WiringError> {
        let act = (self.act_of)(name);
        self.any_conv(name, x, (k, s), true, act)
    }

    /// Convolution and bias: the head's last layers.
    fn plain(&mut self, name: &str, x: Value) -> Result<Value, WiringError> {
        self.any_conv(name, x, (1, 1), false, Act::Identity)
    }

    fn any_conv(
        &mut self,
        name: &str,
        x: Value,
        (kernel, stride): (usize, usize),
        norm: bool,
        act: Act,
    ) -> Result<Value, WiringError> {
        let cin = self.nodes[x].channels;
        let mut conv = Conv { name: name.into(), cin, cout: 0, kernel, stride, norm, act };
        let weight = conv.weight();
        let shape = self.shape(&weight)?;
        match *shape {
            [cout, c, kh, kw] if cout > 0 && c == cin && kh == kernel && kw == kernel => {
                conv.cout = cout;
            }
            _ => {
                return Err(WiringError::Shape {
                    name: weight,
                    found: shape.to_vec(),
                    expected: format!("[_, {cin}, {kernel}, {kernel}]"),
                });
            }
        }
        let vectors: &[&str] = match norm {
            true => &["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"],
            false => &["bias"],
        };
        for vector in vectors {
            let vector = format!("{name}.{vector}");
            let found = self.shape(&vector)?;
            if found != [conv.cout] {
                let expected = format!("[{}]", conv.cout);
                return Err(WiringError::Shape { name: vector, found: found.to_vec(), expected });
            }
        }
        let (cout, stride) = (conv.cout, self.nodes[x].stride * stride);
        Ok(self.push(Op::Conv(conv), vec![x], cout, stride))
    }

    fn shape(&self, name: &str) -> Result<&'s [usize], WiringError> {
        (self.shape_of)(name).ok_or_else(|| WiringError::Missing { name: name.into() })
    }

    fn slice(&mut self, x: Value, from: usize, channels: usize) -> Value {
        let stride = self.nodes[x].stride;
        self.push(Op::Slice { from }, vec![x], channels, stride)
    }

    fn upsample(&mut self, x: Value) -> Value {
        let (channels, stride) = (self.nodes[x].channels, self.nodes[x].stride / 2);
        self.push(Op::Upsample2, vec![x], channels, stride)
    }

    fn concat(&mut self, inputs: Vec<Value>) -> Value {
        let channels = inputs.iter().map(|&x| self.nodes[x].channels).sum();
        let stride = self.nodes[inputs[0]].stride;
        self.push(Op::Concat, inputs, channels, stride)
    }

    /// Two halves; a chain of bottlenecks on the second; everything that was seen, mixed.
    fn c2f(&mut self, name: &str, x: Value, residual: bool) -> Result<Value, WiringError> {
        let both = self.conv(&format!("{name}.cv1"), x, 1, 1)?;
        let channels = self.nodes[both].channels;
        if !channels.is_multiple_of(2) {
            return Err(WiringError::Shape {
                name: format!("{name}.cv1.conv.weight"),
                found: vec![channels],
                expected: "an even number of channels".into(),
            });
        }
        let half = channels / 2;
        let first = self.slice(both, 0, half);
        let mut last = self.slice(both, half, half);
        let mut seen = vec![first, last];
        for i in 0.. {
            let part = format!("{name}.m.{i}");
            // The first one is asked for even if absent: a C2f without any is another network.
            if i > 0 && (self.shape_of)(&format!("{part}.cv1.conv.weight")).is_none() {
                self.depths.push(i);
                break;
            }
            let inner = self.conv(&format!("{part}.cv1"), last, 3, 1)?;
            let y = self.conv(&format!("{part}.cv2"), inner, 3, 1)?;
            same("bottleneck widths", half, self.nodes[y].channels)?;
            last = match residual {
                true => {
                    let stride = self.nodes[y].stride;
                    self.push(Op::Add, vec![last, y], half, stride)
                }
                false => y,
            };
            seen.push(last);
        }
        let all = self.concat(seen);
        self.conv(&format!("{name}.cv2"), all, 1, 1)
    }

    /// Three pools in a row stand for windows of 5, 9 and 13.
    fn sppf(&mut self, name: &str, x: Value) -> Result<Value, WiringError> {
        let mut last = self.conv(&format!("{name}.cv1"), x, 1, 1)?;
        let mut seen = vec![last];
        for _ in 0..3 {
            let (channels, stride) = (self.nodes[last].channels, self.nodes[last].stride);
            last = self.push(Op::MaxPool5, vec![last], channels, stride);
            seen.push(last);
        }
        let all = self.concat(seen);
        self.conv(&format!("{name}.cv2"), all, 1, 1)
    }

    /// One scale of Detect: `cv2` gives boxes, `cv3` classes.
    fn head(&mut self, level: usize, features: Value) -> Result<Output, WiringError> {
        let mut branch = |name: String| {
            let x = self.conv(&format!("{name}.0"), features, 3, 1)?;
            let x = self.conv(&format!("{name}.1"), x, 3, 1)?;
            self.plain(&format!("{name}.2"), x)
        };
        let boxes = branch(format!("model.22.cv2.{level}"))?;
        let scores = branch(format!("model.22.cv3.{level}"))?;
        Ok(Output { stride: self.nodes[features].stride, features, boxes, scores })
    }
}
