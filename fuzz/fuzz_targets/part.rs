//! A part, stored in each way, against a mini-batch of two pictures. The first byte says the way.
#![no_main]

use haul::job::{Batch, Compress, Tally};
use haul::store::{Identity, Key, Object};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((way, part)) = bytes.split_first() else { return };
    let compress = Compress::ALL[usize::from(*way) % Compress::ALL.len()];
    let limit = 1 << 20;
    let object = |key: &str| Object { key: Key::from(key), size: 1, identity: Identity::Size, meta: None };
    let batch = Batch { id: 0, objects: vec![object("a.jpg"), object("b.jpg")] };
    if let Ok(lines) = compress.unpack(part, limit) {
        if compress != Compress::None {
            assert!(lines.len() as u64 <= limit);
        }
        if let Ok(tally) = Tally::of_part(&lines, &batch) {
            assert_eq!(tally.ok + tally.failed, 2);
        }
    }
});
