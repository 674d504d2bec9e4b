//! Writes small Ultralytics-shaped `.pt` files, sound or broken, to read them back.

use std::io::{Cursor, Write};

use half::f16;
use haul::yolo::Weights;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::formula::Scale;

/// A value to be pickled.
#[derive(Clone, Debug)]
pub(crate) enum P {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Tuple(Vec<P>),
    List(Vec<P>),
    Dict(Vec<(P, P)>),
    /// Storage class, key, elements in the storage, offset, shape, strides.
    Tensor(&'static str, String, i64, i64, Vec<i64>, Vec<i64>),
    /// Module, name, state.
    Object(&'static str, &'static str, Box<P>),
    /// Instructions as they are.
    Raw(Vec<u8>),
}

pub(crate) fn s(text: &str) -> P {
    P::Str(text.into())
}

pub(crate) fn dict(entries: Vec<(&str, P)>) -> P {
    P::Dict(entries.into_iter().map(|(key, value)| (s(key), value)).collect())
}

pub(crate) fn ints(values: &[i64]) -> P {
    P::Tuple(values.iter().map(|&n| P::Int(n)).collect())
}

impl P {
    pub(crate) fn pickle(&self) -> Vec<u8> {
        let mut out = vec![0x80, 2];
        self.write(&mut out);
        out.push(b'.');
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            P::None => out.push(b'N'),
            P::Bool(b) => out.push(if *b { 0x88 } else { 0x89 }),
            P::Int(n) => {
                out.extend([0x8a, 8]);
                out.extend(n.to_le_bytes());
            }
            P::Float(x) => {
                out.push(b'G');
                out.extend(x.to_be_bytes());
            }
            P::Str(text) => {
                out.push(b'X');
                out.extend((text.len() as u32).to_le_bytes());
                out.extend(text.as_bytes());
            }
            P::Tuple(items) | P::List(items) => {
                out.push(b'(');
                items.iter().for_each(|item| item.write(out));
                out.push(if matches!(self, P::Tuple(_)) { b't' } else { b'l' });
            }
            P::Dict(entries) => {
                out.extend(b"}(");
                for (key, value) in entries {
                    key.write(out);
                    value.write(out);
                }
                out.push(b'u');
            }
            P::Tensor(class, key, elements, offset, shape, strides) => {
                out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
                s("storage").write(out);
                out.extend(format!("ctorch\n{class}\n").bytes());
                s(key).write(out);
                s("cpu").write(out);
                P::Int(*elements).write(out);
                out.extend(b"tQ");
                P::Int(*offset).write(out);
                ints(shape).write(out);
                ints(strides).write(out);
                P::Bool(false).write(out);
                out.extend(b"ccollections\nOrderedDict\n)R");
                out.extend(b"tR");
            }
            P::Object(module, name, state) => {
                out.extend(format!("c{module}\n{name}\n)").bytes());
                out.push(0x81);
                state.write(out);
                out.push(b'b');
            }
            P::Raw(bytes) => out.extend(bytes),
        }
    }
}

/// The zip torch.save makes: data.pkl and storages under one folder.
pub(crate) fn archive(pickle: &[u8], storages: &[(String, Vec<u8>)], deflate: bool) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let method = if deflate { CompressionMethod::Deflated } else { CompressionMethod::Stored };
    let options = SimpleFileOptions::default().compression_method(method);
    let mut member = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("tiny/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    member("data.pkl", pickle);
    member("byteorder", b"little");
    for (key, bytes) in storages {
        member(&format!("data/{key}"), bytes);
    }
    zip.finish().unwrap().into_inner()
}

fn module(path: &'static str, name: &'static str, attrs: Vec<(&str, P)>) -> P {
    P::Object(path, name, Box::new(dict(attrs)))
}

/// Builds module trees and collects the storages they refer to.
pub(crate) struct Builder {
    weights: Weights,
    pub(crate) storages: Vec<(String, Vec<u8>)>,
    /// The epsilon written.
    pub(crate) eps: f64,
    /// The convolution whose activation is Identity.
    pub(crate) identity: &'static str,
    /// What the pickle says the first storage has, if not the truth.
    pub(crate) first_storage: Option<i64>,
}

