//! The contract as Rust sees it, generated from the one copy in `wit/`. Not here: anything by hand.
#![allow(missing_docs, reason = "the documentation is in wit/")]

wit_bindgen::generate!({
    path: "../../wit",
    world: "policy-wasi",
    pub_export_macro: true,
    generate_all,
});

/// World `agent`; what it has in common with `policy` is the same types.
pub mod agent {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "agent",
        pub_export_macro: true,
        export_macro_name: "export_agent",
        with: {
            "tenon:plugin/types@0.1.0": crate::bindings::tenon::plugin::types,
            "tenon:plugin/catalog@0.1.0": crate::bindings::tenon::plugin::catalog,
            "tenon:plugin/log@0.1.0": crate::bindings::tenon::plugin::log,
            "tenon:plugin/clock@0.1.0": crate::bindings::tenon::plugin::clock,
            "tenon:plugin/random@0.1.0": crate::bindings::tenon::plugin::random,
            "tenon:plugin/config@0.1.0": crate::bindings::tenon::plugin::config,
            "tenon:plugin/secrets@0.1.0": crate::bindings::tenon::plugin::secrets,
            "tenon:plugin/tokenizer@0.1.0": crate::bindings::tenon::plugin::tokenizer,
            "tenon:plugin/functions@0.1.0": crate::bindings::tenon::plugin::functions,
            "tenon:plugin/tools@0.1.0": crate::bindings::tenon::plugin::tools,
            "tenon:plugin/sessions@0.1.0": generate,
            "tenon:plugin/output@0.1.0": generate,
            "tenon:plugin/driver@0.1.0": generate,
        },
    });
}
