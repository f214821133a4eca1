//! Bundles that sign adapters: envelopes and statements of all kinds, most of them signed by a key that is trusted.
#![no_main]

#[path = "../../host/tests/malformed/signatures.rs"]
mod signatures;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    signatures::hold(bytes);
});