impl Builder {
    pub(crate) fn new(scale: &Scale) -> Self {
        Self {
            weights: scale.weights(),
            storages: Vec::new(),
            eps: 1e-3,
            identity: "",
            first_storage: None,
        }
    }

    fn tensor(&mut self, name: &str) -> P {
        let tensor = &self.weights[name];
        let key = self.storages.len().to_string();
        let half = tensor.data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        self.storages.push((key.clone(), half));
        let shape: Vec<i64> = tensor.shape.iter().map(|&d| d as i64).collect();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        let elements = self.first_storage.take().unwrap_or(tensor.data.len() as i64);
        P::Tensor("HalfStorage", key, elements, 0, shape, strides)
    }

    fn conv2d(&mut self, name: &str, stride: i64, bias: bool) -> P {
        let k = self.weights[&format!("{name}.weight")].shape[2] as i64;
        let weight = self.tensor(&format!("{name}.weight"));
        let bias = if bias { self.tensor(&format!("{name}.bias")) } else { P::None };
        let attrs = vec![
            ("_parameters", dict(vec![("weight", weight), ("bias", bias)])),
            ("kernel_size", ints(&[k, k])),
            ("stride", ints(&[stride, stride])),
            ("padding", ints(&[k / 2, k / 2])),
            ("dilation", ints(&[1, 1])),
            ("groups", P::Int(1)),
            ("padding_mode", s("zeros")),
        ];
        module("torch.nn.modules.conv", "Conv2d", attrs)
    }

    fn conv(&mut self, name: &str, stride: i64, extra: Vec<(&str, P)>) -> P {
        let conv = self.conv2d(&format!("{name}.conv"), stride, false);
        let mut part = |part: &str| self.tensor(&format!("{name}.bn.{part}"));
        let parameters = dict(vec![("weight", part("weight")), ("bias", part("bias"))]);
        let buffers =
            vec![("running_mean", part("running_mean")), ("running_var", part("running_var"))];
        let bn = module(
            "torch.nn.modules.batchnorm",
            "BatchNorm2d",
            vec![
                ("_parameters", parameters),
                ("_buffers", dict(buffers)),
                ("eps", P::Float(self.eps)),
            ],
        );
        let act = match name == self.identity {
            true => module("torch.nn.modules.linear", "Identity", vec![]),
            false => module("torch.nn.modules.activation", "SiLU", vec![]),
        };
        let children = dict(vec![("conv", conv), ("bn", bn), ("act", act)]);
        let mut attrs = vec![("_modules", children)];
        attrs.extend(extra);
        module("ultralytics.nn.modules.conv", "Conv", attrs)
    }

    fn list(children: Vec<P>) -> P {
        let entries =
            children.into_iter().enumerate().map(|(i, p)| (s(&i.to_string()), p)).collect();
        let children = P::Dict(entries);
        module("torch.nn.modules.container", "ModuleList", vec![("_modules", children)])
    }

    fn c2f(&mut self, layer: usize, from: P) -> P {
        let name = format!("model.{layer}");
        let mut bottlenecks = Vec::new();
        while self.weights.contains_key(&format!("{name}.m.{}.cv1.conv.weight", bottlenecks.len()))
        {
            let part = format!("{name}.m.{}", bottlenecks.len());
            let cv1 = self.conv(&format!("{part}.cv1"), 1, vec![]);
            let cv2 = self.conv(&format!("{part}.cv2"), 1, vec![]);
            let attrs = vec![
                ("_modules", dict(vec![("cv1", cv1), ("cv2", cv2)])),
                ("add", P::Bool(layer < 9)),
            ];
            bottlenecks.push(module("ultralytics.nn.modules.block", "Bottleneck", attrs));
        }
        let cv1 = self.conv(&format!("{name}.cv1"), 1, vec![]);
        let cv2 = self.conv(&format!("{name}.cv2"), 1, vec![]);
        let children = vec![("cv1", cv1), ("cv2", cv2), ("m", Self::list(bottlenecks))];
        let attrs = vec![("_modules", dict(children)), ("f", from)];
        module("ultralytics.nn.modules.block", "C2f", attrs)
    }

