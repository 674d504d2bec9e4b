//! TDPBF16PS: a scalar version that reads like Intel's pseudo-code, and two fast ones.
//!
//! For each row `m` and column `n` of the destination, with `K` pairs:
//!
//! ```text
//! even = odd = +0
//! for k in 0..K:
//!     even = fma(a[m][2k],   b[k][2n],   even)
//!     odd  = fma(a[m][2k+1], b[k][2n+1], odd)
//! dst[m][n] = dst[m][n] + (even + odd)
//! ```
//!
//! So the two products of a pair go into two chains of their own, each product is fused with
//! its sum, and the destination comes in last, not first. Every `fma` and every `+` rounds to
//! nearest even, takes a denormal input for a zero of its sign and gives a zero of its sign for
//! a result below 2^-126 (after rounding). MXCSR is neither asked nor changed.
//!
//! The fast versions use the processor's own FMA with the denormal bits set. They leave a
//! product with a NaN in it to the scalar version: which NaN wins is no matter of rounding.

use std::arch::asm;
use std::sync::atomic::{AtomicU8, Ordering};

/// A tile register: sixteen rows of sixteen 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [[u32; 16]; 16]);

impl Tile {
    pub(crate) const ZERO: Self = Self([[0; 16]; 16]);

    /// Reads a row from memory and clears the rest of it.
    ///
    /// # Safety
    ///
    /// `bytes` bytes must be readable at `from`, and `bytes` be at most 64.
    pub(crate) unsafe fn load_row(&mut self, row: usize, from: *const u8, bytes: usize) {
        let to = &mut self.0[row];
        if bytes == 64 {
            // SAFETY: as the caller says; any bytes are a row.
            *to = unsafe { from.cast::<[u32; 16]>().read_unaligned() };
        } else {
            *to = [0; 16];
            // SAFETY: as the caller says; `to` has 64 bytes.
            unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr().cast(), bytes) };
        }
    }

    /// Writes a row to memory.
    ///
    /// # Safety
    ///
    /// `bytes` bytes must be writable at `to`, and `bytes` be at most 64.
    pub(crate) unsafe fn store_row(&self, row: usize, to: *mut u8, bytes: usize) {
        let from = &self.0[row];
        if bytes == 64 {
            // SAFETY: as the caller says.
            unsafe { to.cast::<[u32; 16]>().write_unaligned(*from) };
        } else {
            // SAFETY: as the caller says; `from` has 64 bytes.
            unsafe { to.copy_from_nonoverlapping(from.as_ptr().cast(), bytes) };
        }
    }

    /// Clears the rows from `first` on.
    pub(crate) fn zero_rows(&mut self, first: usize) {
        self.0[first..].fill([0; 16]);
    }
}

/// Room for the fast versions, kept off the signal's stack.
#[repr(C, align(64))]
pub(crate) struct Scratch {
    /// A row of 16 even and 16 odd elements as f32, for each row of `a`.
    a: [[f32; 32]; 16],
    /// The same of `b`.
    b: [[f32; 32]; 16],
    out: Tile,
}

impl Scratch {
    pub(crate) const fn new() -> Self {
        Self { a: [[0.0; 32]; 16], b: [[0.0; 32]; 16], out: Tile::ZERO }
    }
}

/// How products are computed; all ways give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Way {
    Scalar = 1,
    Avx2 = 2,
    Avx512 = 3,
}

impl Way {
    /// The ways that this processor has.
    pub(crate) fn all() -> Vec<Way> {
        let mut ways = vec![Way::Scalar];
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            ways.push(Way::Avx2);
        }
        if is_x86_feature_detected!("avx512f") {
            ways.push(Way::Avx512);
        }
        ways
    }
}

static WAY: AtomicU8 = AtomicU8::new(0);

/// Chooses the fastest way. Before the first product: detection is no work for a handler.
pub(crate) fn choose() {
    let best = *Way::all().last().expect("there is always the scalar way");
    WAY.store(best as u8, Ordering::Relaxed);
}

/// `dst += a × b`, of `rows` × `depth` pairs and `depth` pairs × `columns`.
pub(crate) fn dot(
    dst: &mut Tile,
    a: &Tile,
    b: &Tile,
    rows: usize,
    depth: usize,
    columns: usize,
    scratch: &mut Scratch,
) {
    let way = match WAY.load(Ordering::Relaxed) {
        3 => Way::Avx512,
        2 => Way::Avx2,
        _ => Way::Scalar,
    };
    dot_by(way, dst, a, b, (rows, depth, columns), scratch);
}

