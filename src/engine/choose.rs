//! Which executor runs a network here: by CPUID and by what a job says, never by timing.
//!
//! A choice decides output bytes, so the same machine must always make the same one, and a job
//! that has begun in one numeric class goes on in it or not at all.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::api::{Engine, EngineError};
use super::candle::Candle;
use super::device::{CUDA_CLASS, Device, count};
use super::fused::{Fused, PackedFile};
use crate::kernels::task::Element;
use crate::kernels::{Cpu, Tier};
use crate::yolo::{Graph, Network};

/// The environment variable that forces a tier of kernels; for tests and measurements.
pub const TIER_VARIABLE: &str = "HAUL_CPU_TIER";

/// Classes of the reference executor, which new jobs never get.
const CANDLE: &str = "candle-";

/// Which arithmetic is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Whatever is fastest on this CPU.
    #[default]
    Auto,
    /// Single precision throughout.
    F32,
    /// Activations and weights in bf16, sums in single precision.
    Bf16,
    /// Activations and weights in f16, sums in single precision; GPUs only.
    F16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 4] =
        [Precision::Auto, Precision::F32, Precision::Bf16, Precision::F16];

    /// As `--precision` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Precision::Auto => "auto",
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }

    /// Whether a numeric class is what this asks for.
    fn takes(self, class: &str) -> bool {
        let class = class.strip_prefix(CUDA_CLASS).unwrap_or(class);
        let (half, brain) = (class.starts_with("f16"), class.starts_with("bf16"));
        match self {
            Precision::Auto => true,
            // All others compute in single precision: f32, f32-portable, candle-f32-….
            Precision::F32 => !half && !brain,
            Precision::Bf16 => brain,
            Precision::F16 => half,
        }
    }

    /// Whether a tier that the CPU has is a candidate for a new job.
    fn wants(self, tier: Tier, cpu: &Cpu) -> bool {
        match self {
            // Where `vdpbf16ps` is slow, f32 is faster and more exact.
            Precision::Auto => tier != Tier::Avx512Bf16 || cpu.bf16_is_fast,
            Precision::F32 => tier.element() == Element::F32,
            Precision::Bf16 => tier.element() == Element::Bf16,
            Precision::F16 => false,
        }
    }
}

/// What computes, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arithmetic {
    /// In which precision.
    pub precision: Precision,
    /// Where.
    pub device: Device,
    /// Pictures that a GPU computes together; `None` is its engine's own choice, or the job's.
    pub batch: Option<usize>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// Our kernels of this tier.
    Kernels(Tier),
    /// candle on the CPU: a job that was begun with it.
    Candle,
    /// These GPUs, by CUDA's numbers.
    Gpus(Vec<usize>),
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Precision::ALL.into_iter().find(|precision| precision.name() == text);
        found.ok_or_else(|| format!("`{text}` is no precision (it is auto, f32, bf16 or f16)"))
    }
}

/// The tier that [`TIER_VARIABLE`] forces, if it is set.
///
/// # Errors
/// [`EngineError::Forced`] when it names no tier, or one that this CPU lacks.
pub fn forced() -> Result<Option<Tier>, EngineError> {
    std::env::var_os(TIER_VARIABLE)
        .map(|name| named(&name.to_string_lossy(), Cpu::get()))
        .transpose()
}

fn named(name: &str, cpu: &Cpu) -> Result<Tier, EngineError> {
    let wrong = |reason| EngineError::Forced { reason };
    let tier: Tier = name.parse().map_err(wrong)?;
    match cpu.has(tier) {
        true => Ok(tier),
        false => Err(wrong(format!("this CPU has no {tier} kernels; it has {}", tiers(cpu)))),
    }
}

/// The tier for a job of this `precision`; `class` is the numeric class it already has, if it has
/// one.
///
/// A `class` that is not of the precision asked for is left aside: the job's fingerprint then
/// refuses, and names both.
///
/// # Errors
/// [`EngineError`] when this CPU has no such tier, or `forced` contradicts `precision`.
pub fn choose(
    precision: Precision,
    class: Option<&str>,
    forced: Option<Tier>,
) -> Result<Tier, EngineError> {
    choose_on(Cpu::get(), precision, class, forced)
}

fn choose_on(
    cpu: &Cpu,
    precision: Precision,
    class: Option<&str>,
    forced: Option<Tier>,
) -> Result<Tier, EngineError> {
    if let Some(tier) = forced {
        return match precision.takes(tier.numeric_class()) {
            true => Ok(tier),
            false => Err(EngineError::Forced {
                reason: format!("`{tier}` does not compute in {precision}, as --precision says"),
            }),
        };
    }
    if precision == Precision::F16 {
        return Err(EngineError::Half);
    }
    let here = || usable(cpu);
    match class.filter(|class| precision.takes(class)) {
        Some(class) => {
            let found = here().find(|tier| tier.numeric_class() == class);
            found.ok_or_else(|| no_class(class, classes(cpu)))
        }
        None => {
            let found = here().find(|&tier| precision.wants(tier, cpu));
            found.ok_or_else(|| EngineError::Precision {
                precision: precision.name(),
                needs: "AVX-512 BF16 or AMX",
                cpu: cpu.brand.clone(),
            })
        }
    }
}

