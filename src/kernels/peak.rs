//! What a core can do at best: multiply-adds that wait for nothing, counted by the clock.
//!
//! Nothing decides by this; it is what a profile is held against, measured in the same run, because
//! clocks change with the load.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::cpu::{Cpu, Tier};

/// Chains of dependent operations, more than latency · units on every core we know of.
const CHAINS: usize = 12;

/// Long enough for the clock and short enough not to be interrupted in each try.
const TRY: Duration = Duration::from_millis(2);

/// The rate of the multiply-add that `tier` is made of, on one core, in 10⁹ operations a second
/// (a multiplication and an addition count as two); the best of many tries within `time`.
///
/// None where this CPU cannot run the tier.
#[must_use]
pub fn peak(tier: Tier, time: Duration) -> Option<f64> {
    if !Cpu::get().has(tier) {
        return None;
    }
    let (one, flop): (fn(u64), usize) = match tier {
        #[cfg(target_arch = "x86_64")]
        Tier::Amx => (x86::amx, 2 * 16 * 16 * 32),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512Bf16 => (x86::bf16, 64),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 => (x86::avx512, 32),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => (x86::avx2, 16),
        Tier::Portable | Tier::Reference => (portable, 2 * PORTABLE),
        // `has` said no.
        #[cfg(not(target_arch = "x86_64"))]
        _ => return None,
    };
    // On a thread of its own: what it does to tiles is nothing to those of the caller.
    let best = std::thread::scope(|scope| scope.spawn(|| seconds(one, time)).join()).ok()?;
    Some((flop * CHAINS) as f64 / best / 1e9)
}

/// Seconds of a round, the best of many tries.
fn seconds(one: fn(u64), time: Duration) -> f64 {
    let took = |rounds: u64| {
        let start = Instant::now();
        one(rounds);
        start.elapsed()
    };
    let mut rounds = 1000;
    while took(rounds) < TRY {
        rounds *= 2;
    }
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while best.is_infinite() || start.elapsed() < time {
        best = best.min(took(rounds).as_secs_f64());
    }
    best / rounds as f64
}

/// Values of a chain in plain Rust: an SSE register.
const PORTABLE: usize = 4;

fn portable(rounds: u64) {
    let (a, b) = (black_box(0.999f32), black_box(1e-3f32));
    let mut sums = [[b; PORTABLE]; CHAINS];
    for _ in 0..rounds {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;

    /// The layout of tile memory: eight tiles of 16 rows × 64 bytes, and 16 rows of bf16.
    #[repr(C, align(64))]
    struct Tiles {
        config: [u8; 64],
        values: [u16; 512],
    }

    /// [`CHAINS`] products of tiles a round, into six tiles of sums in turn.
    pub(super) fn amx(rounds: u64) {
        let mut tiles = Tiles { config: [0; 64], values: [0x3A83; 512] }; // 0.001
        tiles.config[0] = 1;
        for tile in 0..8 {
            tiles.config[16 + 2 * tile] = 64;
            tiles.config[48 + tile] = 16;
        }
        // SAFETY: `peak` saw the features, and calls this on a thread of its own, whose tiles nobody
        // else uses. The configuration is 64 bytes of a valid form; loads read the 1024 bytes of
        // `values`.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const tiles.config,
                options(nostack, readonly, preserves_flags));
            asm!("tileloadd tmm6, [{at} + {step} * 1]", "tileloadd tmm7, [{at} + {step} * 1]",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2",
                "tilezero tmm3", "tilezero tmm4", "tilezero tmm5",
                at = in(reg) &raw const tiles.values, step = in(reg) 64usize,
                options(nostack, readonly, preserves_flags));
            for _ in 0..rounds {
                for _ in 0..CHAINS / 6 {
                    asm!(
                        "tdpbf16ps tmm0, tmm6, tmm7",
                        "tdpbf16ps tmm1, tmm6, tmm7",
                        "tdpbf16ps tmm2, tmm6, tmm7",
                        "tdpbf16ps tmm3, tmm6, tmm7",
                        "tdpbf16ps tmm4, tmm6, tmm7",
                        "tdpbf16ps tmm5, tmm6, tmm7",
                        options(nostack, nomem, preserves_flags)
                    );
                }
            }
            asm!("tilerelease", options(nostack, nomem, preserves_flags));
        }
    }

    macro_rules! chains {
        ($name:ident, $inner:ident, $features:literal, $one:expr, $step:expr) => {
            pub(super) fn $name(rounds: u64) {
                // SAFETY: `peak` saw the features.
                unsafe { $inner(rounds) }
            }

            #[target_feature(enable = $features)]
            fn $inner(rounds: u64) {
                let (a, b) = ($one(black_box(0.999)), $one(black_box(1e-3)));
                let mut sums = [b; CHAINS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $step(*sum, a, b);
                    }
                }
                black_box(sums);
            }
        };
    }

    chains!(avx512, avx512_chains, "avx512f", |x| _mm512_set1_ps(x), |sum, a, b| _mm512_fmadd_ps(
        sum, a, b
    ));
    chains!(avx2, avx2_chains, "avx2,fma", |x| _mm256_set1_ps(x), |sum, a, b| _mm256_fmadd_ps(
        sum, a, b
    ));
    chains!(
        bf16,
        bf16_chains,
        "avx512f,avx512bf16",
        |x| _mm512_set1_ps(x),
        |sum, a: __m512, b: __m512| {
            // SAFETY: the same 512 bits, read as 32 bf16.
            let (a, b) = unsafe {
                (
                    std::mem::transmute::<__m512, __m512bh>(a),
                    std::mem::transmute::<__m512, __m512bh>(b),
                )
            };
            _mm512_dpbf16_ps(sum, a, b)
        }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_here_has_a_peak() {
        for tier in Tier::ALL {
            let rate = peak(tier, Duration::from_millis(5));
            println!("{tier}: {rate:?} GFLOP/s");
            assert_eq!(rate.is_some(), Cpu::get().has(tier), "{tier}");
            assert!(rate.is_none_or(|rate| rate > 0.01), "{tier} {rate:?}");
        }
    }
}