    /// The checkpoint's dictionary.
    pub(crate) fn checkpoint(&mut self, classes: usize) -> P {
        let back = || P::Int(-1);
        let mut layers = Vec::new();
        for layer in 0..22 {
            let from = |other: i64| P::List(vec![P::Int(-1), P::Int(other)]);
            let concat = |other: i64| {
                let attrs = vec![("f", from(other)), ("d", P::Int(1))];
                module("ultralytics.nn.modules.conv", "Concat", attrs)
            };
            layers.push(match layer {
                0 | 1 | 3 | 5 | 7 | 16 | 19 => {
                    self.conv(&format!("model.{layer}"), 2, vec![("f", back())])
                }
                9 => {
                    let cv1 = self.conv("model.9.cv1", 1, vec![]);
                    let cv2 = self.conv("model.9.cv2", 1, vec![]);
                    let pool = vec![
                        ("kernel_size", P::Int(5)),
                        ("stride", P::Int(1)),
                        ("padding", P::Int(2)),
                        ("dilation", P::Int(1)),
                    ];
                    let m = module("torch.nn.modules.pooling", "MaxPool2d", pool);
                    let children = dict(vec![("cv1", cv1), ("cv2", cv2), ("m", m)]);
                    let attrs = vec![("_modules", children), ("f", back())];
                    module("ultralytics.nn.modules.block", "SPPF", attrs)
                }
                10 | 13 => {
                    let attrs = vec![
                        ("scale_factor", P::Float(2.0)),
                        ("mode", s("nearest")),
                        ("f", back()),
                    ];
                    module("torch.nn.modules.upsampling", "Upsample", attrs)
                }
                11 => concat(6),
                14 => concat(4),
                17 => concat(12),
                20 => concat(9),
                _ => self.c2f(layer, back()),
            });
        }
        let mut branch = |branch: &str| {
            let mut levels = Vec::new();
            for level in 0..3 {
                let name = format!("model.22.{branch}.{level}");
                let first = self.conv(&format!("{name}.0"), 1, vec![]);
                let second = self.conv(&format!("{name}.1"), 1, vec![]);
                let third = self.conv2d(&format!("{name}.2"), 1, true);
                levels.push(Self::list(vec![first, second, third]));
            }
            Self::list(levels)
        };
        let children = dict(vec![("cv2", branch("cv2")), ("cv3", branch("cv3"))]);
        let attrs = vec![
            ("_modules", children),
            ("f", P::List(vec![P::Int(15), P::Int(18), P::Int(21)])),
            ("nc", P::Int(classes as i64)),
            ("reg_max", P::Int(16)),
            ("nl", P::Int(3)),
        ];
        layers.push(module("ultralytics.nn.modules.head", "Detect", attrs));
        let names = (0..classes).map(|i| (P::Int(i as i64), s(&format!("class {i}")))).collect();
        let root = vec![
            ("_modules", dict(vec![("model", Self::list(layers))])),
            ("names", P::Dict(names)),
            ("args", dict(vec![("imgsz", P::Int(320))])),
        ];
        let model = module("ultralytics.nn.tasks", "DetectionModel", root);
        dict(vec![("epoch", P::Int(-1)), ("model", model), ("license", s("none"))])
    }
}

/// A network of a few thousand weights.
pub(crate) fn tiny_scale() -> Scale {
    Scale { widths: vec![2, 4, 4, 4, 4], depths: vec![1, 2, 1, 1, 1, 1, 1, 1], classes: 2 }
}

/// A sound checkpoint of it.
pub(crate) fn tiny(deflate: bool) -> Vec<u8> {
    let mut builder = Builder::new(&tiny_scale());
    let pickle = builder.checkpoint(2).pickle();
    archive(&pickle, &builder.storages, deflate)
}
