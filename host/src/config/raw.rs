//! Configuration as it is written, every key optional. Not here: defaults and checks.

use std::path::PathBuf;

use model::{Precision, Prompts};
use serde::{Deserialize, Deserializer, Serialize};

use super::{KvKind, MatmulKind, RunnerChoice};

/// What was written, by whatever source. The flags of the command line fill one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// Path of the base model: a GGUF file, or a folder of safetensors files. Relative paths in the file start at the file's folder.
    pub base: Option<PathBuf>,
    /// Folder of all state.
    pub data: Option<PathBuf>,
    /// IP address and port.
    pub listen: Option<String>,
    /// For one developer on one machine.
    pub dev: Option<bool>,
    /// `f32` or `quantised`.
    pub precision: Option<Precision>,
    /// How the CPU computes prompts where the precision is `quantised`: `auto` or `int8`.
    pub prompts: Option<Prompts>,
    /// `auto`, `cpu` or `cuda`.
    pub runner: Option<RunnerChoice>,
    /// Bytes of the device's memory.
    pub device_memory_bytes_max: Option<u64>,
    /// How a CUDA device keeps keys and values: `f16`, `int8` or `fp8`.
    pub kv_format: Option<KvKind>,
    /// What a CUDA device multiplies many rows with: `own` or `cublaslt`.
    pub matmul: Option<MatmulKind>,
    /// Threads of the engine.
    pub threads: Option<u64>,
    /// Bytes for keys and values; not with `kv_blocks`.
    pub kv_bytes_max: Option<u64>,
    /// Blocks for keys and values; not with `kv_bytes_max`.
    pub kv_blocks: Option<u64>,
    /// Tokens of a block.
    pub block_tokens: Option<u64>,
    /// Adapters that one batch can use.
    pub adapter_slots: Option<u64>,
    /// Tokens of one step.
    pub batch_rows_max: Option<u64>,
    /// Folder of `file://` adapters.
    pub adapters_root: Option<PathBuf>,
    /// Bytes for loaded adapters.
    pub adapter_cache_bytes_max: Option<u64>,
    /// Bytes of disk for packed adapters.
    pub adapter_disk_bytes_max: Option<u64>,
    /// `adapter_pinned_bytes_max`
    pub adapter_pinned_bytes_max: Option<u64>,
    /// `adapter_staging_bytes_max`
    pub adapter_staging_bytes_max: Option<u64>,
    /// `share_adapters_across_tenants`
    pub share_adapters_across_tenants: Option<bool>,
    /// Requests that may wait.
    pub queue_requests_max: Option<u64>,
    /// Requests of one tenant that may wait.
    pub queue_tenant_requests_max: Option<u64>,
    /// Whether KV is kept for later requests that begin alike.
    pub prefix_cache: Option<bool>,
    /// Tokens of a request that are guessed in one step.
    pub speculation_tokens_max: Option<u64>,
    /// Milliseconds for running requests to end when the host stops.
    pub drain_ms_max: Option<u64>,
    /// `tracing` filter directives.
    pub log: Option<String>,
    /// TLS of the listener.
    pub tls: RawTls,
    /// What adapters may be fetched from.
    pub adapter_sources: RawAdapterSources,
    /// Where plugins may send requests.
    pub plugin_http: RawPluginHttp,
    /// Which registries plugins may be pulled from.
    pub plugin_sources: RawPluginSources,
    /// Limits.
    pub limits: RawLimits,
}

/// The table `tls`. Relative paths in the file start at the file's folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTls {
    /// PEM: the certificate and its chain.
    pub certificate_file: Option<PathBuf>,
    /// PEM: the private key.
    pub private_key_file: Option<PathBuf>,
}

