//! Replaces a tile instruction that has trapped by a jump, so that it traps once only.
//!
//! A trap costs microseconds, most of all in a virtual machine whose host looks at each #UD
//! first. All tile instructions have at least the five bytes of a jump. It leads to a few bytes
//! of code near the instruction, which call [`emulate`](super::emulate) with all registers saved
//! and then jump behind the instruction.
//!
//! Other threads may be running the same bytes, so they are changed as Linux changes its own
//! code: an int3 on the first byte, the other bytes, then the first byte of the jump, with all
//! cores made to look again after each step. A thread that meets the int3 tries again.
//! Where anything of this is refused, instructions go on to trap.

use super::decode::{Decoded, Op, decode};
use nix::libc;
use std::arch::{naked_asm, x86_64::__cpuid_count};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

const INT3: u8 = 0xcc;
const JUMP: u8 = 0xe9;
/// What a jump takes.
const SHORTEST: usize = 5;

static READY: AtomicBool = AtomicBool::new(false);
static BUSY: AtomicBool = AtomicBool::new(false);
/// The instruction that is being replaced.
static SITE: AtomicU64 = AtomicU64::new(0);

/// Bytes and parts of the vector state to be saved around a call, as XSAVE wants them.
static STATE_BYTES: AtomicU64 = AtomicU64::new(0);
static STATE_PARTS: AtomicU32 = AtomicU32::new(0);
/// SSE, AVX and the three parts of AVX-512.
const VECTORS: u32 = 0b1110_0110;
static DEFAULT_MXCSR: u32 = 0x1f80;

/// Room for the code that the jumps lead to, within their reach.
struct Room {
    start: AtomicU64,
    used: AtomicU64,
}

const ROOM_BYTES: u64 = 1 << 18;
/// More than one only where code lies far apart, as a program and its libraries do.
static ROOMS: [Room; 8] = [const { Room { start: AtomicU64::new(0), used: AtomicU64::new(0) } }; 8];

/// What the jump of one instruction leads to.
#[repr(C, packed)]
struct Detour {
    code: [u8; 25],
    /// Read by `code`: behind the instruction, and `save_and_emulate`.
    next: u64,
    call: u64,
    op: Op,
}

/// `lea rsp, [rsp-128]; call [call]; lea rsp, [rsp+128]; jmp [next]`: the 128 bytes below the
/// stack pointer may be in use, and no flag is changed.
const CODE: [u8; 25] = [
    0x48, 0x8d, 0x64, 0x24, 0x80, 0xff, 0x15, 22, 0, 0, 0, 0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0,
    0xff, 0x25, 0, 0, 0, 0,
];
/// Where `call` returns to.
const RETURN: usize = 11;

const MEMBARRIER_SYNC_CORE: libc::c_int = 1 << 5;
const MEMBARRIER_REGISTER_SYNC_CORE: libc::c_int = 1 << 6;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: a system call without pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Makes replacing possible, if it is. Not from a signal handler.
pub(super) fn prepare() {
    if !is_x86_feature_detected!("xsave") || !membarrier(MEMBARRIER_REGISTER_SYNC_CORE) {
        return;
    }
    let leaf = __cpuid_count(0xd, 0);
    STATE_BYTES.store(u64::from(leaf.ebx), SeqCst);
    STATE_PARTS.store(leaf.eax & VECTORS, SeqCst);
    READY.store(true, SeqCst);
}

/// What is found where an instruction trapped.
pub(super) enum Look {
    Found(Decoded),
    /// Another thread has replaced it since.
    Replaced,
}

/// Keeps other threads from replacing instructions meanwhile. For signal handlers, so not a
/// lock of the library; none of ours is taken twice, as nothing under it is a tile instruction.
fn alone<T>(work: impl FnOnce() -> T) -> T {
    while BUSY.swap(true, SeqCst) {
        // SAFETY: gives the processor away, no more.
        unsafe { libc::sched_yield() };
    }
    let result = work();
    BUSY.store(false, SeqCst);
    result
}

