//! The emulator against a processor that has AMX, where there is one.

use super::amx::{Scratch, Tile, Way, dot_by};
use super::refusals::die;
use super::{Random, config};
use nix::libc;
use std::arch::{asm, x86_64::__cpuid_count};

/// Rows, pairs and columns.
const SHAPES: [(usize, usize, usize); 4] = [(16, 16, 16), (16, 16, 16), (7, 3, 11), (1, 16, 5)];
const ROUNDS: usize = 200;

/// Whether the processor has AMX-TILE and AMX-BF16.
pub(crate) fn present() -> bool {
    let wanted = 1 << 22 | 1 << 24;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & wanted == wanted
}

/// Asks Linux for tiles.
pub(crate) fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: a system call without pointers.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

/// Factors and destination of a round: all kinds of numbers, but no NaN, as which one wins is
/// not in the manual.
fn operands(round: usize) -> ((usize, usize, usize), [Tile; 3]) {
    let mut random = Random(round as u64 + 1);
    let shape @ (m, k, n) = SHAPES[round % SHAPES.len()];
    let (low, span) = [(115, 24), (54, 18), (175, 40), (0, 150)][round / 4 % 4];
    let mut element = || -> u32 {
        let exponent = low + random.below(span);
        (random.below(2) << 15 | exponent << 7 | random.below(128)) as u32
    };
    let tiles = [(m, k), (k, n), (m, n)].map(|(rows, columns)| {
        let mut tile = Tile::ZERO;
        for word in tile.0[..rows].iter_mut().flat_map(|row| &mut row[..columns]) {
            *word = element() | element() << 16;
        }
        tile
    });
    (shape, tiles)
}

/// What the emulator makes of it, one line a round.
fn expected(round: usize) -> String {
    let ((m, k, n), [a, b, mut c]) = operands(round);
    dot_by(Way::Scalar, &mut c, &a, &b, (m, k, n), &mut Scratch::new());
    line(&c)
}

fn line(tile: &Tile) -> String {
    let words = tile.0.iter().flatten();
    // Infinities of both signs meet in some: those are NaNs on both sides.
    words.map(|word| format!("{word:08x}")).collect()
}

/// What tile instructions make of it, done by whoever does them.
fn done(round: usize) -> String {
    let ((m, k, n), [a, b, mut c]) = operands(round);
    let shape = |rows: usize, columns: usize| (rows as u8, 4 * columns as u16);
    let config = config(&[shape(m, n), shape(m, k), shape(k, n)]);
    // SAFETY: the buffers hold a full tile each.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{c} + {stride}]",
            "tileloadd tmm1, [{a} + {stride}]",
            "tileloadd tmm2, [{b} + {stride}]",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "tilestored [{c} + {stride}], tmm0",
            "tilerelease",
            config = in(reg) &config,
            a = in(reg) &a,
            b = in(reg) &b,
            c = in(reg) &mut c,
            stride = in(reg) 64_u64,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
            options(nostack),
        );
    }
    line(&c)
}

/// In the child: `emulated` or not, each round on a line.
pub(crate) fn child(emulated: bool) {
    if emulated || (present() && permitted()) {
        (0..ROUNDS).for_each(|round| println!("\nround {}", done(round)));
    } else {
        println!("\nnone");
    }
}

#[test]
fn the_emulator_agrees_with_the_processor() {
    // The one or the other; both are held to the same bits.
    let cases = if present() { ["hardware"] } else { ["hardware, emulated"] };
    for case in cases {
        let (out, text) = die(case);
        assert!(out.status.success(), "{case}: {text}");
        let text = String::from_utf8(out.stdout).unwrap();
        if text.lines().any(|line| line == "none") {
            println!("skipped: no tiles that the system lets us use");
            continue;
        }
        let rounds: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("round ")).collect();
        assert_eq!(rounds.len(), ROUNDS, "{case}");
        for (round, got) in rounds.into_iter().enumerate() {
            assert!(got == expected(round), "{case}, round {round}: {got}");
        }
    }
}
