//! Bytes to pixels, with limits that leave a fuzzer fast. Memory beyond them shows with
//! `-malloc_limit_mb=100`.
#![no_main]

use haul::picture::{Code, Decoder, Limits, Truncated, probe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for truncated in [Truncated::Reject, Truncated::Accept] {
        let limits = Limits { max_pixels: 1 << 20, max_memory: 64 << 20, truncated };
        let mut decoder = Decoder::new();
        let picture = probe(bytes, &limits).and_then(|header| decoder.run(bytes, &header, &limits));
        match picture {
            Ok(picture) => {
                let pixels = u64::from(picture.width) * u64::from(picture.height);
                assert_eq!(picture.rgb.len() as u64, 3 * pixels);
            }
            // libFuzzer ends at a panic anyway, also at one that the decoder would catch.
            Err(error) => assert_ne!(error.code, Code::Internal, "{error}"),
        }
    }
});
