//! What this processor can do, by CPUID and never by timing.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::task::Element;

/// A set of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// AMX tiles of bf16, with AVX-512 for the rest.
    Amx,
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
    pub const ALL: [Tier; 6] =
        [Tier::Amx, Tier::Avx512Bf16, Tier::Avx512, Tier::Avx2, Tier::Portable, Tier::Reference];

    /// As `HAUL_CPU_TIER` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tier::Amx => "amx",
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
            Tier::Amx | Tier::Avx512Bf16 => Element::Bf16,
            _ => Element::F32,
        }
    }

    /// Whether 3 × 3 convolutions go by Winograd's scheme. Part of the arithmetic: the same for all
    /// tiers of a class.
    #[must_use]
    pub fn has_winograd(self) -> bool {
        !self.has_tiles()
    }

    /// Whether it works on tiles: K-steps are whole lines of 32 elements, weights lie in tiles.
    #[must_use]
    pub fn has_tiles(self) -> bool {
        self == Tier::Amx
    }

    /// The name of its arithmetic: tiers of one class give the same bits.
    #[must_use]
    pub fn numeric_class(self) -> &'static str {
        match self {
            Tier::Amx => "bf16-amx",
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
    /// AMX tiles and their bf16 products, usable: the operating system lets this process have them.
    pub amx: bool,
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
            Tier::Amx => {
                (self.amx || PRETEND_AMX.load(Ordering::Relaxed)) && self.avx512 && self.avx512_bf16
            }
            Tier::Avx512Bf16 => self.avx512 && self.avx512_bf16,
            Tier::Avx512 => self.avx512,
            Tier::Avx2 => self.avx2,
            Tier::Portable | Tier::Reference => true,
        }
    }
}

/// For tests that emulate what this CPU lacks.
static PRETEND_AMX: AtomicBool = AtomicBool::new(false);

impl Cpu {
    /// From here on this CPU is taken to have AMX. For tests that have installed an emulator: without
    /// one, the first tile kills the process.
    #[doc(hidden)]
    pub fn pretend_amx() {
        PRETEND_AMX.store(true, Ordering::Relaxed);
    }
}

/// Whether there are AMX tiles, the operating system saves them, and it lets this process use them
/// (asked once; threads started later inherit the answer).
#[cfg(target_arch = "x86_64")]
fn amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    /// XCR0: tile configuration and tile data.
    const TILES: u64 = 0b11 << 17;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & 1 << 27 == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    if features & 1 << 22 == 0 || features & 1 << 24 == 0 {
        return false;
    }
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: the register exists where OSXSAVE is set, which was seen above.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: OSXSAVE implies xsave.
    if unsafe { xcr0() } & TILES != TILES {
        return false;
    }
    permitted()
}

/// Asks Linux for the tiles' 8 KB of state.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: nix::libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: nix::libc::c_long = 18;
    // SAFETY: this request takes two integers and touches no memory of ours.
    let code = unsafe {
        nix::libc::syscall(nix::libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    };
    code == 0
}

/// Elsewhere nobody has tried.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn permitted() -> bool {
    false
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
        amx: amx(),
        bf16_is_fast: amd,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Cpu {
    Cpu { brand: std::env::consts::ARCH.to_owned(), ..Cpu::default() }
}
