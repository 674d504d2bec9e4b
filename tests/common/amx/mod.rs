//! Intel AMX for a processor without it: the tile instructions trap, and are done here.
//!
//! [`install`] takes over SIGILL. When the instruction that trapped is LDTILECFG, STTILECFG,
//! TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED or TDPBF16PS, it is done as Intel's
//! manual says, on tile registers that belong to the thread, and the program goes on behind it.
//! Anything else goes to whoever had SIGILL before: real ones still kill.
//!
//! ```text
//! #[path = "common/amx/mod.rs"]
//! mod amx;
//!
//! amx::install();
//! let before = amx::thread_counts();
//! // … code with tile instructions …
//! assert_eq!((amx::thread_counts() - before).tdpbf16ps, 512);
//! ```
//!
//! Each instruction traps once: then a jump to its emulation replaces it in memory (`patch.rs`),
//! so that a load takes a fifth of a microsecond and a product half of one, where traps take
//! eight. Hence SIGTRAP is taken over too. [`install_plain`] does without.
//!
//! Where a processor would raise #UD or #GP, and for AMX instructions not in that list, the
//! process says why on stderr and aborts: nothing goes on with wrong tiles. Loads and stores are
//! plain accesses of exactly the bytes that the instruction touches, so a guard page behind a
//! buffer catches a row too many as SIGSEGV.
//!
//! What it does not do: it does not answer CPUID or `arch_prctl`, so the code under test must
//! have a way to be told to use AMX; it takes no fs, gs or 32-bit addresses; a signal handler of
//! the program must not use tiles; and timing shows nothing.
//! On a machine that has AMX it is of no use: LDTILECFG does not trap there, permission or not.
//!
//! # What it rests on
//!
//! - The pseudo-code of each instruction in the Software Developer's Manual, from copies of it.
//!   That of TDPBF16PS is in `dot.rs`. An index left out of a load's address is a stride of 0.
//! - The conditions of #UD and #GP (the manual's classes AMX-E1 to E6) are from memory, and
//!   were confirmed by Bochs, as was which NaN wins; that a `start_row` outside the tile is #UD
//!   was taken from there.
//! - Checked against Bochs 3.0 (model sapphire_rapids): 600 random programs of some 4,000
//!   instructions, with all forms of address, wrong and right configurations, odd encodings and
//!   elements of all kinds (ties, products about 2^-126, overflow, denormals, infinities, NaNs).
//!   The same instructions were refused, with the same exception, and memory was the same bit
//!   for bit, except for what is Bochs's: its STTILECFG wants VEX.W = 1 and swaps rows and bytes,
//!   its addition flushes some normal numbers just above 2^-126 (a processor's does not; with
//!   that line mended nothing differed), and it refuses a load without an index.
//! - The decoder is checked against objdump by the tests in `tests/amx`.
//! - Checked against an Intel processor with AMX (Granite Rapids by its instructions): 200 products of
//!   numbers of all kinds, NaN left out, had the same bits. `tests/amx` asks again wherever there is one.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of this")]

mod decode;
mod dot;
mod patch;
mod tiles;

use patch::Look;

pub(crate) use decode::{Base, Decoded, Op, Place, decode};
pub(crate) use dot::{Scratch, Tile, Way, dot_by, fma};
pub(crate) use tiles::{Fault, Tiles, Why};

use nix::libc;
use std::cell::UnsafeCell;
use std::fmt::{self, Write as _};
use std::ops::Sub;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many instructions of each kind were emulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ldtilecfg: u64,
    pub(crate) sttilecfg: u64,
    pub(crate) tilerelease: u64,
    pub(crate) tilezero: u64,
    pub(crate) tileloadd: u64,
    pub(crate) tileloaddt1: u64,
    pub(crate) tilestored: u64,
    pub(crate) tdpbf16ps: u64,
    /// Traps: as a rule the first time that an instruction is met.
    pub(crate) traps: u64,
}

const KINDS: usize = 9;

impl Counts {
    /// All instructions.
    pub(crate) fn instructions(&self) -> u64 {
        self.as_array().iter().sum::<u64>() - self.traps
    }

    const fn from_array(n: [u64; KINDS]) -> Self {
        let [ldtilecfg, sttilecfg, tilerelease, tilezero, tileloadd, tileloaddt1, ..] = n;
        let [.., tilestored, tdpbf16ps, traps] = n;
        Self {
            ldtilecfg,
            sttilecfg,
            tilerelease,
            tilezero,
            tileloadd,
            tileloaddt1,
            tilestored,
            tdpbf16ps,
            traps,
        }
    }

    fn as_array(&self) -> [u64; KINDS] {
        [
            self.ldtilecfg,
            self.sttilecfg,
            self.tilerelease,
            self.tilezero,
            self.tileloadd,
            self.tileloaddt1,
            self.tilestored,
            self.tdpbf16ps,
            self.traps,
        ]
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let (now, before) = (self.as_array(), before.as_array());
        Self::from_array(std::array::from_fn(|kind| now[kind] - before[kind]))
    }
}

const TRAPS: usize = 8;

fn kind(op: Op) -> usize {
    match op {
        Op::LoadConfig(_) => 0,
        Op::StoreConfig(_) => 1,
        Op::Release => 2,
        Op::Zero(_) => 3,
        Op::Load { hint: false, .. } => 4,
        Op::Load { hint: true, .. } => 5,
        Op::Store { .. } => 6,
        Op::Dot { .. } => 7,
    }
}

/// What a thread has. Constant at first and without a destructor, so that it lies in the
/// thread's static storage and a signal handler may use it.
struct Mine {
    tiles: Tiles,
    counts: [u64; KINDS],
}

