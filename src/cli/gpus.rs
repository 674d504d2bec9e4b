//! What `haul doctor` says of GPUs.

use serde_json::{Value, json};

use crate::engine::{Arithmetic, Device, Gpu, Precision, decide, gpus};
use crate::job::mib;
use crate::store::one_line;

/// The GPUs of this machine, as far as this haul can use them.
pub(super) struct Gpus {
    /// They, or why there are none.
    found: Result<Vec<Gpu>, String>,
    /// Whether a new job runs on one of them unless it is told otherwise.
    auto: bool,
}

impl Gpus {
    pub(super) fn look() -> Gpus {
        let chosen = decide(&Arithmetic::default(), None, &mut Vec::new());
        let auto = matches!(chosen, Ok(crate::engine::Chosen::Gpus(_)));
        Gpus { found: gpus(), auto }
    }

    fn any(&self) -> bool {
        self.found.as_ref().is_ok_and(|gpus| !gpus.is_empty())
    }

    /// What a GPU computes in where this precision is asked for; nothing where there is none.
    pub(super) fn precision(&self, asked: Precision) -> Option<Precision> {
        self.any().then_some(match asked {
            Precision::Auto => Precision::F16,
            other => other,
        })
    }

    /// Each, or the reason, for programs.
    pub(super) fn json(&self) -> (Value, Value) {
        let gpu = |gpu: &Gpu| {
            json!({
                "device": device(gpu),
                "name": gpu.name,
                "capability": capability(gpu),
                "memory_bytes": gpu.memory,
                "memory_free_bytes": gpu.free,
            })
        };
        match &self.found {
            Ok(found) => (found.iter().map(gpu).collect(), Value::Null),
            Err(reason) => (json!([]), json!(reason)),
        }
    }

    /// The same for people.
    pub(super) fn text(&self) -> String {
        let found = match &self.found {
            Ok(found) if !found.is_empty() => found,
            Ok(_) => return "gpus       none\n".into(),
            Err(reason) => return format!("gpus       none: {}\n", one_line(reason)),
        };
        let auto = if self.auto { &device(&found[0]) } else { "the CPU" };
        let mut text = format!("gpus       (--device; auto takes {auto})\n");
        for gpu in found {
            text.push_str(&format!(
                "  {:<12} {}, capability {}, memory {}, {} free\n",
                device(gpu),
                one_line(&gpu.name),
                capability(gpu),
                mib(gpu.memory),
                gpu.free.map_or_else(|| "unknown".into(), mib)
            ));
        }
        text
    }
}

/// As `--device` names it.
fn device(gpu: &Gpu) -> String {
    Device::Cuda(vec![gpu.number]).to_string()
}

fn capability(gpu: &Gpu) -> String {
    let (major, minor) = gpu.capability;
    format!("{major}.{minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(number: usize) -> Gpu {
        Gpu {
            number,
            name: "Some GPU".into(),
            capability: (8, 6),
            memory: 24 << 30,
            free: Some(20 << 30),
        }
    }

    #[test]
    fn each_gpu_is_named_as_device_takes_it() {
        let gpus = Gpus { found: Ok(vec![gpu(0), gpu(1)]), auto: true };
        let text = gpus.text();
        assert!(text.starts_with("gpus       (--device; auto takes cuda:0)\n"), "{text}");
        let line = "\n  cuda:1       Some GPU, capability 8.6, memory 24576 MiB, 20480 MiB free\n";
        assert!(text.contains(line), "{text}");
        let (list, reason) = gpus.json();
        assert_eq!(list[1]["device"], "cuda:1");
        assert_eq!(list[1]["capability"], "8.6");
        assert_eq!(list[1]["memory_free_bytes"], 20u64 << 30);
        assert!(reason.is_null());
        assert_eq!(gpus.precision(Precision::Auto), Some(Precision::F16));
        assert_eq!(gpus.precision(Precision::Bf16), Some(Precision::Bf16));
        // A tier that is forced is a CPU that is asked for.
        let forced = Gpus { auto: false, ..gpus };
        assert!(forced.text().contains("auto takes the CPU"), "{}", forced.text());
    }

    #[test]
    fn where_there_is_none_it_says_why() {
        let gpus = Gpus { found: Err("no driver".into()), auto: false };
        assert_eq!(gpus.text(), "gpus       none: no driver\n");
        assert_eq!(gpus.json(), (json!([]), json!("no driver")));
        assert_eq!(gpus.precision(Precision::Auto), None);
    }
}