/// The same, in the way given, which this processor must have.
pub(crate) fn dot_by(
    way: Way,
    dst: &mut Tile,
    a: &Tile,
    b: &Tile,
    (rows, depth, columns): (usize, usize, usize),
    scratch: &mut Scratch,
) {
    debug_assert!((1..=16).contains(&rows) && (1..=16).contains(&depth));
    debug_assert!((1..=16).contains(&columns));
    let nan = match way {
        Way::Scalar => true,
        // SAFETY: the processor has the features, and the sizes are those of a tile.
        Way::Avx2 => unsafe { avx2(dst, a, b, rows, depth, scratch) },
        // SAFETY: the same.
        Way::Avx512 => unsafe { avx512(dst, a, b, rows, depth, scratch) },
    };
    if nan {
        scalar(dst, a, b, rows, depth, columns);
    } else {
        for (to, from) in dst.0.iter_mut().zip(&scratch.out.0).take(rows) {
            *to = *from;
            to[columns..].fill(0);
        }
    }
    dst.zero_rows(rows);
}

fn scalar(dst: &mut Tile, a: &Tile, b: &Tile, rows: usize, depth: usize, columns: usize) {
    let (low, high) = (|pair: u32| pair << 16, |pair: u32| pair & 0xffff_0000);
    for m in 0..rows {
        for n in 0..columns {
            let (mut even, mut odd) = (0, 0);
            for k in 0..depth {
                let (x, y) = (a.0[m][k], b.0[k][n]);
                even = fma(low(x), low(y), even);
                odd = fma(high(x), high(y), odd);
            }
            dst.0[m][n] = add(dst.0[m][n], add(even, odd));
        }
        dst.0[m][columns..].fill(0);
    }
}

const ONE: u32 = 0x3f80_0000;
/// What an invalid operation gives.
const DEFAULT_NAN: u32 = 0xffc0_0000;
const QUIET: u32 = 0x0040_0000;

fn is_nan(x: u32) -> bool {
    x << 1 > 0xff00_0000
}

/// `x + y` as `x·1 + y`: the same rounding, and the same signs of zeros.
fn add(x: u32, y: u32) -> u32 {
    fma(x, ONE, y)
}

/// `x·y + z` of the bits of f32, rounded once to nearest even, with denormals taken and given
/// as zeros. It uses neither the processor's FMA nor its denormal bits, so as to check both.
/// Of several NaNs the first in the order `x`, `y`, `z` wins, made quiet.
pub(crate) fn fma(x: u32, y: u32, z: u32) -> u32 {
    let zeroed = |v: u32| if v & 0x7f80_0000 == 0 { v & 0x8000_0000 } else { v };
    let (x, y, z) = (zeroed(x), zeroed(y), zeroed(z));
    for v in [x, y, z] {
        if is_nan(v) {
            return v | QUIET;
        }
    }
    let wide = |v: u32| f64::from(f32::from_bits(v));
    // Two 24-bit numbers: exact in f64. f32's exponents are far inside f64's.
    let product = wide(x) * wide(y);
    let z = wide(z);
    let sum = product + z;
    if sum.is_nan() {
        return DEFAULT_NAN;
    }
    if sum.is_infinite() {
        return (sum as f32).to_bits();
    }
    // What the sum has lost (Knuth's two-sum). Where it lost something the last bit is made
    // odd, which stands for "and a little more": then rounding again to 24 bits errs nowhere.
    let part = sum - product;
    let lost = (product - (sum - part)) + (z - part);
    let mut bits = sum.to_bits();
    if lost != 0.0 && bits & 1 == 0 {
        if (lost > 0.0) == (sum > 0.0) { bits += 1 } else { bits -= 1 }
    }
    let sum = f64::from_bits(bits);
    // Below the normal numbers, were the exponent without bound? Scaling by 2^64 shows.
    let tiny = f64::from(f32::MIN_POSITIVE);
    if sum.abs() < tiny {
        let scale = (1u128 << 64) as f64;
        if f64::from((sum * scale) as f32).abs() < tiny * scale {
            return (sum.to_bits() >> 32) as u32 & 0x8000_0000;
        }
    }
    (sum as f32).to_bits()
}

