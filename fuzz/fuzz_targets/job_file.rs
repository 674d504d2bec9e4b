//! The text of a job file, up to a checked job. No path in it is opened.
#![no_main]

use haul::job::{Settings, Spec};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(settings) = toml::from_str::<Settings>(text)
        && let Ok(spec) = Spec::new(settings)
    {
        // What is stored gives the same job again.
        assert!(Spec::new(spec.settings).is_ok());
    }
});
