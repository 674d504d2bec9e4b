//! What this processor can do, by CPUID and never by timing.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use super::task::Element;

/// A set of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// AVX-512 with `vdpbf16ps`.
    Avx512Bf16,
    /// AVX-512, f32.
    Avx512,
    /// AVX2 and FMA, f32.
    Avx2,
    /// Plain Rust, f32.
    Portable,
    /// The naive reference, f32; for tests, some hundred times slower.
    Reference,
}

impl Tier {
    /// All of them, fastest first.
    pub const ALL: [Tier; 5] =
        [Tier::Avx512Bf16, Tier::Avx512, Tier::Avx2, Tier::Portable, Tier::Reference];

    /// As `HAUL_CPU_TIER` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tier::Avx512Bf16 => "avx512bf16",
            Tier::Avx512 => "avx512",
            Tier::Avx2 => "avx2",
            Tier::Portable => "portable",
            Tier::Reference => "reference",
        }
    }

    /// How it stores activations and weights.
    #[must_use]
    pub fn element(self) -> Element {
        match self {
            Tier::Avx512Bf16 => Element::Bf16,
            _ => Element::F32,
        }
    }

    /// Whether 3 × 3 convolutions go by Winograd's scheme. Part of the arithmetic: the same for all
    /// tiers of a class.
    #[must_use]
    pub fn has_winograd(self) -> bool {
        matches!(self, Tier::Avx512 | Tier::Avx2 | Tier::Reference)
    }

    /// The name of its arithmetic: tiers of one class give the same bits.
    #[must_use]
    pub fn numeric_class(self) -> &'static str {
        match self {
            Tier::Avx512Bf16 => "bf16-avx512",
            Tier::Avx512 | Tier::Avx2 | Tier::Reference => "f32",
            Tier::Portable => super::portable::CLASS,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Tier::ALL.map(Tier::name).join(", ");
        let found = Tier::ALL.into_iter().find(|tier| tier.name() == text);
        found.ok_or_else(|| format!("`{text}` is no tier of kernels (one of {names})"))
    }
}

/// This processor, as far as kernels care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// As it calls itself.
    pub brand: String,
    /// AVX2 and FMA, usable.
    pub avx2: bool,
    /// The AVX-512 foundation and its companions (BW, DQ, VL), usable.
    pub avx512: bool,
    /// `vdpbf16ps`, usable.
    pub avx512_bf16: bool,
    /// Whether `vdpbf16ps` does twice the work of an f32 FMA in the same time: it does on AMD's
    /// Zen 4 and later, and does half of it on Intel's.
    pub bf16_is_fast: bool,
}

impl Cpu {
    /// This one; looked at once.
    #[must_use]
    pub fn get() -> &'static Cpu {
        static CPU: OnceLock<Cpu> = OnceLock::new();
        CPU.get_or_init(detect)
    }

    /// Whether the kernels of `tier` run here.
    #[must_use]
    pub fn has(&self, tier: Tier) -> bool {
        match tier {
            Tier::Avx512Bf16 => self.avx512 && self.avx512_bf16,
            Tier::Avx512 => self.avx512,
            Tier::Avx2 => self.avx2,
            Tier::Portable | Tier::Reference => true,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Cpu {
    use std::arch::x86_64::__cpuid;
    let name = |leaf: u32| {
        let r = __cpuid(leaf);
        [r.eax, r.ebx, r.ecx, r.edx].map(u32::to_le_bytes).concat()
    };
    let mut brand = Vec::new();
    if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        brand = (0x8000_0002u32..=0x8000_0004).flat_map(name).collect();
    }
    let brand = String::from_utf8_lossy(&brand).replace('\0', " ").trim().to_owned();
    let vendor = __cpuid(0);
    let amd =
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    Cpu {
        brand,
        avx2: is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        avx512,
        avx512_bf16: is_x86_feature_detected!("avx512bf16"),
        bf16_is_fast: amd,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Cpu {
    Cpu { brand: std::env::consts::ARCH.to_owned(), ..Cpu::default() }
}
