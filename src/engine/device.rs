//! Which device a network runs on: what people ask for, and what this machine has.

use std::fmt;
use std::str::FromStr;

/// What `--device` may say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU, if there is one that haul can use, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// These GPUs, by CUDA's numbers, each once.
    Cuda(Vec<usize>),
}

impl Device {
    /// Whether a job of this numeric class runs there.
    pub(super) fn takes(&self, class: &str) -> bool {
        match self {
            Device::Auto => true,
            Device::Cpu => !class.starts_with(CUDA_CLASS),
            Device::Cuda(_) => class.starts_with(CUDA_CLASS),
        }
    }
}

/// What numeric classes of GPUs begin with.
pub(super) const CUDA_CLASS: &str = "cuda-";

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(gpus) => {
                let gpus: Vec<String> = gpus.iter().map(usize::to_string).collect();
                write!(f, "cuda:{}", gpus.join(","))
            }
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no device (it is auto, cpu, cuda:0 or cuda:0,1)");
        match text {
            "auto" => return Ok(Device::Auto),
            "cpu" => return Ok(Device::Cpu),
            "cuda" => return Ok(Device::Cuda(vec![0])),
            _ => {}
        }
        let numbers = text.strip_prefix("cuda:").ok_or_else(wrong)?;
        let mut gpus = Vec::new();
        for number in numbers.split(',') {
            let digits =
                (1..=4).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
            let gpu = number.parse().ok().filter(|_| digits).ok_or_else(wrong)?;
            if gpus.contains(&gpu) {
                return Err(format!("`{text}` names cuda:{gpu} twice"));
            }
            gpus.push(gpu);
        }
        Ok(Device::Cuda(gpus))
    }
}

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// CUDA's number.
    pub number: usize,
    /// As its maker calls it.
    pub name: String,
    /// Major and minor version of what it can do.
    pub capability: (u32, u32),
    /// All its memory in bytes.
    pub memory: u64,
    /// What of it nobody uses just now, if that can be seen: a GPU may be full, or another's alone.
    pub free: Option<u64>,
}

/// The GPUs that this haul can use, or why there are none.
///
/// # Errors
/// A sentence without its first capital: built without CUDA, no driver, a driver that is too old, no
/// GPU.
#[cfg(not(feature = "cuda"))]
pub fn gpus() -> Result<Vec<Gpu>, String> {
    Err("this haul was built without CUDA (cargo feature `cuda`; docs/cuda.md)".into())
}

#[cfg(feature = "cuda")]
pub use super::candle::cuda::gpus;

/// How many GPUs there are, or as [`gpus`] why there are none; none is opened for it.
#[cfg(not(feature = "cuda"))]
pub(super) fn count() -> Result<usize, String> {
    gpus().map(|gpus| gpus.len())
}

#[cfg(feature = "cuda")]
pub(super) use super::candle::cuda::count;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:0,1", "cuda:3,0,12"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(vec![0])));
        for wrong in ["", "gpu", "CUDA:0", "cuda:", "cuda:-1", "cuda:0,", "cuda:+1", "cuda:99999"] {
            let error = wrong.parse::<Device>().unwrap_err();
            assert!(error.contains("it is auto, cpu, cuda:0 or cuda:0,1"), "{error}");
        }
        assert!("cuda:1,1".parse::<Device>().unwrap_err().contains("twice"));
    }
}
