//! The emulator of AMX tiles that tests of the engine use: does it do what Intel says?
//!
//! Where the processor has tiles, nothing can be emulated (LDTILECFG does not trap there). What the
//! tests expect of instructions is asked of the processor itself then, bit for bit, and what is about
//! the emulator alone is skipped.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "../common/amx/mod.rs"]
mod amx;
mod arithmetic;
mod decoder;
mod hardware;
mod refusals;
mod threads;

use amx::{Counts, Scratch, Tile, Way};
use nix::libc;
use std::arch::asm;

/// A configuration of the first tiles, from rows and bytes a row.
pub(crate) fn config(shapes: &[(u8, u16)]) -> [u8; 64] {
    let mut config = [0; 64];
    config[0] = 1;
    for (tile, &(rows, bytes)) in shapes.iter().enumerate() {
        config[16 + 2 * tile..][..2].copy_from_slice(&bytes.to_le_bytes());
        config[48 + tile] = rows;
    }
    config
}

pub(crate) const FULL: (u8, u16) = (16, 64);

/// Sees to it that tile instructions work in this process: the processor's own where it has them, else
/// emulated ones. False, and said so, where the system keeps them from us.
pub(crate) fn tiles() -> bool {
    if !hardware::present() {
        amx::install();
        return true;
    }
    let permitted = hardware::permitted();
    if !permitted {
        println!("skipped: the processor has tiles, and the system does not let us use them");
    }
    permitted
}

/// Whether there is something to emulate.
pub(crate) fn emulated() -> bool {
    let real = hardware::present();
    if real {
        println!("skipped: the processor has tiles of its own, and nothing can be emulated");
    }
    !real
}

/// A small generator, so that every run sees the same.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The upper half of an f32's bits.
fn bf16(x: f32) -> u16 {
    assert_eq!(x.to_bits() & 0xffff, 0, "{x} is no bf16");
    (x.to_bits() >> 16) as u16
}

/// `c + a × b` with one product of tiles: `a` of m rows of 2k, `b` of 2k rows of n.
fn product(c: &mut [f32], a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) {
    assert_eq!((c.len(), a.len(), b.len()), (m * n, m * 2 * k, 2 * k * n));
    let a: Vec<u16> = a.iter().map(|&x| bf16(x)).collect();
    // Rows of `b` in pairs, as TDPBF16PS wants them.
    let mut pairs = vec![0_u16; 2 * k * n];
    for (row, values) in b.chunks(n).enumerate() {
        for (column, &value) in values.iter().enumerate() {
            pairs[row / 2 * 2 * n + 2 * column + row % 2] = bf16(value);
        }
    }
    let (wide, deep) = (4 * n, 4 * k);
    let config = config(&[
        (m as u8, wide as u16),
        (m as u8, deep as u16),
        (0, 0),
        (0, 0),
        (k as u8, wide as u16),
    ]);
    // SAFETY: the strides and the configuration are those of the three buffers.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{c} + {wide}]",
            "tileloadd tmm1, [{a} + {deep}]",
            "tileloaddt1 tmm4, [{b} + {wide}]",
            "tdpbf16ps tmm0, tmm1, tmm4",
            "tilestored [{c} + {wide}], tmm0",
            "tilerelease",
            config = in(reg) &config,
            c = in(reg) c.as_mut_ptr(),
            a = in(reg) a.as_ptr(),
            b = in(reg) pairs.as_ptr(),
            wide = in(reg) wide,
            deep = in(reg) deep,
            out("tmm0") _, out("tmm1") _, out("tmm4") _,
            options(nostack),
        );
    }
}

#[test]
fn products_of_whole_numbers_are_exact() {
    if !tiles() {
        return;
    }
    let mut random = Random(1);
    for shape @ (m, k, n) in [(16, 16, 16), (1, 1, 1), (5, 7, 3), (16, 1, 9), (2, 16, 16)] {
        let mut whole = |count: usize| -> Vec<f32> {
            (0..count).map(|_| random.below(65) as f32 - 32.0).collect()
        };
        let (start, a, b) = (whole(m * n), whole(m * 2 * k), whole(2 * k * n));
        let mut c = start.clone();
        product(&mut c, &a, &b, shape);
        for row in 0..m {
            for column in 0..n {
                let sum: f32 = (0..2 * k).map(|i| a[row * 2 * k + i] * b[i * n + column]).sum();
                let at = row * n + column;
                assert_eq!(c[at], start[at] + sum, "{shape:?}, row {row}, column {column}");
            }
        }
    }
}

