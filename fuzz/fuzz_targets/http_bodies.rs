//! Requests on every route of a whole host in this process.
#![no_main]

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::path::Path;

#[path = "../../host/tests/malformed/properties.rs"]
mod properties;

use properties::Host;

thread_local! {
    // Not dropped: when a thread's own values are, the runtime has lost its.
    static HOST: RefCell<Option<ManuallyDrop<Host>>> = const { RefCell::new(None) };
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    HOST.with_borrow_mut(|host| {
        // The compiler of plugins is not under test here, and runs under limits that no sanitizer fits into.
        let tenon = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/tenon");
        host.get_or_insert_with(|| ManuallyDrop::new(Host::open(&tenon))).hold(bytes);
    });
});
