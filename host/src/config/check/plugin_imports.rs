//! What plugins may be pulled from, and ask for beside computing: the tables `plugin_sources` and `plugin_http`, and the limits on
//! requests and key-value buckets. Not here: what is done with them (`oci`, `outbound`, `keyvalue`).

use plugin::PluginLimits;

use super::{BYTES_MAX, Checks};
use crate::config::ConfigError;
use crate::config::raw::{RawLimits, RawPluginHttp, RawPluginSources};
use crate::keyvalue::KeyValueLimits;
use crate::oci::PluginSourcesConfig;
use crate::outbound::OutboundConfig;

/// Requests and writes of one request, bytes of a body.
const COUNT_MAX: u64 = 1 << 16;
const BODY_BYTES_MAX: u64 = 1 << 28;
/// Calls and generations of one request: its receipt has a record of each.
const NESTED_MAX: u64 = 64;
const TOKENS_MAX: u64 = 1 << 30;
const RUN_MS_MAX: u64 = 3_600_000;

impl Checks<'_> {
    pub(super) fn plugin_sources(&self, raw: &RawPluginSources) -> Result<PluginSourcesConfig, ConfigError> {
        let hosts = self.list("plugin_sources.hosts", raw.hosts.as_deref())?;
        let private_networks = self.list("plugin_sources.private_networks", raw.private_networks.as_deref())?;
        Ok(PluginSourcesConfig { hosts, private_networks })
    }

    pub(super) fn plugin_http(&self, raw: &RawPluginHttp) -> Result<OutboundConfig, ConfigError> {
        let hosts = raw.hosts.as_deref().map(|hosts| self.list("plugin_http.hosts", Some(hosts))).transpose()?;
        let private_networks = self.list("plugin_http.private_networks", raw.private_networks.as_deref())?;
        Ok(OutboundConfig { hosts, private_networks })
    }

    pub(super) fn keyvalue_limits(&self, raw: &RawLimits) -> Result<KeyValueLimits, ConfigError> {
        let default = KeyValueLimits::default();
        Ok(KeyValueLimits {
            bucket_keys_max: self.number(
                "limits.kv_bucket_keys_max",
                raw.kv_bucket_keys_max,
                default.bucket_keys_max,
                0..=1 << 30,
            )?,
            tenant_bytes_max: self.number(
                "limits.kv_tenant_bytes_max",
                raw.kv_tenant_bytes_max,
                default.tenant_bytes_max,
                0..=BYTES_MAX,
            )?,
            ..default
        })
    }

    pub(super) fn plugin_imports(&self, raw: &RawLimits, default: PluginLimits) -> Result<PluginLimits, ConfigError> {
        let count = |key: &str, value, default: u32| self.number(key, value, default.into(), 0..=COUNT_MAX);
        let bytes = |key: &str, value, default: usize| self.number(key, value, default as u64, 0..=BODY_BYTES_MAX);
        Ok(PluginLimits {
            kv_writes_max: count("limits.plugin_kv_writes_max", raw.plugin_kv_writes_max, default.kv_writes_max)?,
            http_requests_max: count(
                "limits.plugin_http_requests_max",
                raw.plugin_http_requests_max,
                default.http_requests_max,
            )?,
            tool_calls_max: count("limits.plugin_tool_calls_max", raw.plugin_tool_calls_max, default.tool_calls_max)?,
            http_request_bytes_max: bytes(
                "limits.plugin_http_request_bytes_max",
                raw.plugin_http_request_bytes_max,
                default.http_request_bytes_max,
            )?,
            http_response_bytes_max: bytes(
                "limits.plugin_http_response_bytes_max",
                raw.plugin_http_response_bytes_max,
                default.http_response_bytes_max,
            )?,
            ..self.plugin_nested(raw, default)?
        })
    }

    fn plugin_nested(&self, raw: &RawLimits, default: PluginLimits) -> Result<PluginLimits, ConfigError> {
        let number =
            |name: &str, value, default, max| self.number(&format!("limits.plugin_{name}"), value, default, 0..=max);
        let tokens = |name: &str, value, default: u32| {
            self.number(&format!("limits.plugin_{name}"), value, default.into(), 0..=TOKENS_MAX)
        };
        let few = |name: &str, value, default: u32| {
            self.number(&format!("limits.plugin_{name}"), value, default.into(), 0..=NESTED_MAX)
        };
        Ok(PluginLimits {
            function_calls_max: few("function_calls_max", raw.plugin_function_calls_max, default.function_calls_max)?,
            sessions_max: few("sessions_max", raw.plugin_sessions_max, default.sessions_max)?,
            generations_max: few("generations_max", raw.plugin_generations_max, default.generations_max)?,
            generated_tokens_max: tokens(
                "generated_tokens_max",
                raw.plugin_generated_tokens_max,
                default.generated_tokens_max,
            )?,
            session_tokens_max: tokens(
                "session_tokens_max",
                raw.plugin_session_tokens_max,
                default.session_tokens_max,
            )?,
            run_cpu_ms_max: number("run_cpu_ms_max", raw.plugin_run_cpu_ms_max, default.run_cpu_ms_max, RUN_MS_MAX)?,
            run_wall_ms_max: number(
                "run_wall_ms_max",
                raw.plugin_run_wall_ms_max,
                default.run_wall_ms_max,
                RUN_MS_MAX,
            )?,
            ..default
        })
    }
}