#[test]
fn instructions_are_counted_and_trap_once() {
    if !emulated() {
        return;
    }
    amx::install();
    let before = amx::thread_counts();
    let all = amx::counts();
    let config = config(&[FULL, FULL, FULL]);
    let ones = [0x3f80_3f80_u32; 256];
    let mut sums = [0.0_f32; 256];
    // SAFETY: the buffers hold a full tile each.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "2:",
            "tileloadd tmm1, [{ones} + {stride}]",
            "tileloaddt1 tmm2, [{ones} + {stride}]",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "dec {n}",
            "jnz 2b",
            "tilestored [{sums} + {stride}], tmm0",
            "tilerelease",
            config = in(reg) &config,
            ones = in(reg) &ones,
            sums = in(reg) &mut sums,
            stride = in(reg) 64_u64,
            n = inout(reg) 100_u64 => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
            options(nostack),
        );
    }
    assert_eq!(sums, [3200.0; 256]);
    let mine = amx::thread_counts() - before;
    let expected = Counts {
        ldtilecfg: 1,
        sttilecfg: 0,
        tilerelease: 1,
        tilezero: 1,
        tileloadd: 100,
        tileloaddt1: 100,
        tilestored: 1,
        tdpbf16ps: 100,
        traps: mine.traps,
    };
    assert_eq!(mine, expected);
    assert!(mine.traps <= mine.instructions());
    let all = amx::counts() - all;
    assert!(all.tdpbf16ps >= 100 && all.instructions() >= mine.instructions());
}

#[test]
fn what_lies_outside_a_shape_is_zero() {
    if !tiles() {
        return;
    }
    // tmm0 keeps old rows and columns only inside its shape; the store touches no byte outside.
    let small = config(&[(3, 8)]);
    let full = config(&[FULL]);
    let data: Vec<u8> = (0..1024).map(|i| (i % 251) as u8 + 1).collect();
    let mut seen = [0xaa_u8; 1024];
    let mut stored = [0_u8; 64];
    // SAFETY: the buffers hold a full tile; a configuration is 64 bytes.
    unsafe {
        asm!(
            "ldtilecfg [{small}]",
            "tileloadd tmm0, [{data} + {stride}*2 + 1]",
            "sttilecfg [{stored}]",
            "tilestored [{seen} + {stride}*2], tmm0",
            "tilerelease",
            small = in(reg) &small,
            data = in(reg) data.as_ptr(),
            seen = in(reg) &mut seen,
            stored = in(reg) &mut stored,
            stride = in(reg) 32_u64,
            out("tmm0") _,
            options(nostack),
        );
    }
    assert_eq!(stored, small);
    for (at, &byte) in seen.iter().enumerate() {
        let inside = at / 64 < 3 && at % 64 < 8;
        assert_eq!(byte, if inside { data[at + 1] } else { 0xaa }, "byte {at}");
    }
    // A configuration clears all tiles, and none at all is stored as zeros.
    // SAFETY: as above.
    unsafe {
        asm!(
            "ldtilecfg [{full}]",
            "tileloadd tmm0, [{data} + {stride}]",
            "ldtilecfg [{full}]",
            "tilestored [{seen} + {stride}], tmm0",
            "tilerelease",
            "sttilecfg [{stored}]",
            full = in(reg) &full,
            data = in(reg) data.as_ptr(),
            seen = in(reg) &mut seen,
            stored = in(reg) &mut stored,
            stride = in(reg) 64_u64,
            out("tmm0") _,
            options(nostack),
        );
    }
    assert_eq!((seen, stored), ([0; 1024], [0; 64]));
}

#[test]
fn start_row_is_where_the_next_move_begins() {
    if !tiles() {
        return;
    }
    let mut config = config(&[FULL]);
    config[1] = 10;
    let data = [7_u8; 1024];
    let (mut seen, mut stored) = ([0_u8; 1024], [[0_u8; 64]; 2]);
    // SAFETY: the buffers hold a full tile; a configuration is 64 bytes.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "sttilecfg [{stored}]",
            "tileloadd tmm0, [{data} + {stride}]",
            "sttilecfg [{stored} + 64]",
            "tilestored [{seen} + {stride}], tmm0",
            "tilerelease",
            config = in(reg) &config,
            data = in(reg) &data,
            seen = in(reg) &mut seen,
            stored = in(reg) &mut stored,
            stride = in(reg) 64_u64,
            out("tmm0") _,
            options(nostack),
        );
    }
    assert_eq!((stored[0][1], stored[1][1]), (10, 0));
    assert_eq!(seen[..640], [0; 640]);
    assert_eq!(seen[640..], [7; 384]);
}

