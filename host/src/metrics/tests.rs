//! What is counted is what is read. Not here: the routes that count.

use super::*;

fn fed() -> Metrics {
    let metrics = Metrics::new();
    let kv = EngineStats { kv_blocks_free: 75, kv_blocks_total: 100, ..EngineStats::default() };
    let prefix = EngineStats { prefix_tokens_asked: 30, prefix_tokens_found: 20, ..kv };
    let guesses = EngineStats { draft_tokens: 8, draft_tokens_accepted: 6, preemptions: 1, ..prefix };
    let stats = EngineStats { waiting: 5, running: 2, steps: 12, steps_overlapped: 7, ..guesses };
    metrics.observe_engine(&stats);
    metrics.observe_lora_requests(&stats, 3);
    metrics.observe_kv_size(16, 100);
    metrics.observe_adapter_memory(&AdapterMemoryStats {
        bytes: 1 << 20,
        adapters: 2,
        leases: 3,
        misses: 4,
        evictions: Evictions { released: 5, ..Evictions::default() },
        ..AdapterMemoryStats::default()
    });
    metrics.cold_decision("base");
    metrics.adapter_load(&LoadTimes {
        from: LoadedFrom::Store,
        wait: Duration::ZERO,
        fetch: Duration::from_millis(3),
        verify: Duration::from_millis(1),
        pack: Duration::from_millis(100),
        load: Duration::ZERO,
    });
    metrics.observe_adapter_disk(&AdapterDiskStats { bytes: 4096, hits: 6, refused: 1, ..Default::default() });
    metrics.observe_recordings(3);
    let (prepared, prepared_bytes) = (3, 99);
    metrics.observe_plugins(&PluginStats {
        instances: 2,
        spares: 1,
        instances_max: 9,
        log_lines_dropped: 11,
        prepared,
        prepared_bytes,
    });
    let receipts = ReceiptCounts { started: 3, finished: 2, transactions: 4, ..ReceiptCounts::default() };
    metrics.observe_receipts(&receipts);
    metrics
}

#[test]
fn routers_find_what_they_look_for() {
    let text = fed().render();
    for line in [
        "vllm:num_requests_waiting 5\n",
        "vllm:num_requests_running 2\n",
        "vllm:kv_cache_usage_perc 0.25\n",
        "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1\n",
        "vllm:lora_requests_info{max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"#1,#2,#3\"} ",
        "vllm:prefix_cache_queries_total 30\n",
        "vllm:prefix_cache_hits_total 20\n",
        "vllm:spec_decode_num_draft_tokens_total 8\n",
        "vllm:spec_decode_num_accepted_tokens_total 6\n",
        "tenon_preemptions_total 1\n",
        "tenon_engine_steps_total 12\n",
        "tenon_engine_steps_overlapped_total 7\n",
        "tenon_receipts_total{kind=\"started\"} 3\n",
        "tenon_receipt_transactions_total 4\n",
        "tenon_adapter_bytes{tier=\"memory\"} 1048576\n",
        "tenon_adapter_bytes{tier=\"disk\"} 4096\n",
        "tenon_adapters_resident{tier=\"memory\"} 2\n",
        "tenon_adapter_requests_total{tier=\"memory\",outcome=\"miss\"} 4\n",
        "tenon_adapter_requests_total{tier=\"disk\",outcome=\"hit\"} 6\n",
        "tenon_adapter_evictions_total{tier=\"memory\",reason=\"released\"} 5\n",
        "tenon_cold_decisions_total{decision=\"base\"} 1\n",
        "tenon_adapter_load_seconds_count{stage=\"pack\"} 1\n",
        "tenon_adapter_load_seconds_sum{stage=\"store\"} 0.104\n",
        "tenon_adapter_disk_bytes 4096\n",
        "tenon_adapter_disk_total{kind=\"hit\"} 6\n",
        "tenon_adapter_disk_total{kind=\"refused\"} 1\n",
        "tenon_plugin_instances 2\n",
        "tenon_plugin_log_lines_dropped_total 11\n",
        "tenon_recordings_dropped_total 3\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

/// Prometheus' older text parser, which routers use, knows no other types.
#[test]
fn types_are_those_that_every_reader_knows() {
    let text = fed().render();
    for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
        let kind = line.rsplit(' ').next().unwrap_or_default();
        assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
    }
}

#[test]
fn counting() {
    let metrics = Metrics::new();
    metrics.request("/v1/functions/{name}", 200);
    metrics.request("/v1/functions/{name}", 200);
    metrics.tokens(7, 5);
    metrics.first_token(Duration::from_millis(30));
    metrics.inter_token(Duration::from_millis(3));
    metrics.queued(Duration::from_millis(2));
    metrics.plugin_call(PluginCall::compose, true, Duration::from_micros(90));
    let text = metrics.render();
    for line in [
        "tenon_requests_total{route=\"/v1/functions/{name}\",status=\"200\"} 2\n",
        "tenon_prompt_tokens_total 7\n",
        "tenon_completion_tokens_total 5\n",
        "tenon_time_to_first_token_seconds_count 1\n",
        "tenon_inter_token_seconds_count 1\n",
        "tenon_queue_seconds_count 1\n",
        "tenon_plugin_call_seconds_count{call=\"compose\",outcome=\"ok\"} 1\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn there_is_one_series_of_the_cache_size() {
    let metrics = fed();
    metrics.observe_kv_size(16, 200);
    assert_eq!(metrics.render().matches("vllm:cache_config_info{").count(), 1);
}
