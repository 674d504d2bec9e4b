//! A segment of a plan: what is read is written with the same meaning.
#![no_main]

use haul::job::Segment;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(segment) = Segment::decode(text) {
        assert_eq!(Segment::decode(&segment.encode()).as_ref(), Ok(&segment));
    }
});
