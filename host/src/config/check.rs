//! Fills in defaults and checks values: settings in, [`Config`] out. Not here: where settings come from.

mod adapter_sources;
mod plugin_imports;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use model::NormLimits;
use plugin::PluginLimits;
use types::PlanLimits;

use super::raw::{RawConfig, RawLimits, RawTls};
use super::sources::{Settings, refuse};
use super::{Config, ConfigError, HttpLimits, KvSize, MatmulKind, Precision, Prompts, RunnerChoice, TlsFiles};
use crate::quotas::Quota;

/// A day: no limit in milliseconds is longer.
const MS_MAX: u64 = 86_400_000;
/// 16 TiB: no limit in bytes is larger.
const BYTES_MAX: u64 = 1 << 44;
const KV_BYTES_DEFAULT: u64 = 512 << 20;
/// Requests that may wait.
const QUEUE_DEFAULT: u64 = 256;

pub(super) fn check(settings: &Settings) -> Result<Config, ConfigError> {
    let raw = settings.raw()?;
    let dev = raw.dev.unwrap_or(false);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let checks = Checks { settings };
    Ok(Config {
        base: checks.base(&raw)?,
        data: checks.data(&raw)?,
        listen: checks.listen(&raw, dev)?,
        dev,
        precision: checks.precision(&raw)?,
        prompts: checks.prompts(&raw)?,
        runner: raw.runner.unwrap_or_default(),
        device_memory_bytes_max: match raw.device_memory_bytes_max {
            None => None,
            bytes => Some(checks.number("device_memory_bytes_max", bytes, 1 << 20, 1 << 20..=BYTES_MAX)?),
        },
        kv_format: raw.kv_format.unwrap_or_default(),
        matmul: checks.matmul(&raw)?,
        threads: checks.number("threads", raw.threads, cores.min(1024), 1..=1024)?,
        kv: checks.kv(&raw)?,
        kv_is_given: raw.kv_bytes_max.or(raw.kv_blocks).is_some(),
        block_tokens: checks.block_tokens(&raw)?,
        adapter_slots: checks.number("adapter_slots", raw.adapter_slots, 32, 1..=65_536)?,
        batch_rows_max: checks.number("batch_rows_max", raw.batch_rows_max, 512, 1..=65_536)?,
        adapters_root: checks.adapters_root(&raw)?,
        adapter_sources: checks.adapter_sources(&raw.adapter_sources)?,
        adapter_cache_bytes_max: checks.number(
            "adapter_cache_bytes_max",
            raw.adapter_cache_bytes_max,
            1 << 30,
            1 << 20..=BYTES_MAX,
        )?,
        adapter_norms: NormLimits {
            frobenius_max: checks.norm("limits.adapter_frobenius_norm_max", raw.limits.adapter_frobenius_norm_max)?,
            spectral_max: checks.norm("limits.adapter_spectral_norm_max", raw.limits.adapter_spectral_norm_max)?,
        },
        adapter_staging_bytes_max: checks.number(
            "adapter_staging_bytes_max",
            raw.adapter_staging_bytes_max,
            1 << 30,
            0..=BYTES_MAX,
        )?,
        adapter_pinned_bytes_max: checks.number(
            "adapter_pinned_bytes_max",
            raw.adapter_pinned_bytes_max,
            raw.adapter_cache_bytes_max.unwrap_or(1 << 30) / 2,
            0..=BYTES_MAX,
        )?,
        share_adapters_across_tenants: raw.share_adapters_across_tenants.unwrap_or(false),
        adapter_disk_bytes_max: checks.number(
            "adapter_disk_bytes_max",
            raw.adapter_disk_bytes_max,
            8 << 30,
            0..=BYTES_MAX,
        )?,
        queue_requests_max: checks.number("queue_requests_max", raw.queue_requests_max, QUEUE_DEFAULT, 1..=2048)?,
        queue_tenant_requests_max: checks.queue_of_tenant(&raw)?,
        prefix_cache: raw.prefix_cache.unwrap_or(true),
        speculation_tokens_max: checks.number("speculation_tokens_max", raw.speculation_tokens_max, 8, 0..=64)?,
        drain: checks.milliseconds("drain_ms_max", raw.drain_ms_max, Duration::from_secs(30), 0)?,
        plan_limits: checks.plan_limits(&raw.limits)?,
        http_limits: checks.http_limits(&raw.limits)?,
        tenant_quota: checks.tenant_quota(&raw.limits)?,
        tls: checks.tls(&raw.tls)?,
        plugin_limits: checks.plugin_limits(&raw.limits)?,
        plugin_instances_max: checks.number(
            "limits.plugin_instances_max",
            raw.limits.plugin_instances_max,
            256,
            1..=4096,
        )?,
        plugin_http: checks.plugin_http(&raw.plugin_http)?,
        plugin_sources: checks.plugin_sources(&raw.plugin_sources)?,
        keyvalue_limits: checks.keyvalue_limits(&raw.limits)?,
        log: checks.log(&raw)?,
    })
}

