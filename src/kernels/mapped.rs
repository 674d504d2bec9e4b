//! A file's pages as read-only memory.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

use super::memory::ALIGN;

/// Part of a file, mapped: it is read when it is touched, and shared by all processes that map it.
///
/// Whoever shortens such a file kills those who have it mapped (SIGBUS), and whoever writes to it
/// changes their numbers. So it may only be made for files that are put in place whole, by renaming,
/// and never altered afterwards; replacing one by renaming leaves the old pages to those who have
/// them.
#[derive(Debug)]
pub struct Mapped {
    base: NonNull<c_void>,
    mapped: usize,
    offset: usize,
}

// SAFETY: it owns its mapping like a box and only ever reads it.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// The bytes of `file` from `offset` (a multiple of [`ALIGN`]) on, `len` of them.
    ///
    /// # Errors
    /// When the file is shorter, or cannot be mapped.
    pub fn new(file: &File, offset: usize, len: usize) -> io::Result<Self> {
        let end = offset.checked_add(len).filter(|_| offset.is_multiple_of(ALIGN) && len > 0);
        let size = end.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        if file.metadata()?.len() < size.get() as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (read, private) = (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping at a place of the system's choice touches nothing that is. The file
        // is long enough, and stays so by the contract of this type.
        let base = unsafe { mmap(None, size, read, private, file, 0) }?;
        let mapped = Mapped { base, mapped: size.get(), offset };
        // SAFETY: this mapping is ours, and the advice alters nothing in it. It only begins to read
        // ahead; if the system does not want to, pages come one by one.
        let _ = unsafe { madvise(mapped.base, mapped.mapped, MmapAdvise::MADV_WILLNEED) };
        Ok(mapped)
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `base..base + mapped` is readable for as long as `self` lives, holds plain bytes,
        // and nobody writes them by the contract of this type; `offset` lies within.
        unsafe {
            let start = self.base.cast::<u8>().as_ptr().add(self.offset);
            std::slice::from_raw_parts(start, self.mapped - self.offset)
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and no view of it outlives `self`. A failure would
        // leak it, which is all that can be done about it.
        let _ = unsafe { munmap(self.base, self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn it_is_the_file_from_the_offset_on() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        for (offset, len) in [(0, 10_000), (4096, 5904), (4096, 64), (64, 1)] {
            let mapped = Mapped::new(&file, offset, len).unwrap();
            assert_eq!(mapped.bytes(), &bytes[offset..offset + len]);
            assert_eq!(mapped.bytes().as_ptr() as usize % ALIGN, 0);
        }
        for (offset, len) in [(0, 0), (1, 64), (64, 9_937), (4096, usize::MAX), (1 << 40, 1)] {
            assert!(Mapped::new(&file, offset, len).is_err(), "{offset} {len}");
        }
    }
}
