//! Adapter admission: `adapter_config.json` and safetensors files of all kinds.
#![no_main]

#[path = "../../host/crates/model/tests/malformed/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    properties::hold(bytes);
});