struct Checks<'a> {
    settings: &'a Settings,
}

impl Checks<'_> {
    fn refuse(&self, key: &str, reason: impl AsRef<str>) -> ConfigError {
        refuse(key, self.settings.source(key), reason.as_ref())
    }

    fn number<T: TryFrom<u64>>(
        &self,
        key: &str,
        value: Option<u64>,
        default: u64,
        allowed: RangeInclusive<u64>,
    ) -> Result<T, ConfigError> {
        let value = value.unwrap_or(default);
        let error = || {
            let (least, most) = (allowed.start(), allowed.end());
            self.refuse(key, format!("{value} is not allowed, use {least} to {most}"))
        };
        if allowed.contains(&value) { T::try_from(value).map_err(|_| error()) } else { Err(error()) }
    }

    fn milliseconds(
        &self,
        key: &str,
        value: Option<u64>,
        default: Duration,
        least: u64,
    ) -> Result<Duration, ConfigError> {
        let default = u64::try_from(default.as_millis()).unwrap_or(MS_MAX);
        self.number(key, value, default, least..=MS_MAX).map(Duration::from_millis)
    }

    /// Three quarters of the queue, so that one tenant leaves room for others.
    fn queue_of_tenant(&self, raw: &RawConfig) -> Result<usize, ConfigError> {
        let all = raw.queue_requests_max.unwrap_or(QUEUE_DEFAULT);
        let default = (all * 3).div_ceil(4);
        self.number("queue_tenant_requests_max", raw.queue_tenant_requests_max, default, 1..=all)
    }

    fn base(&self, raw: &RawConfig) -> Result<PathBuf, ConfigError> {
        let base = raw.base.clone().ok_or(ConfigError::Missing { key: "base" })?;
        if base.is_file() || base.is_dir() {
            return Ok(base);
        }
        let hint = "name the base model's GGUF file, or the folder of its safetensors files";
        Err(self.refuse("base", format!("there is no file or folder {}; {hint}", base.display())))
    }

    fn data(&self, raw: &RawConfig) -> Result<PathBuf, ConfigError> {
        let data = raw.data.clone().unwrap_or_else(|| PathBuf::from("tenon-data"));
        if data.as_os_str().is_empty() || (data.exists() && !data.is_dir()) {
            let reason = format!("`{}` is not a folder; name one, or a path where one can be made", data.display());
            return Err(self.refuse("data", reason));
        }
        Ok(data)
    }

    fn listen(&self, raw: &RawConfig, dev: bool) -> Result<SocketAddr, ConfigError> {
        let text = raw.listen.as_deref().unwrap_or("127.0.0.1:8080");
        let listen: SocketAddr = text.parse().map_err(|_| {
            self.refuse(
                "listen",
                format!("`{text}` is not an IP address and port, such as 127.0.0.1:8080 or [::1]:8080"),
            )
        })?;
        if dev && !listen.ip().is_loopback() {
            let reason = format!("{listen} can be reached from other machines; with `dev` use 127.0.0.1 or [::1]");
            return Err(self.refuse("listen", reason));
        }
        Ok(listen)
    }

    /// A host that computes on the CPU because a library is missing would be a surprise.
    fn matmul(&self, raw: &RawConfig) -> Result<MatmulKind, ConfigError> {
        match (raw.runner, raw.matmul) {
            (Some(RunnerChoice::Cuda), matmul) => Ok(matmul.unwrap_or_default()),
            (_, Some(MatmulKind::CublasLt)) => Err(self.refuse("matmul", "`cublaslt` needs `runner = \"cuda\"`")),
            (_, matmul) => Ok(matmul.unwrap_or_default()),
        }
    }

    /// The CUDA runner has one of its own.
    fn precision(&self, raw: &RawConfig) -> Result<Precision, ConfigError> {
        match (raw.runner, raw.precision) {
            (Some(RunnerChoice::Cuda), Some(_)) => {
                Err(self.refuse("precision", "the CUDA runner computes in bf16: leave this out, or use runner `cpu`"))
            }
            (_, precision) => Ok(precision.unwrap_or_default()),
        }
    }

    /// Nobody else has two ways.
    fn prompts(&self, raw: &RawConfig) -> Result<Prompts, ConfigError> {
        if raw.prompts.is_some() && raw.runner == Some(RunnerChoice::Cuda) {
            return Err(self.refuse("prompts", "the CUDA runner computes all tokens alike: leave this out"));
        }
        Ok(raw.prompts.unwrap_or_default())
    }

    fn kv(&self, raw: &RawConfig) -> Result<KvSize, ConfigError> {
        match (raw.kv_bytes_max, raw.kv_blocks) {
            (Some(_), Some(_)) => Err(self.refuse("kv_blocks", "set this or `kv_bytes_max`, not both")),
            (None, Some(_)) => self.number("kv_blocks", raw.kv_blocks, 1, 1..=1 << 30).map(KvSize::Blocks),
            (bytes, None) => {
                self.number("kv_bytes_max", bytes, KV_BYTES_DEFAULT, 1 << 20..=BYTES_MAX).map(KvSize::Bytes)
            }
        }
    }

    fn block_tokens(&self, raw: &RawConfig) -> Result<u32, ConfigError> {
        let tokens: u32 = self.number("block_tokens", raw.block_tokens, 16, 1..=256)?;
        if tokens.is_power_of_two() {
            return Ok(tokens);
        }
        Err(self.refuse("block_tokens", format!("{tokens} is not allowed, use a power of two up to 256")))
    }

    fn adapters_root(&self, raw: &RawConfig) -> Result<Option<PathBuf>, ConfigError> {
        let Some(root) = &raw.adapters_root else { return Ok(None) };
        // Canonical, so that a source's canonical path can be compared with it.
        match root.canonicalize() {
            Ok(root) if root.is_dir() => Ok(Some(root)),
            _ => Err(self.refuse("adapters_root", format!("there is no folder {}; make it", root.display()))),
        }
    }

    fn plan_limits(&self, raw: &RawLimits) -> Result<PlanLimits, ConfigError> {
        let default = PlanLimits::default();
        let size = |key: &str, value, default: usize| self.number(key, value, default as u64, 1..=BYTES_MAX);
        let count = |key: &str, value, default: u32| self.number(key, value, default.into(), 1..=1 << 24);
        let limits = PlanLimits {
            prefetch_adapters_max: default.prefetch_adapters_max,
            composition_entries_max: self.number(
                "limits.composition_entries_max",
                raw.composition_entries_max,
                default.composition_entries_max as u64,
                1..=256,
            )?,
            adapter_weight_abs_max: self
                .weight(raw.adapter_weight_abs_max.unwrap_or(default.adapter_weight_abs_max))?,
            prompt_bytes_max: size("limits.prompt_bytes_max", raw.prompt_bytes_max, default.prompt_bytes_max)?,
            prompt_tokens_max: size("limits.prompt_tokens_max", raw.prompt_tokens_max, default.prompt_tokens_max)?,
            output_tokens_max: count("limits.output_tokens_max", raw.output_tokens_max, default.output_tokens_max)?,
            output_tokens_default: count(
                "limits.output_tokens_default",
                raw.output_tokens_default,
                default.output_tokens_default,
            )?,
            stop_conditions_max: size(
                "limits.stop_conditions_max",
                raw.stop_conditions_max,
                default.stop_conditions_max,
            )?,
            stop_string_bytes_max: size(
                "limits.stop_string_bytes_max",
                raw.stop_string_bytes_max,
                default.stop_string_bytes_max,
            )?,
            constraint_bytes_max: size(
                "limits.constraint_bytes_max",
                raw.constraint_bytes_max,
                default.constraint_bytes_max,
            )?,
            logprobs_max: self.number(
                "limits.logprobs_max",
                raw.logprobs_max,
                default.logprobs_max.into(),
                0..=1024,
            )?,
            logit_bias_tokens_max: self.number(
                "limits.logit_bias_tokens_max",
                raw.logit_bias_tokens_max,
                default.logit_bias_tokens_max as u64,
                0..=1 << 16,
            )?,
            held_bytes_max: size("limits.held_bytes_max", raw.held_bytes_max, default.held_bytes_max)?,
            answer_bytes_max: size("limits.answer_bytes_max", raw.answer_bytes_max, default.answer_bytes_max)?,
            kv_blocks_max: self.number(
                "limits.kv_blocks_max",
                raw.kv_blocks_max,
                default.kv_blocks_max.into(),
                1..=u32::MAX.into(),
            )?,
            cold_bytes_max: raw.cold_bytes_max.unwrap_or(default.cold_bytes_max),
            deadline_ms_max: self.number(
                "limits.deadline_ms_max",
                raw.deadline_ms_max,
                default.deadline_ms_max.into(),
                1..=MS_MAX,
            )?,
            layers: default.layers,
            vocabulary: default.vocabulary,
        };
        self.output_tokens(raw, limits)
    }

    /// The default must lie within the limit; one that nobody wrote is lowered to it.
    fn output_tokens(&self, raw: &RawLimits, mut limits: PlanLimits) -> Result<PlanLimits, ConfigError> {
        let (default, max) = (limits.output_tokens_default, limits.output_tokens_max);
        if raw.output_tokens_default.is_some() && default > max {
            let reason = format!("{default} is more than `limits.output_tokens_max`, which is {max}");
            return Err(self.refuse("limits.output_tokens_default", reason));
        }
        limits.output_tokens_default = default.min(max);
        Ok(limits)
    }

    fn weight(&self, weight: f32) -> Result<f32, ConfigError> {
        if weight > 0.0 && weight <= 1e6 {
            return Ok(weight);
        }
        Err(self
            .refuse("limits.adapter_weight_abs_max", format!("{weight} is not allowed, use more than 0, up to 1e6")))
    }

    fn norm(&self, key: &str, norm: Option<f64>) -> Result<Option<f64>, ConfigError> {
        match norm {
            Some(norm) if !(norm > 0.0 && norm <= 1e6) => {
                Err(self.refuse(key, format!("{norm} is not allowed, use more than 0, up to 1e6")))
            }
            norm => Ok(norm),
        }
    }

    fn http_limits(&self, raw: &RawLimits) -> Result<HttpLimits, ConfigError> {
        let default = HttpLimits::default();
        let bytes = |key: &str, value, default: usize| self.number(key, value, default as u64, 1 << 10..=1 << 34);
        Ok(HttpLimits {
            body_bytes_max: bytes("limits.body_bytes_max", raw.body_bytes_max, default.body_bytes_max)?,
            upload_bytes_max: bytes("limits.upload_bytes_max", raw.upload_bytes_max, default.upload_bytes_max)?,
            adapter_bytes_max: self.number(
                "limits.adapter_bytes_max",
                raw.adapter_bytes_max,
                default.adapter_bytes_max,
                1 << 10..=BYTES_MAX,
            )?,
            header_timeout: self.milliseconds(
                "limits.header_timeout_ms",
                raw.header_timeout_ms,
                default.header_timeout,
                1,
            )?,
            handshake_timeout: self.milliseconds(
                "limits.handshake_timeout_ms",
                raw.handshake_timeout_ms,
                default.handshake_timeout,
                1,
            )?,
            connections_max: self.number(
                "limits.connections_max",
                raw.connections_max,
                default.connections_max as u64,
                1..=1 << 20,
            )?,
            choices_max: self.number("limits.choices_max", raw.choices_max, default.choices_max.into(), 1..=256)?,
        })
    }

    fn tenant_quota(&self, raw: &RawLimits) -> Result<Quota, ConfigError> {
        let count = |key: &str, value: Option<u64>| {
            value.map(|max| self.number(key, Some(max), max, 1..=u32::MAX.into())).transpose()
        };
        let bytes = |key: &str, value: Option<u64>| {
            value.map(|max| self.number(key, Some(max), max, 1..=BYTES_MAX)).transpose()
        };
        Ok(Quota {
            requests_per_minute_max: count(
                "limits.tenant_requests_per_minute_max",
                raw.tenant_requests_per_minute_max,
            )?,
            tokens_per_minute_max: count("limits.tenant_tokens_per_minute_max", raw.tenant_tokens_per_minute_max)?,
            body_bytes_per_minute_max: bytes(
                "limits.tenant_body_bytes_per_minute_max",
                raw.tenant_body_bytes_per_minute_max,
            )?,
            concurrent_requests_max: count(
                "limits.tenant_concurrent_requests_max",
                raw.tenant_concurrent_requests_max,
            )?,
        })
    }

    /// Both files or neither; what is in them is read when the listener starts.
    fn tls(&self, raw: &RawTls) -> Result<Option<TlsFiles>, ConfigError> {
        let file = |key: &str, path: &PathBuf| {
            if path.is_file() {
                return Ok(path.clone());
            }
            Err(self.refuse(key, format!("there is no file {}; name a PEM file", path.display())))
        };
        let (certificate, key) = ("tls.certificate_file", "tls.private_key_file");
        match (&raw.certificate_file, &raw.private_key_file) {
            (None, None) => Ok(None),
            (Some(chain), Some(secret)) => {
                Ok(Some(TlsFiles { certificate_file: file(certificate, chain)?, private_key_file: file(key, secret)? }))
            }
            (Some(_), None) => Err(self.refuse(certificate, "set `tls.private_key_file` too, or neither")),
            (None, Some(_)) => Err(self.refuse(key, "set `tls.certificate_file` too, or neither")),
        }
    }

    fn plugin_limits(&self, raw: &RawLimits) -> Result<PluginLimits, ConfigError> {
        let default = PluginLimits::default();
        let ms = |key: &str, value, default: u64| self.number(key, value, default, 1..=MS_MAX);
        let count = |key: &str, value, default: u32| self.number(key, value, default.into(), 1..=1 << 30);
        Ok(PluginLimits {
            upload_bytes_max: self.http_limits(raw)?.upload_bytes_max,
            memory_bytes_max: self.number(
                "limits.plugin_memory_bytes_max",
                raw.plugin_memory_bytes_max,
                default.memory_bytes_max as u64,
                1 << 20..=2 << 30,
            )?,
            start_cpu_ms_max: ms(
                "limits.plugin_start_cpu_ms_max",
                raw.plugin_start_cpu_ms_max,
                default.start_cpu_ms_max,
            )?,
            call_cpu_ms_max: ms("limits.plugin_call_cpu_ms_max", raw.plugin_call_cpu_ms_max, default.call_cpu_ms_max)?,
            call_wall_ms_max: ms(
                "limits.plugin_call_wall_ms_max",
                raw.plugin_call_wall_ms_max,
                default.call_wall_ms_max,
            )?,
            request_cpu_ms_max: ms(
                "limits.plugin_request_cpu_ms_max",
                raw.plugin_request_cpu_ms_max,
                default.request_cpu_ms_max,
            )?,
            compile_cpu_seconds_max: self.number(
                "limits.plugin_compile_cpu_seconds_max",
                raw.plugin_compile_cpu_seconds_max,
                default.compile_cpu_seconds_max,
                1..=MS_MAX / 1000,
            )?,
            compile_wall_ms_max: ms(
                "limits.plugin_compile_wall_ms_max",
                raw.plugin_compile_wall_ms_max,
                default.compile_wall_ms_max,
            )?,
            host_calls_max: count("limits.plugin_host_calls_max", raw.plugin_host_calls_max, default.host_calls_max)?,
            request_host_calls_max: count(
                "limits.plugin_request_host_calls_max",
                raw.plugin_request_host_calls_max,
                default.request_host_calls_max,
            )?,
            log_bytes_max: self.number(
                "limits.plugin_log_bytes_max",
                raw.plugin_log_bytes_max,
                default.log_bytes_max as u64,
                0..=1 << 30,
            )?,
            log_lines_max: self.number(
                "limits.plugin_log_lines_max",
                raw.plugin_log_lines_max,
                default.log_lines_max.into(),
                0..=1 << 30,
            )?,
            ..self.plugin_imports(raw, default)?
        })
    }

    fn log(&self, raw: &RawConfig) -> Result<String, ConfigError> {
        let log = raw.log.clone().unwrap_or_else(|| "info".to_owned());
        match tracing_subscriber::EnvFilter::try_new(&log) {
            Ok(_) => Ok(log),
            Err(error) => Err(self.refuse("log", format!("{error}; use directives such as `info,host=debug`"))),
        }
    }
}
