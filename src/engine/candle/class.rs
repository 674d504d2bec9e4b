//! Which arithmetic this machine gives candle, as a name.
//!
//! candle's results are a function of more than the picture and the weights:
//! - `gemm` picks its kernel at run time: fused multiply-add where the CPU has it, else
//!   multiplications and additions that round twice. (Its AVX-512 kernels are behind a feature
//!   that candle does not ask for, so AVX2 and AVX-512 machines run the same code.)
//! - `gemm` cuts long sums into blocks whose length it derives from the size and associativity
//!   of the L1 cache, read from the operating system. On the x86 caches we know of it comes out
//!   as 512 everywhere, but another block length is another order of summation.
//! - SiLU calls the `expf` of the C library, which differs between libraries and, in glibc,
//!   again between CPUs with and without fused multiply-add.
//!
//! The first could be asked for, the others cannot well. So a fixed probe is computed: products
//! with sums long enough to be cut, and SiLU over its range. The class carries a digest of the
//! bits. A machine that rounds otherwise anywhere in there has another class; that equal digests
//! mean equal results everywhere is a belief, though a well-founded one, since each of the three
//! choices is made once per process and not per value.

use std::sync::OnceLock;

use candle_core::{Device, Result, Tensor};
use sha2::{Digest, Sha256};

/// `candle-f32-<instructions>-<digest of the probe>`.
pub(super) fn name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        // The probe cannot fail but by a bug of candle, and then the network does not run either.
        let digest = probe().map_or_else(|_| "unknown".into(), |bits| digest(&bits));
        format!("candle-f32-{}-{digest}", instructions())
    })
}

fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    return if std::is_x86_feature_detected!("fma") { "fma" } else { "scalar" };
    #[cfg(target_arch = "aarch64")]
    return "neon";
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return "scalar";
}

/// Bits of products of the sizes a network has (sums of 1300 are cut, those of 600 twice by the
/// shortcut for small matrices), and of SiLU.
fn probe() -> Result<Vec<u32>> {
    let mut bits = Vec::new();
    for (m, k, n) in [(96, 1300, 80), (48, 600, 48), (80, 2304, 100), (16, 27, 512)] {
        let a = Tensor::from_vec(noise(m * k, 1), (m, k), &Device::Cpu)?;
        let b = Tensor::from_vec(noise(k * n, 2), (k, n), &Device::Cpu)?;
        let product = a.matmul(&b)?.flatten_all()?.to_vec1::<f32>()?;
        bits.extend(product.into_iter().map(f32::to_bits));
    }
    let range: Vec<f32> = noise(8192, 3).into_iter().map(|x| x * 24.0).collect();
    let silu = Tensor::from_vec(range, 8192, &Device::Cpu)?.silu()?.to_vec1::<f32>()?;
    bits.extend(silu.into_iter().map(f32::to_bits));
    Ok(bits)
}

/// Values in -1..1 that look random and are the same everywhere.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn digest(bits: &[u32]) -> String {
    let mut sha = Sha256::new();
    for word in bits {
        sha.update(word.to_le_bytes());
    }
    sha.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_stable_within_a_machine() {
        let first = probe().unwrap();
        assert_eq!(first, probe().unwrap());
        // Another pool size must not change a bit.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(first, pool.install(probe).unwrap());
        println!("{}", name());
        assert!(name().starts_with("candle-f32-"));
        assert!(!name().ends_with("unknown"));
    }
}
