//! The contract as Rust sees it, generated from the one copy in `wit/`. Not here: anything by hand.
#![allow(missing_docs, reason = "the documentation is in wit/")]

wit_bindgen::generate!({
    path: "../../wit",
    world: "policy-wasi",
    pub_export_macro: true,
    generate_all,
});
