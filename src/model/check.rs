//! Is this module tree YOLOv8-detect's, down to what the tensors' shapes cannot tell?
//!
//! Two networks of other wiring can have tensors of the same names and shapes, so the tree's
//! classes and attributes are compared with ours before a single box is trusted.

use std::collections::BTreeMap;

use super::error::Fault;
use super::tree::Tree;
use crate::yolo::{Act, Graph};

/// Class and inputs (negative: counted back from the layer) of each layer.
const LAYERS: [(&str, &[i64]); 23] = [
    ("Conv", &[-1]),
    ("Conv", &[-1]),
    ("C2f", &[-1]),
    ("Conv", &[-1]),
    ("C2f", &[-1]),
    ("Conv", &[-1]),
    ("C2f", &[-1]),
    ("Conv", &[-1]),
    ("C2f", &[-1]),
    ("SPPF", &[-1]),
    ("Upsample", &[-1]),
    ("Concat", &[-1, 6]),
    ("C2f", &[-1]),
    ("Upsample", &[-1]),
    ("Concat", &[-1, 4]),
    ("C2f", &[-1]),
    ("Conv", &[-1]),
    ("Concat", &[-1, 12]),
    ("C2f", &[-1]),
    ("Conv", &[-1]),
    ("Concat", &[-1, 9]),
    ("C2f", &[-1]),
    ("Detect", &[15, 18, 21]),
];

/// Compares the layers; what differs is named as what it is.
pub(super) fn layers(tree: &Tree<'_>) -> Result<(), Fault> {
    let kinds: Vec<&str> = (0..)
        .map_while(|i| tree.modules.get(&format!("model.{i}")))
        .map(|module| module.kind())
        .collect();
    let root = tree.modules.get("").map_or("", |module| module.kind());
    let refuse = |what: String| Err(Fault::Unsupported(what));
    if let Some(task) = other_task(root, kinds.last().copied().unwrap_or("")) {
        return refuse(task.into());
    }
    if let Some(family) = other_family(&kinds) {
        return refuse(family.into());
    }
    if let Some(inputs) = tree.numbers(&format!("model.{}", kinds.len().max(1) - 1), "f")
        && kinds.last() == Some(&"Detect")
        && inputs.len() != 3
    {
        return refuse(format!("a YOLO model with {} output scales (P2 or P6)", inputs.len()));
    }
    if kinds.len() != LAYERS.len() {
        return refuse(format!("a model of {} layers where YOLOv8 has 23", kinds.len()));
    }
    for (i, (found, (expected, inputs))) in kinds.iter().zip(LAYERS).enumerate() {
        if *found != expected {
            return refuse(format!(
                "a model whose layer {i} is {found} where YOLOv8 has {expected}"
            ));
        }
        if tree.numbers(&format!("model.{i}"), "f").as_deref() != Some(inputs) {
            return refuse(format!("a model whose layer {i} has other inputs than YOLOv8's"));
        }
    }
    Ok(())
}

/// The task, where it is not detection.
fn other_task(root: &str, head: &str) -> Option<&'static str> {
    Some(match (root, head) {
        ("WorldModel", _) | (_, "WorldDetect") => "a YOLO-World model",
        ("RTDETRDetectionModel", _) | (_, "RTDETRDecoder") => "an RT-DETR model",
        ("SegmentationModel", _) | (_, "Segment" | "Segment26") => "a segment model",
        ("PoseModel", _) | (_, "Pose" | "Pose26") => "a pose model",
        ("OBBModel", _) | (_, "OBB" | "OBB26") => "an oriented-box (OBB) model",
        ("ClassificationModel", _) | (_, "Classify") => "a classify model",
        ("YOLOEModel" | "YOLOESegModel", _) | (_, "YOLOEDetect" | "YOLOESegment") => {
            "a YOLOE model"
        }
        ("YOLOv10DetectionModel", _) | (_, "v10Detect") => "a YOLOv10 model",
        _ => return None,
    })
}

/// The family, by blocks that YOLOv8 does not have.
fn other_family(kinds: &[&str]) -> Option<&'static str> {
    let has = |names: &[&str]| kinds.iter().any(|kind| names.contains(kind));
    // The order matters: later families use blocks of earlier ones.
    Some(if has(&["A2C2f"]) {
        "a YOLO12 model"
    } else if has(&["C3k2", "C2PSA"]) {
        "a YOLO11 or YOLO26 model"
    } else if has(&["SCDown", "C2fCIB", "PSA"]) {
        "a YOLOv10 model"
    } else if has(&["RepNCSPELAN4", "ELAN1", "AConv", "ADown", "SPPELAN", "CBLinear"]) {
        "a YOLOv9 model"
    } else if has(&["C2fAttn"]) {
        "a YOLO-World model"
    } else if has(&["C3Ghost", "GhostConv"]) {
        "a Ghost variant"
    } else if has(&["C3", "SPP", "Focus"]) {
        "a YOLOv5 or YOLOv3 model"
    } else if has(&["ConvTranspose2d"]) && !has(&["C2f"]) {
        "a YOLOv6 model"
    } else {
        return None;
    })
}

