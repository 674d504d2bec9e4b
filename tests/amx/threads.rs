//! Many threads, each with its own tiles, that meet instructions for the first time together.

use super::{FULL, Random, config};
use super::{amx, hardware};
use nix::libc;
use std::sync::Barrier;

const STEPS: usize = 40;
const THREADS: usize = 8;

/// Fresh code that traps: a function of a configuration, a tile in memory, its stride and where
/// to store. It lies at all offsets from a page's end, so that jumps cross cache lines and pages.
fn code(random: &mut Random) -> Vec<u8> {
    let mut code = vec![0xc4, 0xe2, 0x78, 0x49, 0x07]; // ldtilecfg [rdi]
    code.extend([0xc4, 0xe2, 0x7b, 0x49, 0xc0]); // tilezero tmm0
    code.extend([0xc4, 0xe2, 0x7b, 0x4b, 0x14, 0x16]); // tileloadd tmm2, [rsi + rdx]
    for _ in 0..STEPS {
        code.extend([0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x16]); // tileloadd tmm1, [rsi + rdx]
        code.extend(vec![0x90; random.below(9) as usize]);
        code.extend([0xc4, 0xe2, 0x6a, 0x5c, 0xc1]); // tdpbf16ps tmm0, tmm1, tmm2
        code.extend(vec![0x90; random.below(9) as usize]);
    }
    code.extend([0xc4, 0xe2, 0x7a, 0x4b, 0x04, 0x11]); // tilestored [rcx + rdx], tmm0
    code.extend([0xc4, 0xe2, 0x78, 0x49, 0xc0, 0xc3]); // tilerelease; ret
    code
}

#[test]
fn threads_share_code_but_no_tiles() {
    if !super::tiles() {
        return;
    }
    type Code = extern "C" fn(*const u8, *const u32, usize, *mut f32);
    let mut random = Random(11);
    for round in 0..30 {
        let bytes = code(&mut random);
        let room = 3 * 4096;
        // SAFETY: fresh memory, filled below and then only run.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                room,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED);
        let start = 4096 - 5 - round * 7;
        // SAFETY: it fits; and it is a function of this kind.
        let run = unsafe {
            let start = memory.cast::<u8>().add(start);
            start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            std::mem::transmute::<*mut u8, Code>(start)
        };
        let together = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let together = &together;
                scope.spawn(move || {
                    let shapes = config(&[FULL, FULL, FULL]);
                    // Each thread has its own number in both factors, and so its own sum.
                    let value = 1.0 + thread as f32;
                    let pair = value.to_bits() >> 16 | value.to_bits();
                    let data = [pair; 256];
                    let mut sums = [0.0_f32; 256];
                    let before = amx::thread_counts();
                    together.wait();
                    run(shapes.as_ptr(), data.as_ptr(), 64, sums.as_mut_ptr());
                    assert_eq!(sums, [value * value * 32.0 * STEPS as f32; 256]);
                    let mine = amx::thread_counts() - before;
                    let steps = if hardware::present() { 0 } else { STEPS as u64 };
                    let loads = if steps == 0 { 0 } else { 1 + steps };
                    assert_eq!((mine.tdpbf16ps, mine.tileloadd), (steps, loads));
                });
            }
        });
        // SAFETY: nobody runs it any more.
        unsafe { libc::munmap(memory, room) };
    }
}
