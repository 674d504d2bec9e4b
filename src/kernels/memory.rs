//! Page-aligned memory with a guard page on either side.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// What every line in it is aligned to: one zmm register, one cache line, one row of a tile.
pub const ALIGN: usize = 64;

/// Zeroed memory of its own, as the kernels want it.
///
/// It ends (up to [`ALIGN`]) at a page that nobody may touch, and begins after such a page, so
/// that a kernel that reads or writes past its end dies at once, in tests and in production, and
/// does not spoil a neighbour. Nothing is committed before it is touched.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<c_void>,
    mapped: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its pages like a box; whoever holds `&mut` (or the kernels, which promise
// disjoint places to their threads) writes, everybody else reads.
unsafe impl Send for Memory {}
// SAFETY: as above; `&Memory` alone gives reads only.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// When the system has no room for them.
    pub fn new(len: usize) -> io::Result<Self> {
        let page = page_size();
        // A size that wraps round would map little and claim much.
        let sizes = || {
            let len = len.max(1).checked_next_multiple_of(ALIGN)?;
            let inner = len.checked_next_multiple_of(page)?;
            let mapped = inner.checked_add(2 * page)?;
            isize::try_from(mapped).ok()?;
            Some((len, inner, NonZeroUsize::new(mapped)?))
        };
        let (len, inner, size) = sizes().ok_or(io::ErrorKind::OutOfMemory)?;
        let mapped = size.get();
        // SAFETY: a new private mapping at a place of the system's choice touches nothing that is.
        let base =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
        let mut memory = Memory { base, mapped, start: base.cast(), len };
        // SAFETY: `page..page + inner` lies within the mapping made above, which nobody else knows.
        memory.start = unsafe {
            let inside = base.byte_add(page);
            mprotect(inside, inner, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
            inside.byte_add(inner - len).cast()
        };
        Ok(memory)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its first byte, for kernels.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start..start + len` is mapped readable for as long as `self` lives, holds plain
        // bytes, and is written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes every other view.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// All bytes as f32.
    #[must_use]
    pub fn floats(&self) -> &[f32] {
        // SAFETY: every bit pattern is an f32; start and length are multiples of 64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / 4) }
    }

    /// All bytes as f32, to be written.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`, and `&mut self` excludes every other view.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len / 4) }
    }

    /// All bytes as 16-bit units: the bits of bf16.
    #[must_use]
    pub fn halves(&self) -> &[u16] {
        // SAFETY: every bit pattern is a u16; start and length are multiples of 64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / 2) }
    }

    /// All bytes as 16-bit units, to be written.
    pub fn halves_mut(&mut self) -> &mut [u16] {
        // SAFETY: as in `halves`, and `&mut self` excludes every other view.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len / 2) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and no view of it outlives `self`. A failure would
        // leak it, which is all that can be done about it.
        let _ = unsafe { munmap(self.base, self.mapped) };
    }
}

fn page_size() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_aligned_and_as_long_as_asked() {
        for len in [1, 63, 64, 4096, 4097, 1_000_000] {
            let mut memory = Memory::new(len).unwrap();
            assert!(memory.len() >= len && memory.len() < len + ALIGN);
            assert!(memory.bytes().iter().all(|&byte| byte == 0));
            assert_eq!(memory.bytes().as_ptr() as usize % ALIGN, 0);
            let last = memory.len() - 1;
            memory.bytes_mut()[last] = 7;
            memory.bytes_mut()[0] = 7;
        }
    }

    #[test]
    fn what_no_machine_has_is_an_error() {
        for len in [1 << 62, isize::MAX as usize, usize::MAX / 2 + 2, usize::MAX - 63, usize::MAX] {
            for less in [0, 1, 63, 4095, 4096, 8192] {
                assert!(Memory::new(len - less).is_err(), "{len} - {less}");
            }
        }
    }

    /// The child dies of a signal, not of a panic: reading past either end is stopped by the system.
    #[test]
    #[cfg(target_os = "linux")]
    fn both_ends_are_guarded() {
        use std::os::unix::process::ExitStatusExt;
        const END: &str = "HAUL_TEST_GUARD";
        if let Some(end) = std::env::var_os(END) {
            let memory = Memory::new(2 * page_size()).unwrap();
            let offset = if end == "after" { memory.len() } else { usize::MAX };
            // SAFETY: none: this is the access that the guard page is there to stop.
            let byte = unsafe { memory.pointer().wrapping_add(offset).read_volatile() };
            panic!("read {byte}");
        }
        for end in ["before", "after"] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "kernels::memory::tests::both_ends_are_guarded"])
                .env(END, end)
                .output()
                .unwrap();
            let signal = output.status.signal();
            assert!(matches!(signal, Some(11 | 7)), "{end}: {:?}", output.status);
        }
    }
}
