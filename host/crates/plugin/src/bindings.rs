//! The contract as the host sees it, generated from the one copy in `wit/`. Not here: anything by hand.
#![allow(missing_docs, unreachable_pub, reason = "generated; the documentation is in wit/")]

wasmtime::component::bindgen!({
    path: "../../../wit",
    world: "policy",
    imports: { default: async | trappable },
    exports: { default: async },
});
