//! A `.safetensors`; what is taken is written and read again as the same network.
#![no_main]

use std::path::Path;

use haul::model;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    if let Some(brace) = bytes.get_mut(8) {
        *brace = b'{';
    }
    let path = Path::new("fuzz.safetensors");
    if let Ok(one) = model::read_bytes(&bytes, path) {
        let again = model::write_safetensors(&one);
        assert!(model::read_bytes(&again, path).is_ok());
    }
});
