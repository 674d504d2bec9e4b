//! A zip with a pickle: whatever is in it is read as data or refused.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Always this reader, whatever the file begins with.
    let mut bytes = bytes.to_vec();
    if let Some(magic) = bytes.get_mut(..4) {
        magic.copy_from_slice(b"PK\x03\x04");
    }
    let _ = haul::model::read_bytes(&bytes, Path::new("fuzz.pt"));
});
