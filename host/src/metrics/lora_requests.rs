//! `vllm:lora_requests_info`, by which the Gateway API inference extension knows how many adapters a server runs: one series
//! whose labels are lists of names and whose value is the time.
//!
//! The names would tell one tenant what another runs, since `/metrics` needs no key, and so would anything that stays the same
//! for an adapter, a keyed digest too: who owns the same adapter sees it come up. So an adapter is a number of that moment, `#1`,
//! `#2`, …, which no alias can be. Routers count them against `max_lora` rightly, and never find the adapter that they look for.
//! Not here: when it is fed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use engine::EngineStats;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

/// Whether there is something to say, and what.
#[derive(Clone, Debug, Default)]
pub(super) struct LoraRequests(Arc<Mutex<Option<Snapshot>>>);

#[derive(Clone, Copy, Debug)]
struct Snapshot {
    slots: u32,
    running: u32,
    /// At most so many.
    waiting: u64,
    time_unix_s: u64,
}

impl LoraRequests {
    /// Feeds how many adapters run and wait. An adapter that waits has a lease and a request that waits, and no slot.
    pub(super) fn observe(&self, stats: &EngineStats, leases: usize, time_unix_s: u64) {
        let (leases, waiting) = (leases as u64, stats.waiting as u64);
        let waiting = waiting.min(leases.saturating_sub(stats.adapter_slots_used.into()));
        let (slots, running) = (stats.adapter_slots_total, stats.adapter_slots_used);
        let snapshot = Snapshot { slots, running, waiting, time_unix_s };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
    }
}

impl EncodeMetric for LoraRequests {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Snapshot { slots, running, waiting, time_unix_s }) = snapshot else { return Ok(()) };
        let labels = [
            ("max_lora", slots.to_string()),
            ("running_lora_adapters", numbers(1, running.into())),
            ("waiting_lora_adapters", numbers(u64::from(running) + 1, waiting)),
        ];
        encoder.encode_family(&labels)?.encode_gauge(&i64::try_from(time_unix_s).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// So many names that are nobody's.
fn numbers(first: u64, count: u64) -> String {
    (first..first.saturating_add(count)).map(|number| format!("#{number}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;
    use types::AdapterAlias;

    use super::*;

    fn lines(metric: &LoraRequests) -> Vec<String> {
        let mut registry = Registry::default();
        registry.register("vllm:lora_requests_info", "help", metric.clone());
        let mut rendered = String::new();
        text::encode(&mut rendered, &registry).expect("encoded");
        rendered.lines().filter(|line| line.starts_with("vllm:lora_requests_info")).map(str::to_owned).collect()
    }

    #[test]
    fn there_is_one_series_and_it_counts() {
        let metric = LoraRequests::default();
        assert!(lines(&metric).is_empty(), "nothing is known before the base is loaded");
        let stats = |waiting, adapter_slots_used| EngineStats {
            waiting,
            adapter_slots_used,
            adapter_slots_total: 4,
            ..EngineStats::default()
        };
        let told = |stats, leases| {
            metric.observe(&stats, leases, 1_700_000_000);
            lines(&metric)
        };
        let line = |running: &str, waiting: &str| {
            vec![format!(
                "vllm:lora_requests_info{{max_lora=\"4\",running_lora_adapters=\"{running}\",\
                 waiting_lora_adapters=\"{waiting}\"}} 1700000000"
            )]
        };
        assert_eq!(told(stats(0, 0), 0), line("", ""));
        assert_eq!(told(stats(0, 2), 5), line("#1,#2", ""), "requests may share an adapter");
        assert_eq!(told(stats(3, 2), 4), line("#1,#2", "#3,#4"));
        assert_eq!(told(stats(1, 2), 9), line("#1,#2", "#3"));
        assert_eq!(told(stats(9, 4), 0), line("#1,#2,#3,#4", ""), "requests on the base wait for no adapter");
    }

    #[test]
    fn no_adapter_can_be_called_so() {
        assert!("#1".parse::<AdapterAlias>().is_err());
    }
}
