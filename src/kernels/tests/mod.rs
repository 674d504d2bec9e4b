//! The kernels against naive ones, at every shape that is awkward.
//!
//! Which tier is held to what:
//! - `avx512`, `avx2` and `reference` promise the same bits, so bits are compared; only NaN equals
//!   NaN whatever its payload, which depends on the order of an instruction's operands.
//! - `portable` rounds twice per step where the compiler may not fuse: a tolerance.
//! - `avx512bf16` adds the two products of a pair in an order of its own and takes denormals for
//!   zero (that is how `vdpbf16ps` is defined), while the reference adds them one by one. The sums
//!   then differ by some 1e-7 of their terms, and a result stored as bf16 may round to the
//!   neighbour: a tolerance of one unit of bf16's last place. Its SiLU consists of lines that do
//!   not quite meet: sums on either side of a joint differ by up to 2·10⁻³ of themselves.
//!
//! Input, output and weights lie flush with the guard pages of their memory in turns, so that a
//! kernel that reads or writes one element too far dies.

mod case;
mod check;
mod conv;
mod elementwise;
mod winograd;

use super::{Cpu, Kernels, Tier};

/// The tiers of this CPU, fastest first; not those that want weights in tiles, which other tests
/// hold to the reference.
fn tiers() -> impl Iterator<Item = Kernels> {
    let here = Tier::ALL.into_iter().filter(|&tier| Cpu::get().has(tier) && !tier.has_tiles());
    here.filter_map(Kernels::new)
}

/// Says what is tested here, for whoever runs the tests where not all tiers can be.
#[test]
fn tiers_of_this_cpu() {
    let names: Vec<_> = tiers().map(|kernels| kernels.tier().name()).collect();
    println!("tiers: {}", names.join(" "));
    assert!(names.ends_with(&["portable", "reference"]));
}

/// Whether two numbers are the same as far as anybody may ask.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// Numbers that look random and are the same everywhere.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 32) as u32
    }

    /// −1..1
    fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Now and then a number that is hard to get right.
    fn wild(&mut self) -> f32 {
        const HARD: [f32; 12] = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            0.0,
            -0.0,
            f32::from_bits(1),
            -f32::MIN_POSITIVE / 2.0,
            f32::MIN_POSITIVE,
            f32::MAX,
            f32::MIN,
            1e30,
            -1e-30,
        ];
        let pick = self.bits() as usize % 256;
        HARD.get(pick).copied().unwrap_or_else(|| self.unit())
    }
}
