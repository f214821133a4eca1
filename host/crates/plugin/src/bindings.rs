//! The contract as the host sees it, generated from the one copy in `wit/`. Not here: anything by hand.
#![allow(missing_docs, unreachable_pub, reason = "generated; the documentation is in wit/")]

wasmtime::component::bindgen!({
    path: "../../../wit",
    world: "policy",
    imports: { default: async | trappable },
    exports: { default: async },
});

/// World `agent`: what it has in common with `policy` is the same types.
pub(crate) mod agent {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        world: "agent",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "tenon:plugin/types": super::tenon::plugin::types,
            "tenon:plugin/catalog": super::tenon::plugin::catalog,
            "tenon:plugin/log": super::tenon::plugin::log,
            "tenon:plugin/clock": super::tenon::plugin::clock,
            "tenon:plugin/random": super::tenon::plugin::random,
            "tenon:plugin/config": super::tenon::plugin::config,
            "tenon:plugin/secrets": super::tenon::plugin::secrets,
            "tenon:plugin/tokenizer": super::tenon::plugin::tokenizer,
            "tenon:plugin/functions": super::tenon::plugin::functions,
            "tenon:plugin/sessions.session": crate::imports::sessions::Held,
        },
    });
}

/// The standard packages, as far as this crate serves them itself; the others are wasmtime's.
pub(crate) mod standard {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        inline: "
            package tenon:standard;

            world standard {
                import wasi:config/store@0.2.0-rc.1;
                import wasi:keyvalue/store@0.2.0-draft2;
                import wasi:keyvalue/atomics@0.2.0-draft2;
                import wasi:keyvalue/batch@0.2.0-draft2;
                import wasi:logging/logging@0.1.0-draft;
            }
        ",
        world: "tenon:standard/standard",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::imports::keyvalue::Bucket,
            "wasi:keyvalue/atomics.cas": crate::imports::keyvalue::Cas,
        },
    });
}
