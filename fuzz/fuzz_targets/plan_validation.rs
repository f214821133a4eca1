//! The check of plans against grants and limits.
#![no_main]

#[path = "../../host/crates/types/tests/malformed/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    properties::hold(bytes);
});