/// What the fast versions read and write besides tiles, in memory because registers are few.
#[repr(C)]
struct Args {
    /// Bytes of the rows.
    end: u64,
    depth: u64,
    nan: u32,
    /// The caller's MXCSR.
    saved: u32,
    /// Round to nearest, no traps, denormals taken and given as zeros.
    mxcsr: u32,
}

impl Args {
    fn new(rows: usize, depth: usize) -> Self {
        Self { end: rows as u64 * 64, depth: depth as u64, nan: 0, saved: 0, mxcsr: 0x9fc0 }
    }
}

/// The product into `scratch.out`, without heed to columns; true if it met a NaN.
///
/// It is assembly because MXCSR may not be changed under Rust's own arithmetic, and because a
/// test is often compiled without optimisation.
///
/// # Safety
///
/// The processor must have AVX-512F, and `rows` and `depth` be 1 to 16.
#[target_feature(enable = "avx512f")]
unsafe fn avx512(
    dst: &Tile,
    a: &Tile,
    b: &Tile,
    rows: usize,
    depth: usize,
    scratch: &mut Scratch,
) -> bool {
    let mut args = Args::new(rows, depth);
    // SAFETY: all pointers stay inside the tiles and the scratch, which are aligned to 64; the
    // loops run 16, `rows` and `depth` times. MXCSR is put back.
    unsafe {
        asm!(
            "stmxcsr [{args} + 20]",
            "ldmxcsr [{args} + 24]",
            "vpternlogd zmm5, zmm5, zmm5, 0xff",
            "vpslld zmm5, zmm5, 16",
            // Pairs to f32: 16 even, 16 odd, of both factors.
            "xor {i:e}, {i:e}",
            "2:",
            "vmovdqa32 zmm0, [{a} + {i}]",
            "vmovdqa32 zmm2, [{b} + {i}]",
            "vpslld zmm1, zmm0, 16",
            "vpslld zmm3, zmm2, 16",
            "vpandd zmm0, zmm0, zmm5",
            "vpandd zmm2, zmm2, zmm5",
            "vmovaps [{ea} + 2*{i}], zmm1",
            "vmovaps [{ea} + 2*{i} + 64], zmm0",
            "vmovaps [{eb} + 2*{i}], zmm3",
            "vmovaps [{eb} + 2*{i} + 64], zmm2",
            "add {i:e}, 64",
            "cmp {i:e}, 1024",
            "jne 2b",
            "kxorw k1, k1, k1",
            "xor {i:e}, {i:e}",
            // Rows; `a` now walks its expanded rows and `b` the pairs.
            "3:",
            "vpxord zmm0, zmm0, zmm0",
            "vpxord zmm1, zmm1, zmm1",
            "mov {b}, {eb}",
            "mov {a}, {ea}",
            "mov {k}, [{args} + 8]",
            "4:",
            "vmovaps zmm2, [{b}]",
            "vmovaps zmm3, [{b} + 64]",
            "vfmadd231ps zmm0, zmm2, [{a}]{{1to16}}",
            "vfmadd231ps zmm1, zmm3, [{a} + 64]{{1to16}}",
            "add {b}, 128",
            "add {a}, 4",
            "dec {k}",
            "jnz 4b",
            "vaddps zmm0, zmm0, zmm1",
            "vaddps zmm0, zmm0, [{dst} + {i}]",
            "vcmpunordps k2, zmm0, zmm0",
            "korw k1, k1, k2",
            "vmovaps [{out} + {i}], zmm0",
            "add {ea}, 128",
            "add {i:e}, 64",
            "cmp {i}, [{args}]",
            "jne 3b",
            "kmovw {k:e}, k1",
            "mov [{args} + 16], {k:e}",
            "vzeroupper",
            "ldmxcsr [{args} + 20]",
            args = in(reg) &raw mut args,
            a = inout(reg) a.0.as_ptr() => _,
            b = inout(reg) b.0.as_ptr() => _,
            ea = inout(reg) scratch.a.as_mut_ptr() => _,
            eb = in(reg) scratch.b.as_mut_ptr(),
            dst = in(reg) dst.0.as_ptr(),
            out = in(reg) scratch.out.0.as_mut_ptr(),
            i = out(reg) _,
            k = out(reg) _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm5") _,
            out("k1") _, out("k2") _,
            options(nostack),
        );
    }
    args.nan != 0
}

