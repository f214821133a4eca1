//! What the host counts, as OpenMetrics text. `/metrics` needs no key, so no label names a tenant, a function or an
//! adapter. Gauges are fed just before they are read (the `observe_` functions); those that inference routers look for
//! have vLLM's names.
//!
//! Not here: when something is counted, and the receipts, which are what is charged by.

mod lora_requests;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::EngineStats;
use plugin::PluginStats;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use crate::adapters::{AdapterDiskStats, AdapterMemoryStats, Evictions, LoadTimes, LoadedFrom};
use crate::receipt::ReceiptCounts;
use lora_requests::LoraRequests;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a plugin is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the label's values")]
pub enum PluginCall {
    /// `route`
    route,
    /// `compose`
    compose,
    /// A chunk of output.
    chunk,
    /// The last call.
    finish,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: PluginCall,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabel {
    tier: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierOutcomeLabels {
    tier: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    tier: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfigLabels {
    block_size: u32,
    num_gpu_blocks: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunnerLabels {
    runner: &'static str,
    precision: String,
}

type Ratio = Gauge<f64, AtomicU64>;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    first_token: Histogram,
    inter_token: Histogram,
    queued: Histogram,
    plugin_calls: Family<CallLabels, Histogram>,
    cold_decisions: Family<DecisionLabel, Counter>,
    adapter_loads: Family<StageLabel, Histogram>,
    fed: Fed,
}

/// What is fed when it is read.
#[derive(Debug, Default)]
struct Fed {
    waiting: Gauge,
    running: Gauge,
    kv_usage: Ratio,
    cache_config: Family<CacheConfigLabels, Gauge>,
    runner: Family<RunnerLabels, Gauge>,
    lora_requests: LoraRequests,
    adapter_slots_used: Gauge,
    adapter_slots: Gauge,
    adapter_bytes: Family<TierLabel, Gauge>,
    adapters_resident: Family<TierLabel, Gauge>,
    adapter_requests: Family<TierOutcomeLabels, Counter>,
    adapter_evictions: Family<ReasonLabels, Counter>,
    adapter_cache_bytes: Gauge,
    adapter_pinned_bytes: Gauge,
    adapter_leases: Gauge,
    adapter_disk_bytes: Gauge,
    adapter_disk: Family<KindLabel, Counter>,
    plugin_instances: Gauge,
    plugin_instances_max: Gauge,
    plugin_spares: Gauge,
    plugin_log_lines_dropped: Counter,
    recordings_dropped: Counter,
    preemptions: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    draft_tokens: Counter,
    accepted_tokens: Counter,
    deadlines_foreseen: Counter,
    kv_blocks_idle: Gauge,
    engine_steps: Counter,
    steps_overlapped: Counter,
    receipts: Family<KindLabel, Counter>,
    receipt_transactions: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        let calls = || Histogram::new(exponential_buckets(0.000_02, 4.0, 10));
        let loads = || Histogram::new(exponential_buckets(0.000_1, 2.0, 17));
        let first_token = Histogram::new(exponential_buckets(0.001, 2.0, 17));
        let queued = Histogram::new(exponential_buckets(0.001, 2.0, 17));
        let inter_token = Histogram::new(exponential_buckets(0.000_5, 2.0, 14));
        Self {
            requests: add(r, "tenon_requests", "Requests answered, by route and status", Family::default()),
            prompt_tokens: add(r, "tenon_prompt_tokens", "Tokens of prompts", Counter::default()),
            completion_tokens: add(r, "tenon_completion_tokens", "Tokens generated", Counter::default()),
            first_token: add(r, "tenon_time_to_first_token_seconds", "From admission to the first token", first_token),
            inter_token: add(r, "tenon_inter_token_seconds", "Between two tokens of a request", inter_token),
            queued: add(r, "tenon_queue_seconds", "From submission to the first step", queued),
            plugin_calls: add(
                r,
                "tenon_plugin_call_seconds",
                "Calls into plugins",
                Family::new_with_constructor(calls as fn() -> Histogram),
            ),
            cold_decisions: add(
                r,
                "tenon_cold_decisions",
                "Requests by what was done about adapters that were not in memory",
                Family::default(),
            ),
            adapter_loads: add(
                r,
                "tenon_adapter_load_seconds",
                "Loads of adapters into memory, by stage, and in all by where they were",
                Family::new_with_constructor(loads as fn() -> Histogram),
            ),
            fed: Fed::new(r),
            registry,
        }
    }

    /// Counts an answer. `route` is the template, such as `/v1/functions/{name}`, never a path that a caller
    /// wrote: every new one is a series for ever. Use one word for all paths that match none.
    pub fn request(&self, route: &str, status: u16) {
        let labels = RequestLabels { route: route.to_owned(), status: status.into() };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts the tokens of an inference that ended.
    pub fn tokens(&self, prompt: u32, completion: u32) {
        self.prompt_tokens.inc_by(prompt.into());
        self.completion_tokens.inc_by(completion.into());
    }

    /// Notes the time from admission to the first token.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// Notes the time between two tokens.
    pub fn inter_token(&self, after: Duration) {
        self.inter_token.observe(after.as_secs_f64());
    }

    /// Notes how long a request waited for its first step.
    pub fn queued(&self, wait: Duration) {
        self.queued.observe(wait.as_secs_f64());
    }

    /// Notes a call into a plugin.
    pub fn plugin_call(&self, call: PluginCall, ok: bool, took: Duration) {
        let outcome = if ok { "ok" } else { "error" };
        self.plugin_calls.get_or_create(&CallLabels { call, outcome }).observe(took.as_secs_f64());
    }

    /// Feeds what the engine is doing.
    pub fn observe_engine(&self, stats: &EngineStats) {
        self.fed.waiting.set(gauge(stats.waiting));
        self.fed.running.set(gauge(stats.running));
        let used = stats.kv_blocks_total.saturating_sub(stats.kv_blocks_free);
        self.fed.kv_usage.set(f64::from(used) / f64::from(stats.kv_blocks_total.max(1)));
        self.fed.adapter_slots_used.set(stats.adapter_slots_used.into());
        self.fed.adapter_slots.set(stats.adapter_slots_total.into());
        // Each of these only grows in the engine, so a counter may be set to it.
        self.fed.preemptions.inner().store(stats.preemptions, Relaxed);
        self.fed.engine_steps.inner().store(stats.steps, Relaxed);
        self.fed.steps_overlapped.inner().store(stats.steps_overlapped, Relaxed);
        self.fed.prefix_queries.inner().store(stats.prefix_tokens_asked, Relaxed);
        self.fed.prefix_hits.inner().store(stats.prefix_tokens_found, Relaxed);
        self.fed.draft_tokens.inner().store(stats.draft_tokens, Relaxed);
        self.fed.accepted_tokens.inner().store(stats.draft_tokens_accepted, Relaxed);
        self.fed.deadlines_foreseen.inner().store(stats.deadlines_foreseen, Relaxed);
        self.fed.kv_blocks_idle.set(stats.kv_blocks_idle.into());
    }

    /// Feeds how many adapters run and wait, as routers count them.
    pub fn observe_lora_requests(&self, stats: &EngineStats, leases: usize) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.fed.lora_requests.observe(stats, leases, now.as_secs());
    }

    /// Feeds the size of the KV memory, known once the base is loaded. There is one series of it.
    pub fn observe_kv_size(&self, block_tokens: u32, blocks: u32) {
        self.fed.cache_config.clear();
        let labels = CacheConfigLabels { block_size: block_tokens, num_gpu_blocks: blocks };
        self.fed.cache_config.get_or_create(&labels).set(1);
    }

    /// Feeds what computes. There is one series of it.
    pub fn observe_runner(&self, runner: &'static str, precision: &str) {
        let labels = RunnerLabels { runner, precision: precision.to_owned() };
        self.fed.runner.get_or_create(&labels).set(1);
    }

    /// What was done for a request about adapters that were not in memory; `resident` if all were.
    pub fn cold_decision(&self, decision: &'static str) {
        self.cold_decisions.get_or_create(&DecisionLabel { decision }).inc();
    }

    /// An adapter was brought into memory.
    pub fn adapter_load(&self, times: &LoadTimes) {
        let stages = [("wait", times.wait), ("verify", times.verify)].into_iter().chain(match times.from {
            LoadedFrom::Disk => [("load", times.load), ("disk", times.total())],
            LoadedFrom::Store => [("pack", times.pack), ("store", times.total())],
        });
        let fetch = (times.from == LoadedFrom::Store).then_some(("fetch", times.fetch));
        for (stage, time) in stages.chain(fetch) {
            self.adapter_loads.get_or_create(&StageLabel { stage }).observe(time.as_secs_f64());
        }
    }

    /// Feeds what lies in the host's adapter memory.
    pub fn observe_adapter_memory(&self, stats: &AdapterMemoryStats) {
        let fed = &self.fed;
        fed.adapter_cache_bytes.set(gauge(stats.bytes));
        fed.adapter_pinned_bytes.set(gauge(stats.pinned_bytes));
        fed.adapter_leases.set(gauge(stats.leases));
        let tier = "memory";
        fed.adapter_bytes.get_or_create(&TierLabel { tier }).set(gauge(stats.bytes));
        fed.adapters_resident.get_or_create(&TierLabel { tier }).set(gauge(stats.adapters));
        for (outcome, count) in [("hit", stats.hits), ("miss", stats.misses)] {
            fed.adapter_requests.get_or_create(&TierOutcomeLabels { tier, outcome }).inner().store(count, Relaxed);
        }
        let Evictions { budget, released, idle, forgotten } = stats.evictions;
        for (reason, count) in [("budget", budget), ("released", released), ("idle", idle), ("forgotten", forgotten)] {
            fed.adapter_evictions.get_or_create(&ReasonLabels { tier, reason }).inner().store(count, Relaxed);
        }
    }

    /// Feeds what the disk holds of packed adapters, and has done.
    pub fn observe_adapter_disk(&self, stats: &AdapterDiskStats) {
        self.fed.adapter_disk_bytes.set(gauge(stats.bytes));
        let tier = "disk";
        self.fed.adapter_bytes.get_or_create(&TierLabel { tier }).set(gauge(stats.bytes));
        self.fed.adapters_resident.get_or_create(&TierLabel { tier }).set(gauge(stats.files));
        for (outcome, count) in [("hit", stats.hits), ("miss", stats.misses)] {
            let labels = TierOutcomeLabels { tier, outcome };
            self.fed.adapter_requests.get_or_create(&labels).inner().store(count, Relaxed);
        }
        for (reason, count) in [("budget", stats.evicted), ("refused", stats.refused)] {
            self.fed.adapter_evictions.get_or_create(&ReasonLabels { tier, reason }).inner().store(count, Relaxed);
        }
        for (kind, count) in [
            ("hit", stats.hits),
            ("miss", stats.misses),
            ("refused", stats.refused),
            ("evicted", stats.evicted),
            ("unkept", stats.unkept),
        ] {
            self.fed.adapter_disk.get_or_create(&KindLabel { kind }).inner().store(count, Relaxed);
        }
    }

    /// Feeds what plugins are doing.
    pub fn observe_plugins(&self, stats: &PluginStats) {
        self.fed.plugin_instances.set(gauge(stats.instances));
        self.fed.plugin_instances_max.set(gauge(stats.instances_max));
        self.fed.plugin_spares.set(gauge(stats.spares));
        self.fed.plugin_log_lines_dropped.inner().store(stats.log_lines_dropped, Relaxed);
    }

    /// Feeds how many recordings of requests were dropped.
    pub fn observe_recordings(&self, dropped: u64) {
        self.fed.recordings_dropped.inner().store(dropped, Relaxed);
    }

    /// Feeds what the receipt log has written.
    pub fn observe_receipts(&self, counts: &ReceiptCounts) {
        for (kind, count) in [
            ("started", counts.started),
            ("finished", counts.finished),
            ("cancelled", counts.cancelled),
            ("failed", counts.failed),
            ("recovered", counts.recovered),
        ] {
            self.fed.receipts.get_or_create(&KindLabel { kind }).inner().store(count, Relaxed);
        }
        self.fed.receipt_transactions.inner().store(counts.transactions, Relaxed);
    }

    /// Everything as OpenMetrics text, of media type [`CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        match text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a string does not fail; an answer without an end mark is refused by every reader.
            Err(_) => String::new(),
        }
    }
}