thread_local! {
    static MINE: UnsafeCell<Mine> =
        const { UnsafeCell::new(Mine { tiles: Tiles::new(), counts: [0; KINDS] }) };
}

static ALL: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];
/// Who had the signals before.
static ILL: OnceLock<libc::sigaction> = OnceLock::new();
static TRAP: OnceLock<libc::sigaction> = OnceLock::new();
static PATCHING: OnceLock<()> = OnceLock::new();

/// What was emulated in all threads since the start.
pub(crate) fn counts() -> Counts {
    Counts::from_array(std::array::from_fn(|kind| ALL[kind].load(Ordering::Relaxed)))
}

/// What was emulated in this thread since its start.
pub(crate) fn thread_counts() -> Counts {
    MINE.with(|mine| {
        // SAFETY: it is changed only while a tile instruction is done, and none is here.
        Counts::from_array(unsafe { (&raw const (*mine.get()).counts).read_volatile() })
    })
}

/// Makes tile instructions work in this process, in all its threads. Twice does no harm.
pub(crate) fn install() {
    PATCHING.get_or_init(patch::prepare);
    install_plain();
}

/// The same, without replacing instructions by jumps: each traps each time. Slow.
pub(crate) fn install_plain() {
    PATCHING.get_or_init(|| ());
    ILL.get_or_init(|| {
        dot::choose();
        take(libc::SIGILL, on_sigill)
    });
    TRAP.get_or_init(|| take(libc::SIGTRAP, on_sigtrap));
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Sets a handler and gives what was there before.
fn take(signal: libc::c_int, handler: Handler) -> libc::sigaction {
    // The memory for signal handlers may be small (Rust's threads have 8 KiB for them) and the
    // kernel's frame with AVX-512 is large, so handlers stay on the thread's stack.
    // The signal stays blocked in its handler: an illegal instruction of our own kills.
    // SAFETY: zero bytes are a valid sigaction with an empty mask; both pointers are valid; and
    // the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO;
        let mut earlier: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(signal, &ours, &mut earlier), 0);
        earlier
    }
}

/// The place of a general register in the kernel's list, by its number in an instruction.
const GREGS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const RIP: usize = libc::REG_RIP as usize;

extern "C" fn on_sigill(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel gives a handler a context of its own.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[RIP] as u64;
    let (op, length) = match patch::look(at) {
        Look::Found(Decoded::Amx(op, length)) => (op, length),
        Look::Found(Decoded::Refused(why)) => refuse(&format_args!("{why} (at {at:#x})")),
        Look::Found(Decoded::Other) => return pass_on(&ILL, signal, info, context),
        Look::Replaced => return,
    };
    count(TRAPS);
    if patch::replace(at) {
        // Now it is a jump: once more.
        return;
    }
    let next = at + length as u64;
    emulate(op, |n| registers[GREGS[usize::from(n)] as usize] as u64, next);
    registers[RIP] = next as i64;
}

/// Does one instruction in this thread, or ends the process.
fn emulate(op: Op, register: impl Fn(u8) -> u64, next: u64) {
    MINE.with(|mine| {
        // SAFETY: no one else has it: this is not called again before it returns (SIGILL is
        // blocked in its handler, and nothing here is a tile instruction), and `thread_counts`
        // only reads.
        let mine = unsafe { &mut *mine.get() };
        // SAFETY: the program under test answers for its memory operands.
        if let Err(fault) = unsafe { mine.tiles.execute(op, register, next) } {
            refuse(&format_args!("{fault}; {op:?} before {next:#x}"));
        }
    });
    count(kind(op));
}

fn count(kind: usize) {
    // SAFETY: as in `emulate`.
    MINE.with(|mine| unsafe { (*mine.get()).counts[kind] += 1 });
    ALL[kind].fetch_add(1, Ordering::Relaxed);
}

extern "C" fn on_sigtrap(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel gives a handler a context and an info of its own.
    let (registers, code) =
        unsafe { (&mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs, (*info).si_code) };
    // So says the kernel of an int3, not of a signal that someone sent.
    const SI_KERNEL: libc::c_int = 0x80;
    if code == SI_KERNEL && patch::is_ours(registers[RIP] as u64) {
        registers[RIP] -= 1;
    } else {
        pass_on(&TRAP, signal, info, context);
    }
}

/// Gives a signal that is not ours to whoever had it before.
fn pass_on(
    earlier: &OnceLock<libc::sigaction>,
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let default = || {
        // The instruction runs again when we return, and now it kills; after an int3 the
        // program would go on, hence the raise.
        // SAFETY: both are allowed in a handler; the signal stays blocked until it returns.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if signal == libc::SIGTRAP {
                libc::raise(signal);
            }
        }
    };
    let Some(earlier) = earlier.get() else { return default() };
    match earlier.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => default(),
        handler if earlier.sa_flags & libc::SA_SIGINFO != 0 => {
            type Full = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: SA_SIGINFO says that it is a function of this kind.
            let handler = unsafe { std::mem::transmute::<usize, Full>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without SA_SIGINFO it is a function of this kind.
            let handler =
                unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}

/// Says why, and aborts. Nothing here allocates or locks.
fn refuse(why: &dyn fmt::Display) -> ! {
    struct Line([u8; 400], usize);
    impl fmt::Write for Line {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let n = text.len().min(self.0.len() - self.1);
            self.0[self.1..][..n].copy_from_slice(&text.as_bytes()[..n]);
            self.1 += n;
            Ok(())
        }
    }
    let mut line = Line([0; 400], 0);
    let _ = writeln!(line, "amx emulator: {why}");
    // SAFETY: the bytes are there; write and abort may be called in a handler.
    unsafe {
        libc::write(2, line.0.as_ptr().cast(), line.1);
        libc::abort()
    }
}
