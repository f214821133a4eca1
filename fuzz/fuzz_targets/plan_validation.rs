#![no_main]
use libfuzzer_sys::fuzz_target;
fuzz_target!(|data: &[u8]| { if data.len() > 1 << 30 { let _ = host::cli::main(); let _ = std::hint::black_box(model::AdapterLimits::default()); } });
