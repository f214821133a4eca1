//! A function's own limits, all of them optional. Not here: the operator's, which they narrow and never widen (`config`), and where
//! each is enforced.

use plugin::OwnLimits;
use serde::{Deserialize, Serialize};
use types::PlanLimits;
use utoipa::ToSchema;

/// Of each limit its name, its type and its documentation: those on plans, then those on the plugin's instance and calls.
macro_rules! manifest_limits {
    (
        plan { $($(#[doc = $plan_doc:literal])* $plan:ident: $plan_type:ty,)* }
        plugin { $($(#[doc = $plugin_doc:literal])* $plugin:ident: $plugin_type:ty,)* }
    ) => {
        /// A function's own limits. They narrow the host's and never widen them.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct ManifestLimits {
            $($(#[doc = $plan_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $plan: Option<$plan_type>,)*
            $($(#[doc = $plugin_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $plugin: Option<$plugin_type>,)*
        }

        impl ManifestLimits {
            /// The host's limits on plans, narrowed.
            #[must_use]
            pub fn narrow(&self, host: &PlanLimits) -> PlanLimits {
                PlanLimits {
                    $($plan: self.$plan.map_or(host.$plan, |own| own.min(host.$plan)),)*
                    ..host.clone()
                }
            }

            /// Those on the plugin; the sandbox narrows its own by them.
            #[must_use]
            pub fn plugin(&self) -> OwnLimits {
                OwnLimits { $($plugin: self.$plugin,)* }
            }

            /// Every limit that is set, by name.
            fn set(&self) -> impl Iterator<Item = (&'static str, u64)> {
                let plan = [$((stringify!($plan), self.$plan.map(|own| own as u64)),)*];
                let plugin = [$((stringify!($plugin), self.$plugin.map(|own| own as u64)),)*];
                plan.into_iter().chain(plugin).filter_map(|(name, own)| Some((name, own?)))
            }
        }
    };
}

manifest_limits! {
    plan {
        /// Tokens of one answer.
        output_tokens_max: u32,
        /// Milliseconds for a request.
        deadline_ms_max: u32,
        /// Entries of a composition.
        composition_entries_max: usize,
        /// Bytes of text that the plugin may hold back.
        held_bytes_max: usize,
        /// Bytes of text that the plugin may answer with.
        answer_bytes_max: usize,
        /// KV blocks that the prompt and the token budget may need together.
        kv_blocks_max: u32,
        /// Bytes of adapters, as they are stored, that a request may have loaded.
        cold_bytes_max: u64,
    }
    plugin {
        /// Bytes of all the plugin's memories together.
        memory_bytes_max: usize,
        /// Elements of all its tables together.
        table_elements_max: usize,
        /// Handles that it may hold at once.
        handles_max: usize,
        /// Milliseconds of CPU for one call of it.
        call_cpu_ms_max: u64,
        /// Milliseconds of CPU for all calls of a request.
        request_cpu_ms_max: u64,
        /// Milliseconds for one call, waiting included.
        call_wall_ms_max: u64,
        /// Milliseconds of CPU for its start.
        start_cpu_ms_max: u64,
        /// Bytes of log of a request.
        log_bytes_max: usize,
        /// Lines of log of a request.
        log_lines_max: u32,
        /// Calls of the host in one call of it.
        host_calls_max: u32,
        /// Calls of the host in a request.
        request_host_calls_max: u32,
        /// Bytes of lists and text that it may pass to the host at once.
        transfer_bytes_max: usize,
        /// Random bytes in a request.
        random_bytes_max: u32,
        /// Actions for one chunk, and pairs of metadata or claims.
        actions_max: usize,
        /// Writes to key-value buckets in a request.
        kv_writes_max: u32,
        /// Outgoing HTTP requests in a request.
        http_requests_max: u32,
        /// Bytes of the body of one of these.
        http_request_bytes_max: usize,
        /// Bytes of the body of its answer.
        http_response_bytes_max: usize,
        /// Bytes of the headers of either.
        http_headers_bytes_max: usize,
        /// Calls of tools in a request, and questions which there are.
        tool_calls_max: u32,
        /// Bytes of text for the tokenizer in a request.
        tokenizer_bytes_max: usize,
        /// Calls of other functions in a request.
        function_calls_max: u32,
        /// Generation sessions that an agent may hold at once.
        sessions_max: u32,
        /// Generations of an agent in a request.
        generations_max: u32,
        /// Tokens that it may have generated in a request.
        generated_tokens_max: u32,
        /// Tokens of all the prompts of its generations, those whose KV is there already included.
        session_tokens_max: u32,
        /// Milliseconds of CPU for an agent.
        run_cpu_ms_max: u64,
        /// Milliseconds for an agent, waiting for generations and calls included.
        run_wall_ms_max: u64,
    }
}

/// Limits of which nothing is a function that can do nothing.
const NEVER_ZERO: [&str; 11] = [
    "output_tokens_max",
    "deadline_ms_max",
    "kv_blocks_max",
    "memory_bytes_max",
    "call_cpu_ms_max",
    "request_cpu_ms_max",
    "call_wall_ms_max",
    "start_cpu_ms_max",
    "transfer_bytes_max",
    "run_cpu_ms_max",
    "run_wall_ms_max",
];

impl ManifestLimits {
    /// The first limit that would let the function do nothing.
    pub(super) fn zero(&self) -> Option<&'static str> {
        self.set().find(|(name, own)| *own == 0 && NEVER_ZERO.contains(name)).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_only_narrow() {
        let host = PlanLimits::default();
        let own = ManifestLimits { output_tokens_max: Some(8), deadline_ms_max: Some(u32::MAX), ..Default::default() };
        let narrow = own.narrow(&host);
        assert_eq!(narrow, PlanLimits { output_tokens_max: 8, ..host.clone() });
        assert_eq!(ManifestLimits::default().narrow(&host), host);
        assert_eq!(ManifestLimits::default().plugin(), OwnLimits::default());
    }

    #[test]
    fn a_manifest_can_name_every_limit_of_a_plugin() {
        for name in OwnLimits::NAMES {
            let text = format!(r#"{{"{name}": 7}}"#);
            let limits: ManifestLimits = serde_json::from_str(&text).expect(name);
            assert_ne!(limits.plugin(), OwnLimits::default(), "{name} arrives");
            let none: ManifestLimits = serde_json::from_str(&format!(r#"{{"{name}": 0}}"#)).expect(name);
            assert_eq!(none.zero().is_some(), NEVER_ZERO.contains(name), "{name}");
        }
        assert!(serde_json::from_str::<ManifestLimits>(r#"{"memory_bytes": 1}"#).is_err());
        assert!(serde_json::from_str::<ManifestLimits>(r#"{"memory_bytes_max": -1}"#).is_err());
    }
}
