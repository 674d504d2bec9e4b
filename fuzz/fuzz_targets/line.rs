//! One line of a part, and the schema it is held against.
#![no_main]

use std::sync::LazyLock;

use haul::job::{Line, LineSchema};
use libfuzzer_sys::fuzz_target;

static SCHEMA: LazyLock<LineSchema> = LazyLock::new(LineSchema::new);

fuzz_target!(|text: &[u8]| {
    if let Ok(line) = Line::parse(text) {
        let _ = line.key();
    }
    if let Ok(value) = serde_json::from_slice(text) {
        let _ = SCHEMA.check(&value);
    }
});