/// What computes a job: by what is asked for, by what the machine has, and, where the job exists, by
/// its numeric `class`. A class that is not what is asked for is left aside, as in [`choose`].
/// `notes` gets what people may want to know.
///
/// # Errors
/// [`EngineError`] when there is no such thing here.
pub fn decide(
    arithmetic: &Arithmetic,
    class: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Chosen, EngineError> {
    let Arithmetic { precision, ref device, .. } = *arithmetic;
    let class = class.filter(|class| precision.takes(class) && device.takes(class));
    let forced = forced()?;
    match (device, class) {
        (Device::Cuda(wanted), _) => {
            let missing = |reason| EngineError::Device { device: device.to_string(), reason };
            let here = count().map_err(missing)?;
            match wanted.iter().find(|&&number| number >= here) {
                None => return Ok(Chosen::Gpus(wanted.clone())),
                Some(number) => {
                    let last = here.saturating_sub(1);
                    let reason = format!("there is no cuda:{number}; the last one is cuda:{last}");
                    return Err(missing(reason));
                }
            }
        }
        (Device::Auto, Some(class)) if class.starts_with(CUDA_CLASS) => {
            let here = |reason| format!("{} ({reason})", classes(Cpu::get()));
            count().map_err(|reason| no_class(class, here(reason)))?;
            return Ok(Chosen::Gpus(vec![0]));
        }
        // A tier that is forced is a CPU that is asked for.
        (Device::Auto, None) if forced.is_none() => match count() {
            Ok(_) => return Ok(Chosen::Gpus(vec![0])),
            Err(reason) if cfg!(feature = "cuda") => notes.push(format!("on the CPU: {reason}")),
            Err(_) => {}
        },
        _ => {}
    }
    if class.is_some_and(|class| class.starts_with(CANDLE)) && forced.is_none() {
        return Ok(Chosen::Candle);
    }
    choose(precision, class, forced).map(Chosen::Kernels)
}

/// The engine for a job, of what was [`decide`]d for it. `imgsz` is the longest side of its inputs.
///
/// # Errors
/// [`EngineError`] when there is no such engine here, or it cannot take the network.
pub fn open(
    network: Arc<Network>,
    chosen: &Chosen,
    arithmetic: &Arithmetic,
    class: Option<&str>,
    imgsz: usize,
) -> Result<Arc<dyn Engine>, EngineError> {
    match chosen {
        Chosen::Kernels(tier) => load(network, *tier),
        Chosen::Candle => match class {
            Some(class) if class != Candle::class() => {
                let also = format!("{}, {}", classes(Cpu::get()), Candle::class());
                Err(no_class(class, also))
            }
            _ => Ok(Arc::new(Candle::new(&network)?)),
        },
        Chosen::Gpus(gpus) => on_gpus(&network, gpus, arithmetic, class, imgsz),
    }
}

#[cfg(feature = "cuda")]
fn on_gpus(
    network: &Network,
    gpus: &[usize],
    arithmetic: &Arithmetic,
    class: Option<&str>,
    imgsz: usize,
) -> Result<Arc<dyn Engine>, EngineError> {
    let fits = |class: &&str| class.starts_with(CUDA_CLASS) && arithmetic.precision.takes(class);
    let class = class.filter(fits);
    Ok(Arc::new(super::candle::cuda::Cuda::new(network, gpus, arithmetic, class, imgsz)?))
}

#[cfg(not(feature = "cuda"))]
fn on_gpus(
    _: &Network,
    gpus: &[usize],
    _: &Arithmetic,
    _: Option<&str>,
    _: usize,
) -> Result<Arc<dyn Engine>, EngineError> {
    let device = Device::Cuda(gpus.to_vec()).to_string();
    let reason = super::device::count().err().unwrap_or_default();
    Err(EngineError::Device { device, reason })
}

/// Prepares `network` for the kernels of `tier`.
///
/// The engine keeps its own form of the weights and drops its reference to `network`: who wants
/// the memory back drops theirs too.
///
/// # Errors
/// [`EngineError`] names the convolution whose weights could not be prepared.
pub fn load(network: Arc<Network>, tier: Tier) -> Result<Arc<dyn Engine>, EngineError> {
    Ok(Arc::new(Fused::new(&network, tier)?))
}

/// The same with weights that were packed before: no weight is read until it is used.
///
/// # Errors
/// [`EngineError::Packed`] where they are not what `graph` and `tier` need.
pub fn load_packed(
    graph: &Graph,
    tier: Tier,
    packed: &PackedFile<'_>,
) -> Result<Arc<dyn Engine>, EngineError> {
    Ok(Arc::new(Fused::from_packed(graph, tier, packed)?))
}

/// The tiers of a CPU that a job may run on, fastest first. The naive reference only runs when it
/// is forced to.
fn usable(cpu: &Cpu) -> impl Iterator<Item = Tier> + '_ {
    Tier::ALL.into_iter().filter(|&tier| tier != Tier::Reference && cpu.has(tier))
}

