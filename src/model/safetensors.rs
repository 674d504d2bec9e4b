//! `.safetensors` with haul's metadata, read and written.
//!
//! The metadata (all of it text, as the format wants) says what the tensors alone do not:
//!
//! | key | value |
//! | --- | --- |
//! | `format` | `haul.model/1` |
//! | `task` | `detect` |
//! | `names` | JSON array of class names |
//! | `act` | `silu` or `identity`: what follows each normalised convolution |
//! | `act_overrides` | JSON object, convolution → activation, where it differs (optional) |
//! | `bn_eps` | epsilon of the batch normalisations |
//! | `reg_max`, `strides` | bins per side; JSON array: both must agree with the tensors |
//! | `imgsz` | side in pixels the model was trained for |
//! | others | free text, kept |
//!
//! Tensors have the names of the state dict and are F16, BF16 or F32.

use std::collections::BTreeMap;

use safetensors::{Dtype as StDtype, SafeTensors};

use super::error::Fault;
use super::info::Dtype;
use super::read::{Model, Parts};
use super::tensors::{narrow, widen};
use crate::yolo::{Act, Network, Tensor, Weights};

const FORMAT: &str = "haul.model/1";

/// YOLOv8x has some 40 KiB of header.
const MAX_HEADER: u64 = 8 << 20;

/// Reads a model from the bytes of a file.
pub(super) fn read(bytes: &[u8]) -> Result<Parts, Fault> {
    let header = bytes.first_chunk::<8>().map_or(u64::MAX, |b| u64::from_le_bytes(*b));
    if header > MAX_HEADER {
        return Err(Fault::malformed(format!("its header claims {header} bytes")));
    }
    let broken = |e: safetensors::SafeTensorError| Fault::malformed(e.to_string());
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
    let file = SafeTensors::deserialize(bytes).map_err(broken)?;
    let metadata: BTreeMap<String, String> =
        metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let said = Said::parse(&metadata)?;

    let mut weights = Weights::new();
    let mut dtypes = BTreeMap::new();
    for (name, view) in file.iter() {
        if name.ends_with(".num_batches_tracked") {
            continue;
        }
        if name.len() > 256 || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Fault::malformed("a tensor's name is not one of torch's"));
        }
        let dtype = match view.dtype() {
            StDtype::F16 => Dtype::F16,
            StDtype::BF16 => Dtype::Bf16,
            StDtype::F32 => Dtype::F32,
            other => {
                return Err(Fault::Unsupported(format!(
                    "a model whose tensor `{name}` is stored as {other:?}"
                )));
            }
        };
        let tensor = Tensor { shape: view.shape().to_vec(), data: widen(dtype, view.data()) };
        weights.insert(name.to_string(), tensor);
        dtypes.insert(name.to_string(), dtype);
    }
    let act_of = |name: &str| said.overrides.get(name).copied().unwrap_or(said.act);
    let network = Network::new(weights, said.names, said.bn_eps, act_of)?;

    if let Some(name) = said
        .overrides
        .keys()
        .find(|name| !network.graph.convs().any(|c| c.norm && c.name == **name))
    {
        return Err(wrong("act_overrides", format!("names `{name}`, which the model has not")));
    }
    if said.reg_max.is_some_and(|n| n != network.graph.reg_max) {
        return Err(wrong("reg_max", format!("is not the tensors' {}", network.graph.reg_max)));
    }
    let strides: Vec<usize> = network.graph.outputs.iter().map(|output| output.stride).collect();
    if said.strides.is_some_and(|said| said != strides) {
        return Err(wrong("strides", format!("are not YOLOv8's {strides:?}")));
    }
    let free = |key: &String| !KEYS.contains(&key.as_str());
    Ok(Parts {
        format: FORMAT,
        network,
        imgsz: said.imgsz,
        dtypes,
        metadata: metadata.into_iter().filter(|(key, _)| free(key)).collect(),
    })
}

/// Keys with a meaning.
const KEYS: [&str; 9] =
    ["format", "task", "names", "act", "act_overrides", "bn_eps", "reg_max", "strides", "imgsz"];

/// The metadata, understood.
struct Said {
    names: Vec<String>,
    act: Act,
    overrides: BTreeMap<String, Act>,
    bn_eps: f64,
    reg_max: Option<usize>,
    strides: Option<Vec<usize>>,
    imgsz: usize,
}

fn wrong(key: &str, what: impl std::fmt::Display) -> Fault {
    Fault::Metadata(format!("has metadata whose `{key}` {what}"))
}