/// The table `adapter_sources`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdapterSources {
    /// Hosts that may be asked, such as `example.org`, `*.example.org`, `http://localhost:9000`.
    #[serde(deserialize_with = "words")]
    pub hosts: Option<Vec<String>>,
    /// Networks (CIDR) that are not public, and may be connected to.
    #[serde(deserialize_with = "words")]
    pub private_networks: Option<Vec<String>>,
    /// URL of the hub for `hf://`.
    pub hugging_face_endpoint: Option<String>,
    /// URL of the server for `s3://`.
    pub s3_endpoint: Option<String>,
    /// Region of its signatures.
    pub s3_region: Option<String>,
    /// URL of the gateway for `ipfs://`.
    pub ipfs_gateway: Option<String>,
    /// Milliseconds for a whole source.
    pub total_ms_max: Option<u64>,
    /// Milliseconds without a byte.
    pub stall_ms_max: Option<u64>,
    /// Milliseconds for a connection.
    pub connect_ms_max: Option<u64>,
    /// Requests for one file.
    pub attempts_max: Option<u64>,
    /// Milliseconds before the second of these.
    pub retry_wait_ms: Option<u64>,
    /// Redirects of one request.
    pub redirects_max: Option<u64>,
    /// Sources at a time.
    pub fetches_max: Option<u64>,
}

/// The table `plugin_http`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPluginHttp {
    /// Origins that manifests may grant; all if this is left out.
    #[serde(deserialize_with = "words")]
    pub hosts: Option<Vec<String>>,
    /// Networks (CIDR) that are not public, and may be connected to.
    #[serde(deserialize_with = "words")]
    pub private_networks: Option<Vec<String>>,
}

/// The table `plugin_sources`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPluginSources {
    /// Registries that may be asked, and where they lead; none if this is left out.
    #[serde(deserialize_with = "words")]
    pub hosts: Option<Vec<String>>,
    /// Networks (CIDR) that are not public, and may be connected to.
    #[serde(deserialize_with = "words")]
    pub private_networks: Option<Vec<String>>,
}

/// A list, or, as a variable of the environment has it, text with commas.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of texts, or a text with commas")]
    enum Words {
        List(Vec<String>),
        Text(String),
    }
    Ok(Option::deserialize(deserializer)?.map(|words| match words {
        Words::List(list) => list,
        Words::Text(text) => {
            text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        }
    }))
}