/// As [`avx512`], in two halves of eight columns.
///
/// # Safety
///
/// The processor must have AVX2 and FMA, and `rows` and `depth` be 1 to 16.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(
    dst: &Tile,
    a: &Tile,
    b: &Tile,
    rows: usize,
    depth: usize,
    scratch: &mut Scratch,
) -> bool {
    let mut args = Args::new(rows, depth);
    // SAFETY: as for `avx512`.
    unsafe {
        asm!(
            "stmxcsr [{args} + 20]",
            "ldmxcsr [{args} + 24]",
            "vpcmpeqd ymm5, ymm5, ymm5",
            "vpslld ymm5, ymm5, 16",
            "xor {i:e}, {i:e}",
            // `ea` and `eb` run ahead by a row, and come back.
            "2:",
            "vmovdqa ymm0, [{a} + {i}]",
            "vmovdqa ymm2, [{a} + {i} + 32]",
            "vpslld ymm1, ymm0, 16",
            "vpslld ymm3, ymm2, 16",
            "vpand ymm0, ymm0, ymm5",
            "vpand ymm2, ymm2, ymm5",
            "vmovaps [{ea} + 2*{i}], ymm1",
            "vmovaps [{ea} + 2*{i} + 32], ymm3",
            "vmovaps [{ea} + 2*{i} + 64], ymm0",
            "vmovaps [{ea} + 2*{i} + 96], ymm2",
            "vmovdqa ymm0, [{b} + {i}]",
            "vmovdqa ymm2, [{b} + {i} + 32]",
            "vpslld ymm1, ymm0, 16",
            "vpslld ymm3, ymm2, 16",
            "vpand ymm0, ymm0, ymm5",
            "vpand ymm2, ymm2, ymm5",
            "vmovaps [{eb} + 2*{i}], ymm1",
            "vmovaps [{eb} + 2*{i} + 32], ymm3",
            "vmovaps [{eb} + 2*{i} + 64], ymm0",
            "vmovaps [{eb} + 2*{i} + 96], ymm2",
            "add {i:e}, 64",
            "cmp {i:e}, 1024",
            "jne 2b",
            "vxorps ymm6, ymm6, ymm6",
            "xor {i:e}, {i:e}",
            "3:",
            "vxorps ymm0, ymm0, ymm0",
            "vxorps ymm1, ymm1, ymm1",
            "vxorps ymm2, ymm2, ymm2",
            "vxorps ymm3, ymm3, ymm3",
            "mov {b}, {eb}",
            "mov {a}, {ea}",
            "mov {k}, [{args} + 8]",
            "4:",
            "vbroadcastss ymm4, [{a}]",
            "vbroadcastss ymm5, [{a} + 64]",
            "vfmadd231ps ymm0, ymm4, [{b}]",
            "vfmadd231ps ymm1, ymm4, [{b} + 32]",
            "vfmadd231ps ymm2, ymm5, [{b} + 64]",
            "vfmadd231ps ymm3, ymm5, [{b} + 96]",
            "add {b}, 128",
            "add {a}, 4",
            "dec {k}",
            "jnz 4b",
            "vaddps ymm0, ymm0, ymm2",
            "vaddps ymm1, ymm1, ymm3",
            "vaddps ymm0, ymm0, [{dst} + {i}]",
            "vaddps ymm1, ymm1, [{dst} + {i} + 32]",
            "vcmpunordps ymm4, ymm0, ymm1",
            "vorps ymm6, ymm6, ymm4",
            "vmovaps [{out} + {i}], ymm0",
            "vmovaps [{out} + {i} + 32], ymm1",
            "add {ea}, 128",
            "add {i:e}, 64",
            "cmp {i}, [{args}]",
            "jne 3b",
            "vmovmskps {k:e}, ymm6",
            "mov [{args} + 16], {k:e}",
            "vzeroupper",
            "ldmxcsr [{args} + 20]",
            args = in(reg) &raw mut args,
            a = inout(reg) a.0.as_ptr() => _,
            b = inout(reg) b.0.as_ptr() => _,
            ea = inout(reg) scratch.a.as_mut_ptr() => _,
            eb = in(reg) scratch.b.as_mut_ptr(),
            dst = in(reg) dst.0.as_ptr(),
            out = in(reg) scratch.out.0.as_mut_ptr(),
            i = out(reg) _,
            k = out(reg) _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _,
            out("ymm5") _, out("ymm6") _,
            options(nostack),
        );
    }
    args.nan != 0
}