#[test]
fn nothing_else_changes_in_the_interrupted_code() {
    if !tiles() {
        return;
    }
    interrupted();
    if !emulated() {
        return;
    }
    // The same where each instruction traps.
    let (out, text) = refusals::die("interrupted, plain");
    assert!(out.status.success(), "{text}");
}

/// Flags, vectors, MXCSR and what lies below the stack pointer, around a product that another
/// MXCSR must not change.
pub(crate) fn interrupted() {
    if !is_x86_feature_detected!("avx2") {
        println!("skipped: no AVX2");
        return;
    }
    let config = config(&[FULL, FULL, FULL]);
    let mut random = Random(5);
    let data = Tile(
        [[0; 16]; 16]
            .map(|row: [u32; 16]| row.map(|_| (random.next() as u32 & 0x807f_807f) | 0x3f80_3f80)),
    );
    let mut expected = Tile::ZERO;
    amx::dot_by(Way::Scalar, &mut expected, &data, &data, (16, 16, 16), &mut Scratch::new());
    let mut sums = Tile::ZERO;
    let mut vectors = [[0_u8; 32]; 3];
    let mut below = 0_u64;
    let flags: u64;
    // Round up, all masked.
    let wanted = 0x5f80_u32;
    let mut seen = 0_u32;
    // SAFETY: the stack pointer is put back, and so is MXCSR.
    unsafe {
        asm!(
            "sub rsp, 4096",
            "ldmxcsr [{wanted}]",
            "vpcmpeqd ymm0, ymm0, ymm0",
            "vpsrld ymm7, ymm0, 3",
            "vpslld ymm15, ymm0, 5",
            "mov qword ptr [rsp - 128], 22",
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tileloadd tmm1, [{data} + {stride}]",
            "tileloadd tmm2, [{data} + {stride}]",
            "cmp {scratch}, 1",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "pushfq",
            "pop {flags}",
            "tilestored [{sums} + {stride}], tmm0",
            "tilerelease",
            "stmxcsr [{seen}]",
            "ldmxcsr [{normal}]",
            "vmovdqu [{vectors}], ymm0",
            "vmovdqu [{vectors} + 32], ymm7",
            "vmovdqu [{vectors} + 64], ymm15",
            "mov {scratch}, [rsp - 128]",
            "add rsp, 4096",
            "vzeroupper",
            wanted = in(reg) &wanted,
            normal = in(reg) &0x1f80_u32,
            seen = in(reg) &mut seen,
            config = in(reg) &config,
            data = in(reg) &data,
            sums = in(reg) &mut sums,
            vectors = in(reg) &mut vectors,
            scratch = inout(reg) 0_u64 => below,
            stride = in(reg) 64_u64,
            flags = out(reg) flags,
            out("ymm0") _, out("ymm7") _, out("ymm15") _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
        );
    }
    assert_eq!(sums, expected);
    assert_eq!(seen, wanted);
    // 0 - 1: carry and sign, no zero.
    assert_eq!(flags & 0xc1, 0x81, "{flags:#x}");
    assert_eq!(below, 22);
    for (vector, word) in vectors.iter().zip([u32::MAX, u32::MAX >> 3, u32::MAX << 5]) {
        assert!(vector.chunks(4).all(|four| four == word.to_le_bytes()), "{vector:x?}");
    }
}

/// The processor time of this thread, so that a busy machine does not count.
fn thread_time() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Nanoseconds of an instruction, all in: `cargo test --test amx -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn time_one_instruction() {
    let ways: [(&str, fn(), u64); 2] =
        [("replaced", amx::install, 300_000), ("trapping", amx::install_plain, 10_000)];
    let chosen = std::env::var("AMX_WAY").unwrap_or_else(|_| "replaced".into());
    let (name, install, rounds) = ways.into_iter().find(|way| way.0 == chosen).expect("AMX_WAY");
    install();
    let config = config(&[FULL, FULL, FULL]);
    let data = [0x3f80_4000_u32; 256];
    // SAFETY: the buffer holds a full tile.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &config, options(nostack));
        let started = thread_time();
        asm!(
            "2:",
            "tileloadd tmm1, [{data} + {stride}]",
            "dec {n}",
            "jnz 2b",
            data = in(reg) &data, stride = in(reg) 64_u64, n = inout(reg) rounds => _,
            out("tmm1") _,
            options(nostack),
        );
        let load = (thread_time() - started).as_nanos() as u64 / rounds;
        let started = thread_time();
        asm!(
            "2:",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) rounds => _,
            out("tmm0") _,
            options(nostack),
        );
        let dot = (thread_time() - started).as_nanos() as u64 / rounds;
        asm!("tilerelease", options(nostack));
        println!("{name}: TILELOADD {load} ns, TDPBF16PS {dot} ns");
    }
}