fn no_class(class: &str, here: String) -> EngineError {
    EngineError::Class { class: class.to_owned(), here }
}

/// The numeric classes of a CPU, each once.
fn classes(cpu: &Cpu) -> String {
    let mut classes: Vec<&str> = usable(cpu).map(Tier::numeric_class).collect();
    classes.dedup();
    classes.join(", ")
}

fn tiers(cpu: &Cpu) -> String {
    let tiers = Tier::ALL.into_iter().filter(|&tier| cpu.has(tier));
    tiers.map(Tier::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(level: usize, bf16_is_fast: bool) -> Cpu {
        Cpu {
            brand: "a CPU".into(),
            avx2: level > 0,
            avx512: level > 1,
            avx512_bf16: level > 2,
            amx: level > 3,
            bf16_is_fast,
        }
    }

    fn picked(cpu: &Cpu, precision: Precision, class: Option<&str>) -> Result<Tier, String> {
        choose_on(cpu, precision, class, None).map_err(|error| error.to_string())
    }

    #[test]
    fn new_jobs_get_the_fastest_tier_of_their_precision() {
        use Precision::{Auto, Bf16, F32};
        for (cpu, precision, tier) in [
            (cpu(0, false), Auto, Tier::Portable),
            (cpu(1, false), Auto, Tier::Avx2),
            (cpu(2, true), Auto, Tier::Avx512),
            (cpu(3, true), Auto, Tier::Avx512Bf16),
            (cpu(4, false), Auto, Tier::Amx),
            (cpu(4, false), Bf16, Tier::Amx),
            (cpu(4, false), F32, Tier::Avx512),
            // Slow bf16 is for those who ask for it.
            (cpu(3, false), Auto, Tier::Avx512),
            (cpu(3, false), Bf16, Tier::Avx512Bf16),
            (cpu(3, true), F32, Tier::Avx512),
            (cpu(0, false), F32, Tier::Portable),
        ] {
            assert_eq!(picked(&cpu, precision, None), Ok(tier), "{cpu:?} {precision}");
        }
        let error = picked(&cpu(2, true), Bf16, None).unwrap_err();
        assert!(error.contains("a CPU") && error.contains("--precision f32"), "{error}");
    }

    #[test]
    fn a_job_goes_on_in_its_class_or_not_at_all() {
        let best = cpu(3, true);
        assert_eq!(picked(&best, Precision::Auto, Some("f32")), Ok(Tier::Avx512));
        assert_eq!(picked(&cpu(1, true), Precision::Auto, Some("f32")), Ok(Tier::Avx2));
        let portable = Tier::Portable.numeric_class();
        assert_eq!(picked(&best, Precision::F32, Some(portable)), Ok(Tier::Portable));
        assert_eq!(
            picked(&cpu(3, false), Precision::Auto, Some("bf16-avx512")),
            Ok(Tier::Avx512Bf16)
        );
        let error = picked(&cpu(1, false), Precision::Auto, Some("bf16-avx512")).unwrap_err();
        assert!(error.contains("`bf16-avx512`") && error.contains("f32, f32-portable"), "{error}");
        let tiles = picked(&cpu(4, false), Precision::Auto, Some("bf16-avx512"));
        assert_eq!(tiles, Ok(Tier::Avx512Bf16), "a class is a class, also where tiles are faster");
        // Another precision than the job's is for the fingerprint to refuse, by name.
        assert_eq!(picked(&best, Precision::F32, Some("bf16-avx512")), Ok(Tier::Avx512));
        assert_eq!(picked(&best, Precision::Bf16, Some("f32")), Ok(Tier::Avx512Bf16));
    }

    #[test]
    fn a_forced_tier_is_checked() {
        let best = cpu(3, true);
        assert_eq!(named("reference", &cpu(0, false)).unwrap(), Tier::Reference);
        let error = named("avx512", &cpu(1, false)).unwrap_err().to_string();
        assert!(error.contains("HAUL_CPU_TIER") && error.contains("avx2, portable"), "{error}");
        let error = named("mmx", &best).unwrap_err().to_string();
        assert!(error.contains("`mmx` is no tier"), "{error}");
        let forced = |precision, tier| choose_on(&best, precision, Some("f32"), Some(tier));
        assert_eq!(forced(Precision::Auto, Tier::Avx512Bf16).unwrap(), Tier::Avx512Bf16);
        assert!(forced(Precision::F32, Tier::Avx512Bf16).is_err());
        assert!(forced(Precision::Bf16, Tier::Reference).is_err());
    }
}
