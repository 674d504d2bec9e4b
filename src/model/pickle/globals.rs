//! The names a checkpoint's pickle may refer to, and what becomes of them.
//!
//! None is ever called. A few stand for data whose construction is known (tensors, ordered
//! dictionaries); the others only label an opaque [`super::Node::Object`].

use super::super::error::Fault;
use super::super::info::Dtype;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Meaning {
    /// `torch._utils._rebuild_tensor_v2` and `_v3`: storage, offset, size, stride …
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: a tensor as it is.
    RebuildParameter,
    /// A storage class; `None` for element types that no weight has.
    Storage(Option<Dtype>),
    /// `collections.OrderedDict`: a dictionary.
    Dict,
    /// `torch.Size`: its tuple.
    Size,
    /// A label.
    Opaque,
}

/// Looks a name up.
pub(super) fn meaning(module: &str, name: &str) -> Result<Meaning, Fault> {
    let storage = match (module, name) {
        ("torch" | "torch.storage", _) => name.strip_suffix("Storage"),
        _ => None,
    };
    if let Some(element) = storage {
        return Ok(Meaning::Storage(match element {
            "Half" => Some(Dtype::F16),
            "BFloat16" => Some(Dtype::Bf16),
            "Float" => Some(Dtype::F32),
            "Double" => Some(Dtype::F64),
            "Long" | "Int" | "Short" | "Char" | "Byte" | "Bool" => None,
            _ => return Err(refused(module, name)),
        }));
    }
    Ok(match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => Meaning::RebuildTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Meaning::RebuildParameter
        }
        ("collections", "OrderedDict") => Meaning::Dict,
        ("torch", "Size") => Meaning::Size,
        // Types and constants of torch; a lower-case name could be a function all the same, but
        // nothing is called.
        (
            "torch",
            "device" | "dtype" | "float16" | "bfloat16" | "float32" | "float64" | "int64",
        ) => Meaning::Opaque,
        ("torch.nn.parameter", "Parameter") => Meaning::Opaque,
        ("builtins" | "__builtin__", _) if BUILTINS.contains(&name) => Meaning::Opaque,
        ("collections", "defaultdict" | "deque")
        | ("argparse", "Namespace")
        | ("types", "SimpleNamespace")
        | ("pathlib" | "pathlib._local", "PosixPath" | "WindowsPath" | "Path" | "PurePosixPath")
        | ("datetime", "datetime" | "date" | "timedelta")
        | ("numpy", "dtype" | "ndarray" | "float64" | "float32" | "int64")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
        | ("_codecs", "encode")
        | ("copyreg", "_reconstructor") => Meaning::Opaque,
        _ if module.starts_with("torch.nn.modules.") || module.starts_with("ultralytics.") => {
            Meaning::Opaque
        }
        _ => return Err(refused(module, name)),
    })
}

/// Python's own types. `getattr` is how older Pythons pickle members of enumerations.
const BUILTINS: &[&str] = &[
    "set",
    "frozenset",
    "list",
    "dict",
    "tuple",
    "object",
    "int",
    "float",
    "bool",
    "str",
    "bytes",
    "bytearray",
    "complex",
    "slice",
    "range",
    "getattr",
];

fn refused(module: &str, name: &str) -> Fault {
    let hint = match module.split('.').next() {
        Some("models" | "utils") => " (a checkpoint of YOLOv5, YOLOv7 or another older family?)",
        Some("__main__") => " (a class of the script that trained it?)",
        Some("os" | "posix" | "nt" | "subprocess" | "sys" | "socket" | "shutil" | "runpy") => {
            " (this file would run a command if it were unpickled: do not load it elsewhere)"
        }
        _ => "",
    };
    let mut global: String = format!("{module}.{name}").chars().take(120).collect();
    global.retain(|c| !c.is_control());
    Fault::Global(global, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_refused_by_name() {
        for (module, name) in [
            ("os", "system"),
            ("posix", "system"),
            ("builtins", "eval"),
            ("builtins", "exec"),
            ("__builtin__", "__import__"),
            ("torch", "load"),
            ("torch", "EvilStorage"),
            ("torch.hub", "load"),
            ("torch.nn.modules", "x"),
            ("ultralytics", "x"),
            ("models.yolo", "Model"),
        ] {
            match meaning(module, name) {
                Err(Fault::Global(global, _)) => assert_eq!(global, format!("{module}.{name}")),
                other => panic!("{module}.{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn classes_are_labels() {
        let conv = meaning("ultralytics.nn.modules.conv", "Conv").unwrap();
        assert_eq!(conv, Meaning::Opaque);
        assert_eq!(meaning("torch", "HalfStorage").unwrap(), Meaning::Storage(Some(Dtype::F16)));
    }
}
