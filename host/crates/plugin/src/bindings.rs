//! The contract as the host sees it, generated from the one copy in `wit/`; by hand only how its flags are recorded. Not here: what
//! the host makes of it (`convert.rs`).
#![allow(missing_docs, unreachable_pub, reason = "generated; the documentation is in wit/")]

wasmtime::component::bindgen!({
    path: "../../../wit",
    world: "policy",
    imports: { default: async | trappable },
    exports: { default: async },
    additional_derives: [serde::Serialize, serde::Deserialize],
});

/// As the other types are, in recordings: the names of those that are set. Flags get no derives.
mod modules {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use super::tenon::plugin::types::Modules;

    const NAMES: [(&str, Modules); 7] = [
        ("q-proj", Modules::Q_PROJ),
        ("k-proj", Modules::K_PROJ),
        ("v-proj", Modules::V_PROJ),
        ("o-proj", Modules::O_PROJ),
        ("gate-proj", Modules::GATE_PROJ),
        ("up-proj", Modules::UP_PROJ),
        ("down-proj", Modules::DOWN_PROJ),
    ];

    impl Serialize for Modules {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(NAMES.iter().filter(|(_, flag)| self.contains(*flag)).map(|(name, _)| name))
        }
    }

    impl<'de> Deserialize<'de> for Modules {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let mut modules = Self::empty();
            for name in Vec::<String>::deserialize(deserializer)? {
                let known = NAMES.iter().find(|(known, _)| *known == name);
                modules |= known.ok_or_else(|| de::Error::custom(format!("no module `{name}`")))?.1;
            }
            Ok(modules)
        }
    }
}

/// World `agent`: what it has in common with `policy` is the same types.
pub(crate) mod agent {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        world: "agent",
        imports: { default: async | trappable },
        exports: { default: async },
        additional_derives: [serde::Serialize, serde::Deserialize],
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
            "tenon:plugin/tools": super::tenon::plugin::tools,
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