/// Decodes the instruction at `at`, which trapped.
pub(super) fn look(at: u64) -> Look {
    let byte = |n| {
        // SAFETY: the processor fetched this instruction, and `decode` reads no byte behind it.
        unsafe { (at as *const u8).wrapping_add(n).read_volatile() }
    };
    alone(|| {
        // Neither of the two raises SIGILL by itself.
        if READY.load(SeqCst) && matches!(byte(0), JUMP | INT3) {
            Look::Replaced
        } else {
            Look::Found(decode(byte))
        }
    })
}

/// Replaces the instruction at `at`; false if that cannot be. Done in a signal handler: only
/// system calls, no locks of others.
pub(super) fn replace(at: u64) -> bool {
    READY.load(SeqCst) && alone(|| replace_alone(at))
}

fn replace_alone(at: u64) -> bool {
    let code = at as *mut u8;
    // SAFETY: the processor fetched an instruction from here.
    let found = decode(|n| unsafe { code.wrapping_add(n).read_volatile() });
    let (op, length) = match found {
        Decoded::Amx(op, length) if length >= SHORTEST => (op, length),
        // Another thread was first.
        // SAFETY: as above.
        _ => return unsafe { code.read_volatile() } == JUMP,
    };
    let Some(detour) = room_for(at) else { return false };
    let next = at + length as u64;
    let call = save_and_emulate as *const () as u64;
    // SAFETY: `room_for` gave these bytes to us alone.
    unsafe { detour.write_unaligned(Detour { code: CODE, next, call, op }) };
    let Ok(distance) = i32::try_from(detour as i64 - (at as i64 + SHORTEST as i64)) else {
        return false;
    };
    const PAGE: u64 = 4096;
    let page = at & !(PAGE - 1);
    let pages = (at + SHORTEST as u64 - page).next_multiple_of(PAGE) as usize;
    let protect = |how| {
        // SAFETY: the pages hold the instruction, and stay executable all the time.
        unsafe { libc::mprotect(page as *mut libc::c_void, pages, how) == 0 }
    };
    if !protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) {
        return false;
    }
    SITE.store(at, SeqCst);
    // SAFETY: the pages are writable now, and an atomic may be made of any byte.
    let first = unsafe { AtomicU8::from_ptr(code) };
    first.store(INT3, SeqCst);
    let mut stepped = membarrier(MEMBARRIER_SYNC_CORE);
    // SAFETY: all five bytes belong to the instruction.
    unsafe { code.add(1).cast::<[u8; 4]>().write_volatile(distance.to_le_bytes()) };
    stepped &= membarrier(MEMBARRIER_SYNC_CORE);
    first.store(JUMP, SeqCst);
    stepped &= membarrier(MEMBARRIER_SYNC_CORE);
    assert!(stepped, "membarrier was allowed at first and is refused now");
    SITE.store(0, SeqCst);
    protect(libc::PROT_READ | libc::PROT_EXEC);
    true
}

/// Bytes for a detour that a jump from `at` reaches.
fn room_for(at: u64) -> Option<*mut Detour> {
    const REACH: u64 = 1 << 30;
    const SIZE: u64 = size_of::<Detour>().next_multiple_of(16) as u64;
    for room in &ROOMS {
        let mut start = room.start.load(SeqCst);
        if start == 0 {
            start = new_room(at)?;
            room.start.store(start, SeqCst);
        }
        let used = room.used.load(SeqCst);
        if start.abs_diff(at) < REACH && used + SIZE <= ROOM_BYTES {
            room.used.store(used + SIZE, SeqCst);
            return Some((start + used) as *mut Detour);
        }
    }
    None
}