impl Said {
    fn parse(metadata: &BTreeMap<String, String>) -> Result<Self, Fault> {
        let get = |key: &str| metadata.get(key).map(String::as_str);
        match get("format") {
            Some(FORMAT) => {}
            Some(newer) if newer.starts_with("haul.model/") => {
                return Err(Fault::Metadata(format!(
                    "is of the format `{}`, which this version of haul does not know",
                    newer.escape_default()
                )));
            }
            _ => {
                return Err(Fault::Metadata(
                    "is a .safetensors without haul's metadata, so its class names and \
                     activations are unknown"
                        .into(),
                ));
            }
        }
        match get("task") {
            Some("detect") => {}
            Some(task @ ("segment" | "pose" | "obb" | "classify")) => {
                return Err(Fault::Unsupported(format!("a {task} model")));
            }
            _ => return Err(wrong("task", "is not `detect`")),
        }
        let needed = |key: &str| get(key).ok_or_else(|| wrong(key, "is missing"));
        let act = |key: &str, value: &str| match value {
            "silu" => Ok(Act::Silu),
            "identity" => Ok(Act::Identity),
            _ => Err(wrong(key, "is neither `silu` nor `identity`")),
        };
        let overrides: BTreeMap<String, String> =
            json(get("act_overrides"), "act_overrides")?.unwrap_or_default();
        let overrides = overrides
            .into_iter()
            .map(|(conv, value)| Ok((conv, act("act_overrides", &value)?)))
            .collect::<Result<_, Fault>>()?;
        let imgsz = match get("imgsz").map(str::parse) {
            None => 640,
            Some(Ok(n @ 32..=16384)) => n,
            Some(_) => return Err(wrong("imgsz", "is no number of pixels from 32 to 16384")),
        };
        Ok(Self {
            names: json(Some(needed("names")?), "names")?.unwrap_or_default(),
            act: act("act", needed("act")?)?,
            overrides,
            bn_eps: needed("bn_eps")?.parse().map_err(|_| wrong("bn_eps", "is no number"))?,
            reg_max: json(get("reg_max"), "reg_max")?,
            strides: json(get("strides"), "strides")?,
            imgsz,
        })
    }
}

fn json<T: serde::de::DeserializeOwned>(text: Option<&str>, key: &str) -> Result<Option<T>, Fault> {
    text.map(|text| {
        serde_json::from_str(text).map_err(|e| wrong(key, format!("is no such JSON: {e}")))
    })
    .transpose()
}

/// The model as a `.safetensors` file that [`super::read()`] takes, in the element types of its
/// source (doubles become singles). Equal models give equal bytes.
pub fn write_safetensors(model: &Model) -> Vec<u8> {
    let Model { network, info, .. } = model;
    let mut metadata: BTreeMap<&str, String> =
        info.metadata.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let text = |act: Act| match act {
        Act::Silu => "silu",
        Act::Identity => "identity",
    };
    metadata.insert("format", FORMAT.into());
    metadata.insert("task", info.task.clone());
    metadata.insert("names", serde_json::json!(network.labels).to_string());
    metadata.insert("act", text(info.act).into());
    metadata.insert("bn_eps", network.bn_eps.to_string());
    metadata.insert("reg_max", network.graph.reg_max.to_string());
    metadata.insert("strides", serde_json::json!(info.strides).to_string());
    metadata.insert("imgsz", info.imgsz.to_string());
    if !info.act_overrides.is_empty() {
        let overrides: BTreeMap<&String, &str> =
            info.act_overrides.iter().map(|(name, &act)| (name, text(act))).collect();
        metadata.insert("act_overrides", serde_json::json!(overrides).to_string());
    }

    // Written by hand: the crate keeps the metadata in a hash map, whose order is a new one each
    // time. Tensors in the order of their names; the header padded to a multiple of 8.
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut body = Vec::new();
    for (name, tensor) in &network.weights {
        let (dtype, label) = match model.dtypes.get(name) {
            Some(Dtype::F16) => (Dtype::F16, "F16"),
            Some(Dtype::Bf16) => (Dtype::Bf16, "BF16"),
            _ => (Dtype::F32, "F32"),
        };
        let start = body.len();
        body.extend(narrow(dtype, &tensor.data));
        let offsets = [start, body.len()];
        let entry =
            serde_json::json!({"dtype": label, "shape": tensor.shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(body);
    file
}