/// The activation of each convolution that has one to have.
pub(super) fn activations(tree: &Tree<'_>) -> Result<BTreeMap<String, Act>, Fault> {
    let mut acts = BTreeMap::new();
    for (name, module) in &tree.modules {
        if module.kind() != "Conv" {
            continue;
        }
        let child = |child: &str| tree.modules.get(&format!("{name}.{child}"));
        if child("bn").is_none() && child("conv").is_some() {
            return Err(Fault::Unsupported(format!(
                "a fused model (`{name}` has lost its batch normalisation; use the file as trained)"
            )));
        }
        let act = match child("act").map(|module| module.kind()) {
            Some("SiLU") => Act::Silu,
            Some("Identity") => Act::Identity,
            Some(other) => {
                let other = other.to_string();
                return Err(Fault::Unsupported(format!(
                    "a model with another activation than SiLU (`{name}` has {other})"
                )));
            }
            None => {
                return Err(Fault::malformed(format!("`{name}` does not say its activation")));
            }
        };
        acts.insert(name.clone(), act);
    }
    Ok(acts)
}

/// The one epsilon of all batch normalisations.
pub(super) fn epsilon(tree: &Tree<'_>) -> Result<f64, Fault> {
    let mut common = None;
    for (name, module) in &tree.modules {
        if module.kind() != "BatchNorm2d" {
            continue;
        }
        let Some(eps) = tree.float(name, "eps") else {
            return Err(Fault::malformed(format!("`{name}` does not say its epsilon")));
        };
        if *common.get_or_insert(eps) != eps {
            return Err(Fault::Unsupported("a model with several normalisation epsilons".into()));
        }
    }
    common.ok_or_else(|| Fault::malformed("it has no batch normalisation"))
}

/// Compares the attributes of the modules with the graph.
pub(super) fn attributes(tree: &Tree<'_>, graph: &Graph) -> Result<(), Fault> {
    let refuse = |name: &str, what: &str| {
        Err(Fault::Unsupported(format!("a model whose `{name}` has {what} unlike YOLOv8")))
    };
    for conv in graph.convs() {
        let (module, weight) = match conv.norm {
            true => ("Conv", format!("{}.conv", conv.name)),
            false => ("Conv2d", conv.name.clone()),
        };
        for (name, expected) in [(&conv.name, module), (&weight, "Conv2d")] {
            if tree.modules.get(name).map(|module| module.kind()) != Some(expected) {
                return refuse(name, "another class");
            }
        }
        let (k, s) = (conv.kernel as i64, conv.stride as i64);
        let pairs =
            [("kernel_size", k), ("stride", s), ("padding", k / 2), ("dilation", 1), ("groups", 1)];
        for (attr, expected) in pairs {
            if tree.number(&weight, attr) != Some(expected) {
                return refuse(&weight, attr);
            }
        }
        if tree.text(&weight, "padding_mode").is_some_and(|mode| mode != "zeros") {
            return refuse(&weight, "padding_mode");
        }
    }
    for name in ["model.10", "model.13"] {
        if tree.number(name, "scale_factor") != Some(2)
            || tree.text(name, "mode") != Some("nearest")
        {
            return refuse(name, "a scale or mode");
        }
    }
    for name in ["model.11", "model.14", "model.17", "model.20"] {
        if tree.number(name, "d").is_some_and(|axis| axis != 1) {
            return refuse(name, "an axis");
        }
    }
    let pool = "model.9.m";
    for (attr, expected) in [("kernel_size", 5), ("stride", 1), ("padding", 2), ("dilation", 1)] {
        if tree.number(pool, attr) != Some(expected) {
            return refuse(pool, attr);
        }
    }
    if tree.number("model.9", "n").is_some_and(|n| n != 3)
        || tree.flag("model.9", "add") == Some(true)
    {
        return refuse("model.9", "pooling");
    }
    residuals(tree)?;
    head(tree, graph)
}

/// Residuals are in the backbone's bottlenecks, and only there.
fn residuals(tree: &Tree<'_>) -> Result<(), Fault> {
    for (name, module) in &tree.modules {
        if module.kind() != "Bottleneck" {
            continue;
        }
        let backbone = ["model.2.", "model.4.", "model.6.", "model.8."];
        let expected = backbone.iter().any(|layer| name.starts_with(layer));
        if tree.flag(name, "add") != Some(expected) {
            return Err(Fault::Unsupported(format!(
                "a model whose `{name}` has a residual connection unlike YOLOv8"
            )));
        }
    }
    Ok(())
}

fn head(tree: &Tree<'_>, graph: &Graph) -> Result<(), Fault> {
    let name = "model.22";
    let pairs = [
        ("nc", graph.classes as i64),
        ("reg_max", graph.reg_max as i64),
        ("nl", graph.outputs.len() as i64),
    ];
    for (attr, expected) in pairs {
        if tree.number(name, attr).is_some_and(|found| found != expected) {
            return Err(Fault::Unsupported(format!(
                "a model whose head says another {attr} than its tensors"
            )));
        }
    }
    let one_to_one = tree.modules.contains_key("model.22.one2one_cv2");
    if one_to_one || tree.flag(name, "end2end") == Some(true) {
        return Err(Fault::Unsupported("an end-to-end model (YOLOv10 or YOLO26)".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_apart() {
        assert_eq!(
            other_family(&["Conv", "C3k2", "SPPF", "C2PSA"]),
            Some("a YOLO11 or YOLO26 model")
        );
        assert_eq!(other_family(&["Conv", "C2f", "SCDown", "PSA"]), Some("a YOLOv10 model"));
        assert_eq!(other_family(&["Conv", "C3", "SPPF"]), Some("a YOLOv5 or YOLOv3 model"));
        assert_eq!(other_family(&LAYERS.map(|(kind, _)| kind)), None);
        assert_eq!(other_task("SegmentationModel", "Segment"), Some("a segment model"));
        assert_eq!(other_task("DetectionModel", "Detect"), None);
    }
}