impl Fed {
    fn new(r: &mut Registry) -> Self {
        Self {
            waiting: add(r, "vllm:num_requests_waiting", "Requests that no step has touched", Gauge::default()),
            running: add(r, "vllm:num_requests_running", "Requests that are being computed", Gauge::default()),
            kv_usage: add(r, "vllm:kv_cache_usage_perc", "Share of KV blocks in use, 1 is all", Ratio::default()),
            cache_config: add(r, "vllm:cache_config_info", "Size of the KV memory, as labels", Family::default()),
            runner: add(r, "tenon_runner_info", "What computes, and in which precision, as labels", Family::default()),
            lora_requests: add(
                r,
                "vllm:lora_requests_info",
                "How many adapters run and wait, as lists of numbers; the value is the time",
                LoraRequests::default(),
            ),
            adapter_slots_used: add(r, "tenon_adapter_slots_used", "Adapter slots in use", Gauge::default()),
            adapter_slots: add(r, "tenon_adapter_slots", "Adapter slots", Gauge::default()),
            adapter_bytes: add(r, "tenon_adapter_bytes", "Bytes of packed adapters, by tier", Family::default()),
            adapters_resident: add(r, "tenon_adapters_resident", "Packed adapters, by tier", Family::default()),
            adapter_requests: add(
                r,
                "tenon_adapter_requests",
                "Adapters that were asked for, by tier and whether they were there",
                Family::default(),
            ),
            adapter_evictions: add(
                r,
                "tenon_adapter_evictions",
                "Adapters that left a tier, by reason",
                Family::default(),
            ),
            adapter_cache_bytes: add(r, "tenon_adapter_cache_bytes", "Bytes of adapters in memory", Gauge::default()),
            adapter_pinned_bytes: add(
                r,
                "tenon_adapter_pinned_bytes",
                "Of these, bytes of pinned ones",
                Gauge::default(),
            ),
            adapter_leases: add(r, "tenon_adapter_leases", "Adapters in use", Gauge::default()),
            adapter_disk_bytes: add(
                r,
                "tenon_adapter_disk_bytes",
                "Bytes of packed adapters on disk",
                Gauge::default(),
            ),
            adapter_disk: add(
                r,
                "tenon_adapter_disk",
                "Packed adapters on disk, by what became of them",
                Family::default(),
            ),
            plugin_instances: add(r, "tenon_plugin_instances", "Plugin instances alive", Gauge::default()),
            plugin_instances_max: add(r, "tenon_plugin_instances_max", "Plugin instances at once", Gauge::default()),
            plugin_spares: add(r, "tenon_plugin_spares", "Plugin instances that wait for a request", Gauge::default()),
            plugin_log_lines_dropped: add(
                r,
                "tenon_plugin_log_lines_dropped",
                "Log lines of plugins over their limits",
                Counter::default(),
            ),
            recordings_dropped: add(
                r,
                "tenon_recordings_dropped",
                "Recordings of requests that found no room",
                Counter::default(),
            ),
            engine_steps: add(r, "tenon_engine_steps", "Steps of the engine", Counter::default()),
            steps_overlapped: add(
                r,
                "tenon_engine_steps_overlapped",
                "Of these, steps that were planned while the one before them ran",
                Counter::default(),
            ),
            preemptions: add(r, "tenon_preemptions", "Sequences that were set back", Counter::default()),
            prefix_queries: add(
                r,
                "vllm:prefix_cache_queries",
                "Tokens that sequences began to run with",
                Counter::default(),
            ),
            prefix_hits: add(
                r,
                "vllm:prefix_cache_hits",
                "Of these, tokens whose KV was there already",
                Counter::default(),
            ),
            draft_tokens: add(
                r,
                "vllm:spec_decode_num_draft_tokens",
                "Tokens guessed and verified",
                Counter::default(),
            ),
            accepted_tokens: add(
                r,
                "vllm:spec_decode_num_accepted_tokens",
                "Of these, tokens that were right",
                Counter::default(),
            ),
            deadlines_foreseen: add(
                r,
                "tenon_deadlines_foreseen",
                "Requests given up because they could not have met their deadline",
                Counter::default(),
            ),
            kv_blocks_idle: add(r, "tenon_kv_blocks_idle", "KV blocks kept for later requests", Gauge::default()),
            receipts: add(r, "tenon_receipts", "Receipt records that are durable", Family::default()),
            receipt_transactions: add(
                r,
                "tenon_receipt_transactions",
                "Durable transactions of receipts",
                Counter::default(),
            ),
        }
    }
}

fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

#[cfg(test)]
mod tests;