fn new_room(at: u64) -> Option<u64> {
    let near = |step: i64| (at & !0xffff).checked_add_signed(step << 24);
    (1..60).flat_map(|step| [near(-step), near(step)]).flatten().find(|&wanted| {
        // SAFETY: MAP_FIXED_NOREPLACE takes nothing that is in use.
        let got = unsafe {
            libc::mmap(
                wanted as *mut libc::c_void,
                ROOM_BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if got != libc::MAP_FAILED && got as u64 != wanted {
            // An old kernel took the address for a wish.
            // SAFETY: it was just made.
            unsafe { libc::munmap(got, ROOM_BYTES as usize) };
        }
        got as u64 == wanted
    })
}

/// Whether an int3 before `rip` is one of ours, so that the thread shall try again.
pub(super) fn is_ours(rip: u64) -> bool {
    let at = rip - 1;
    // SAFETY: the processor fetched this byte.
    let byte = || unsafe { (at as *const u8).read_volatile() };
    // Once the jump is there, it is an instruction that was ours a moment ago.
    SITE.load(SeqCst) == at || byte() == JUMP
}

/// Called by a detour: general registers in `registers`, rax first, in the order of their
/// numbers; `back` is where the detour goes on.
unsafe extern "C" fn arrive(registers: *const [u64; 16], back: *const u8) {
    // SAFETY: `back` lies in a `Detour`, whose fields are never changed again.
    let (op, next) = unsafe {
        let detour = back.sub(RETURN).cast::<Detour>();
        ((&raw const (*detour).op).read_unaligned(), (&raw const (*detour).next).read_unaligned())
    };
    // SAFETY: `save_and_emulate` filled the sixteen registers.
    let registers = unsafe { &*registers };
    super::emulate(op, |n| registers[usize::from(n)], next);
}

/// Saves what a call may change, calls `arrive`, puts everything back.
#[unsafe(naked)]
unsafe extern "C" fn save_and_emulate() {
    naked_asm!(
        "pushfq",
        "push r15",
        "push r14",
        "push r13",
        "push r12",
        "push r11",
        "push r10",
        "push r9",
        "push r8",
        "push rdi",
        "push rsi",
        "push rbp",
        "push rsp",
        "push rbx",
        "push rdx",
        "push rcx",
        "push rax",
        // The program's own stack pointer: 16 registers, flags, return address, 128 bytes.
        "lea rax, [rsp + 18*8 + 128]",
        "mov [rsp + 4*8], rax",
        "mov rdi, rsp",
        "mov rsi, [rsp + 17*8]",
        "mov rbp, rsp",
        "cld",
        "sub rsp, [rip + {bytes}]",
        "and rsp, -64",
        // XSAVE leaves parts of its header as they are, and XRSTOR wants zeros there.
        "xor eax, eax",
        "mov [rsp + 512], rax",
        "mov [rsp + 520], rax",
        "mov [rsp + 528], rax",
        "mov [rsp + 536], rax",
        "mov [rsp + 544], rax",
        "mov [rsp + 552], rax",
        "mov [rsp + 560], rax",
        "mov [rsp + 568], rax",
        "xor edx, edx",
        "mov eax, [rip + {parts}]",
        "xsave64 [rsp]",
        "ldmxcsr [rip + {mxcsr}]",
        "call {arrive}",
        "xor edx, edx",
        "mov eax, [rip + {parts}]",
        "xrstor64 [rsp]",
        "mov rsp, rbp",
        "pop rax",
        "pop rcx",
        "pop rdx",
        "pop rbx",
        "lea rsp, [rsp + 8]",
        "pop rbp",
        "pop rsi",
        "pop rdi",
        "pop r8",
        "pop r9",
        "pop r10",
        "pop r11",
        "pop r12",
        "pop r13",
        "pop r14",
        "pop r15",
        "popfq",
        "ret",
        bytes = sym STATE_BYTES,
        parts = sym STATE_PARTS,
        mxcsr = sym DEFAULT_MXCSR,
        arrive = sym arrive,
    )
}