/// The table `limits`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// Entries of a composition.
    pub composition_entries_max: Option<u64>,
    /// Absolute value of an entry's weight.
    pub adapter_weight_abs_max: Option<f32>,
    /// Bytes of a prompt.
    pub prompt_bytes_max: Option<u64>,
    /// Tokens of a prompt.
    pub prompt_tokens_max: Option<u64>,
    /// Tokens to generate.
    pub output_tokens_max: Option<u64>,
    /// Tokens to generate when the plan does not say.
    pub output_tokens_default: Option<u64>,
    /// Stop strings and stop tokens, each.
    pub stop_conditions_max: Option<u64>,
    /// Bytes of a stop string.
    pub stop_string_bytes_max: Option<u64>,
    /// Bytes of a JSON schema, a regular expression or a grammar.
    pub constraint_bytes_max: Option<u64>,
    /// Alternatives to each token.
    pub logprobs_max: Option<u64>,
    /// Tokens whose logits are biased.
    pub logit_bias_tokens_max: Option<u64>,
    /// Bytes of text that a plugin may hold back.
    pub held_bytes_max: Option<u64>,
    /// Bytes of text that a plugin may answer with.
    pub answer_bytes_max: Option<u64>,
    /// KV blocks of a prompt and its token budget.
    pub kv_blocks_max: Option<u64>,
    /// Bytes of adapters that a request may have loaded.
    pub cold_bytes_max: Option<u64>,
    /// Milliseconds for a request.
    pub deadline_ms_max: Option<u64>,
    /// Bytes of a body that is not an upload.
    pub body_bytes_max: Option<u64>,
    /// Bytes of an uploaded plugin.
    pub upload_bytes_max: Option<u64>,
    /// Bytes of an uploaded adapter.
    pub adapter_bytes_max: Option<u64>,
    /// Frobenius norm of the change of one module of an adapter.
    pub adapter_frobenius_norm_max: Option<f64>,
    /// Its spectral norm, which is estimated.
    pub adapter_spectral_norm_max: Option<f64>,
    /// Milliseconds for a request's headers.
    pub header_timeout_ms: Option<u64>,
    /// Milliseconds for a TLS handshake.
    pub handshake_timeout_ms: Option<u64>,
    /// Connections at once.
    pub connections_max: Option<u64>,
    /// Answers that one request may ask for.
    pub choices_max: Option<u64>,
    /// Plugin instances at once.
    pub plugin_instances_max: Option<u64>,
    /// Bytes of all the memories of a plugin's instance.
    pub plugin_memory_bytes_max: Option<u64>,
    /// Milliseconds of CPU for an instance's start.
    pub plugin_start_cpu_ms_max: Option<u64>,
    /// Milliseconds of CPU for one call of a plugin.
    pub plugin_call_cpu_ms_max: Option<u64>,
    /// Milliseconds for one call of a plugin.
    pub plugin_call_wall_ms_max: Option<u64>,
    /// Seconds of CPU for compiling an upload.
    pub plugin_compile_cpu_seconds_max: Option<u64>,
    /// Milliseconds for compiling an upload.
    pub plugin_compile_wall_ms_max: Option<u64>,
    /// Milliseconds of CPU for all calls of a request.
    pub plugin_request_cpu_ms_max: Option<u64>,
    /// Calls of the host during one call of a plugin.
    pub plugin_host_calls_max: Option<u64>,
    /// Calls of the host during one request.
    pub plugin_request_host_calls_max: Option<u64>,
    /// Bytes of log of one request.
    pub plugin_log_bytes_max: Option<u64>,
    /// Lines of log of one request.
    pub plugin_log_lines_max: Option<u64>,
    /// Requests of a tenant to functions and models in a minute.
    pub tenant_requests_per_minute_max: Option<u64>,
    /// Tokens of a tenant's prompts and answers in a minute.
    pub tenant_tokens_per_minute_max: Option<u64>,
    /// Bytes of the bodies of a tenant's requests in a minute.
    pub tenant_body_bytes_per_minute_max: Option<u64>,
    /// Requests of a tenant to functions and models at once.
    pub tenant_concurrent_requests_max: Option<u64>,
    /// Writes to key-value buckets of one request.
    pub plugin_kv_writes_max: Option<u64>,
    /// Outgoing HTTP requests of one request.
    pub plugin_http_requests_max: Option<u64>,
    /// Calls of tools of one request.
    pub plugin_tool_calls_max: Option<u64>,
    /// Bytes of the body of one outgoing request.
    pub plugin_http_request_bytes_max: Option<u64>,
    /// Bytes of the body of its answer.
    pub plugin_http_response_bytes_max: Option<u64>,
    /// Calls of other functions of one request, those of the functions that it called included.
    pub plugin_function_calls_max: Option<u64>,
    /// Generation sessions that an agent holds at once.
    pub plugin_sessions_max: Option<u64>,
    /// Generations of an agent in one request.
    pub plugin_generations_max: Option<u64>,
    /// Tokens that an agent has generated in one request.
    pub plugin_generated_tokens_max: Option<u64>,
    /// Tokens of all prompts of an agent's generations in one request.
    pub plugin_session_tokens_max: Option<u64>,
    /// Milliseconds of CPU for an agent.
    pub plugin_run_cpu_ms_max: Option<u64>,
    /// Milliseconds for an agent, waiting included.
    pub plugin_run_wall_ms_max: Option<u64>,
    /// Keys of a bucket.
    pub kv_bucket_keys_max: Option<u64>,
    /// Bytes of all buckets of a tenant.
    pub kv_tenant_bytes_max: Option<u64>,
}
