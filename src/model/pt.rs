//! Ultralytics' `.pt`: a dictionary whose `model` (or `ema`) is a pickled module tree.

use std::collections::BTreeMap;

use super::archive::Archive;
use super::error::Fault;
use super::pickle::{self, Data, Node, Value};
use super::read::Parts;
use super::tree::Tree;
use super::{check, tensors};
use crate::yolo::{Act, Network, Weights};

/// Reads a checkpoint from the bytes of its zip.
pub(super) fn read(bytes: &[u8]) -> Result<Parts, Fault> {
    let archive = Archive::open(bytes)?;
    if !archive.little_endian()? {
        return Err(Fault::Format("a checkpoint with big-endian numbers".into()));
    }
    let data = pickle::parse(&archive.pickle()?)?;
    let tree = Tree::new(&data, module(&data)?)?;
    check::layers(&tree)?;
    let acts = check::activations(&tree)?;
    let bn_eps = check::epsilon(&tree)?;

    let mut weights = Weights::new();
    let mut dtypes = BTreeMap::new();
    for (name, tensor) in &tree.tensors {
        // A counter of training steps, of no use afterwards.
        if name.ends_with(".num_batches_tracked") {
            continue;
        }
        weights.insert(name.clone(), tensors::load(&archive, tensor)?);
        if let Some(dtype) = tensor.dtype {
            dtypes.insert(name.clone(), dtype);
        }
    }
    let labels = names(&data, &tree)?;
    let act_of = |name: &str| acts.get(name).copied().unwrap_or(Act::Identity);
    let network = Network::new(weights, labels, bn_eps, act_of)?;
    check::attributes(&tree, &network.graph)?;
    strides(&archive, &tree, &network)?;

    Ok(Parts {
        format: "ultralytics .pt",
        network,
        imgsz: imgsz(&data, &tree),
        dtypes,
        metadata: metadata(&data, &tree),
    })
}

/// The module to run: `model`, or where training was under way the averaged `ema`.
fn module(data: &Data) -> Result<Value, Fault> {
    let none =
        Fault::Format("a torch file without a `model` (not an Ultralytics checkpoint)".into());
    let found = ["model", "ema"]
        .into_iter()
        .filter_map(|key| data.get(data.root, key))
        .find(|value| *value != Value::None);
    let root = found.unwrap_or(data.root);
    match data.node(root) {
        Some(Node::Object { .. }) => Ok(root),
        Some(Node::Dict(_)) if found.is_some() => Err(Fault::Format(
            "a torch file with a bare state dict, which does not say its activations".into(),
        )),
        _ => Err(none),
    }
}

/// Class names: a dictionary from number to name, or a list.
fn names(data: &Data, tree: &Tree<'_>) -> Result<Vec<String>, Fault> {
    let bad = || Fault::malformed("its class names are not numbered texts");
    let text = |value: Value| data.str(value).map(String::from).ok_or_else(bad);
    match tree.attr("", "names").and_then(|names| data.node(names)) {
        Some(Node::Seq(items)) => items.iter().map(|&name| text(name)).collect(),
        Some(Node::Dict(entries)) => {
            let mut by_number = BTreeMap::new();
            for &(key, name) in entries {
                let Value::Int(number) = key else { return Err(bad()) };
                by_number.insert(number, text(name)?);
            }
            let gapless = by_number.keys().copied().eq(0..by_number.len() as i64);
            if gapless { Ok(by_number.into_values().collect()) } else { Err(bad()) }
        }
        _ => Err(bad()),
    }
}

/// The head's own idea of its strides must be what the wiring gives.
fn strides(archive: &Archive<'_>, tree: &Tree<'_>, network: &Network) -> Result<(), Fault> {
    let Some(tensor) = tree.tensor("model.22", "stride") else { return Ok(()) };
    let found = tensors::load(archive, tensor)?.data;
    let ours = network.graph.outputs.iter().map(|output| output.stride as f32);
    if found.iter().copied().eq(ours) {
        return Ok(());
    }
    Err(Fault::Unsupported(format!("a model with strides {found:?} where YOLOv8 has [8, 16, 32]")))
}

/// The training size, from the model's arguments or the checkpoint's.
fn imgsz(data: &Data, tree: &Tree<'_>) -> usize {
    let places = [tree.attr("", "args"), data.get(data.root, "train_args")];
    let found = places.into_iter().flatten().find_map(|args| data.get(args, "imgsz"));
    match found {
        Some(Value::Int(n @ 32..=16384)) => n as usize,
        // Ultralytics' default.
        _ => 640,
    }
}

/// Texts worth showing.
fn metadata(data: &Data, tree: &Tree<'_>) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::new();
    let mut note = |key: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|value| value.len() <= 4096) {
            metadata.insert(key.to_string(), value.to_string());
        }
    };
    for key in ["version", "date", "license", "description"] {
        note(key, data.get(data.root, key).and_then(|value| data.str(value)));
    }
    let yaml = tree.attr("", "yaml").and_then(|yaml| data.get(yaml, "yaml_file"));
    note("yaml_file", yaml.and_then(|value| data.str(value)));
    metadata
}
