//! Requests for adapters by popularity, so many at once, against one budget of memory. Not here: what budgets are compared.

use std::cell::Cell;
use std::time::Instant;

use futures::StreamExt as _;
use serde_json::{Value, json};

use super::CONCURRENT;
use super::popularity::Popularity;
use super::population::{DISK_BYTES_MAX, Population};
use super::scratch::drop_page_cache;
use crate::load::{Http, Target, prompt, read_stream, with_key};
use crate::memory::{Memory, Sample};
use crate::process::alias;
use crate::soak::requests::metric;
use crate::statistics::quantile;
use crate::{Outcome, progress};

/// Tokens of an answer.
const OUTPUT_TOKENS: usize = 16;
/// First uses at once, before anything is measured.
const TOUCHES: usize = 16;
/// Requests before those that count: so many fill the memory for keys and values, which grows the process until it is full.
const WARM_UP: usize = 250;

/// The requests: the same for every budget.
pub(super) struct Traffic {
    popularity: Popularity,
    /// The adapter of each request; the first ones do not count.
    adapters: Vec<usize>,
}

/// What came of them.
pub(super) struct Run {
    pub(super) budget_bytes: u64,
    pub(super) seconds: f64,
    pub(super) tokens: usize,
    /// Of each request, in the order in which they were sent.
    first_token_s: Vec<f64>,
    /// Adapters that were found in host memory, and not found.
    pub(super) memory_hits: f64,
    pub(super) memory_misses: f64,
    /// Packed adapters that were found on disk, and not found.
    pub(super) disk_hits: f64,
    pub(super) disk_misses: f64,
    pub(super) cache_bytes: f64,
    pub(super) dropped_bytes: f64,
    pub(super) memory: Vec<Sample>,
}

impl Run {
    pub(super) const fn requests(&self) -> usize {
        self.first_token_s.len()
    }

    /// Below which this share of the first tokens came, in seconds.
    pub(super) fn first_token(&self, share: f64) -> f64 {
        quantile(&self.first_token_s, share).unwrap_or(f64::NAN)
    }

    /// The 99th percentile of each of so many parts of the run.
    pub(super) fn block_p99s(&self, blocks: usize) -> Vec<f64> {
        let length = (self.requests() / blocks.max(1)).max(1);
        self.first_token_s.chunks_exact(length).filter_map(|block| quantile(block, 0.99)).collect()
    }
}

impl Traffic {
    /// So many requests for so many adapters.
    pub(super) fn new(adapters: usize, requests: usize, seed: u64) -> Self {
        let popularity = Popularity::zipf(adapters, seed);
        let mut state = !seed;
        let adapters = (0..WARM_UP + requests).map(|_| popularity.draw(&mut state)).collect();
        Self { popularity, adapters }
    }

    /// Different adapters among the requests that count.
    pub(super) fn distinct(&self) -> usize {
        let mut all = self.adapters.get(WARM_UP..).unwrap_or_default().to_vec();
        all.sort_unstable();
        all.dedup();
        all.len()
    }

    /// Fills a server's memory with the most popular adapters, empties the page cache, and sends the requests.
    ///
    /// # Errors
    /// If a server does not come up, or a request fails.
    pub(super) fn run(&self, population: &Population, http: &Http, share: f64) -> Outcome<Run> {
        let budget_bytes = (population.packed_bytes as f64 * share).ceil() as u64;
        let mut server = population.start(http, budget_bytes.max(1 << 20), DISK_BYTES_MAX)?;
        let fit = (population.adapters as f64 * share).ceil() as usize;
        touch(http, &server.target, self.popularity.top_ascending(fit), TOUCHES, "in memory")?;
        let dropped_bytes = drop_page_cache(&population.data)?;
        let (warm_up, counted) = self.adapters.split_at(WARM_UP.min(self.adapters.len()));
        self.send(http, &server.target, warm_up, 0)?;
        let before = Counts::read(http, &server.target)?;
        let memory = Memory::watch(server.pid());
        let started = Instant::now();
        let sent = self.send(http, &server.target, counted, warm_up.len());
        let (seconds, memory) = (started.elapsed().as_secs_f64(), memory.stop());
        let first_token_s = sent?;
        let after = Counts::read(http, &server.target)?;
        if !server.is_running() {
            return Err(format!("the server ended: {}", server.log()).into());
        }
        server.stop()?;
        Ok(Run {
            budget_bytes,
            seconds,
            tokens: first_token_s.len() * OUTPUT_TOKENS,
            first_token_s,
            memory_hits: after.memory_hits - before.memory_hits,
            memory_misses: after.memory_misses - before.memory_misses,
            disk_hits: after.disk_hits - before.disk_hits,
            disk_misses: after.disk_misses - before.disk_misses,
            cache_bytes: after.cache_bytes,
            dropped_bytes,
            memory,
        })
    }

    /// Sends requests, so many at once; the times of their first tokens, in order.
    fn send(&self, http: &Http, target: &Target, adapters: &[usize], first: usize) -> Outcome<Vec<f64>> {
        let (runtime, client) = http.parts();
        let (next, bar) = (Cell::new(0), progress::bar(adapters.len(), "answered"));
        let caller = || async {
            let mut done = Vec::new();
            loop {
                let place = next.replace(next.get() + 1);
                let Some(adapter) = adapters.get(place) else { break };
                let body = request(*adapter, first + place, OUTPUT_TOKENS);
                let stream = read_stream(client, target, "/v1/completions", &body).await?;
                if stream.tokens != OUTPUT_TOKENS {
                    return Err(format!("{} tokens came of {OUTPUT_TOKENS}", stream.tokens).into());
                }
                bar.inc(1);
                done.push((place, stream.first.as_secs_f64()));
            }
            Outcome::Ok(done)
        };
        let callers: Vec<_> = (0..CONCURRENT).map(|_| caller()).collect();
        let all = runtime.block_on(futures::future::try_join_all(callers))?;
        let mut all: Vec<(usize, f64)> = all.into_iter().flatten().collect();
        all.sort_by_key(|(place, _)| *place);
        Ok(all.into_iter().map(|(_, first)| first).collect())
    }
}

/// A streamed completion with one adapter; no two numbers give the same prompt.
pub(super) fn request(adapter: usize, number: usize, tokens: usize) -> Value {
    json!({
        "model": "base", "adapters": [{"name": alias(adapter), "weight": 1.0}], "prompt": prompt(number),
        "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "speculation": false, "stream": true,
        "stream_options": {"include_usage": true},
    })
}

/// Uses each of these adapters once, in this order but for those that are under way at a time.
///
/// # Errors
/// If one cannot be used.
pub(super) fn touch(http: &Http, target: &Target, adapters: Vec<usize>, at_once: usize, done: &'static str) -> Outcome {
    let (runtime, client) = http.parts();
    let bar = progress::bar(adapters.len(), done);
    let touches = adapters.into_iter().map(|adapter| {
        let bar = &bar;
        async move {
            let body = json!({"model": "base", "adapters": [{"name": alias(adapter), "weight": 1.0}], "prompt": "One",
                "max_tokens": 1, "temperature": 0});
            let request = with_key(client.post(format!("{}/v1/completions", target.url)), target).json(&body);
            let answer = request.send().await?;
            let status = answer.status();
            let text = answer.text().await?;
            bar.inc(1);
            if status.is_success() {
                Outcome::Ok(())
            } else {
                Err(format!("adapter {adapter}: {status} {text}").into())
            }
        }
    });
    runtime.block_on(async {
        let mut touches = futures::stream::iter(touches).buffer_unordered(at_once);
        while let Some(touched) = touches.next().await {
            touched?;
        }
        Ok(())
    })
}

/// What the metrics say of the tiers.
struct Counts {
    memory_hits: f64,
    memory_misses: f64,
    disk_hits: f64,
    disk_misses: f64,
    cache_bytes: f64,
}

impl Counts {
    fn read(http: &Http, target: &Target) -> Outcome<Self> {
        let (_, text) = http.get(target, "/metrics")?;
        let of = |name: &str| metric(&text, name).ok_or_else(|| format!("/metrics has no {name}"));
        let asked =
            |tier, outcome| of(&format!("tenon_adapter_requests_total{{tier=\"{tier}\",outcome=\"{outcome}\"}}"));
        Ok(Self {
            memory_hits: asked("memory", "hit")?,
            memory_misses: asked("memory", "miss")?,
            disk_hits: asked("disk", "hit")?,
            disk_misses: asked("disk", "miss")?,
            cache_bytes: of("tenon_adapter_cache_bytes")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_the_same_each_time_and_prompts_are_not() {
        let (one, same) = (Traffic::new(50, 200, 4), Traffic::new(50, 200, 4));
        assert_eq!(one.adapters, same.adapters);
        assert_eq!(one.adapters.len(), WARM_UP + 200);
        assert!((20..=50).contains(&one.distinct()), "{}", one.distinct());
        assert_ne!(request(1, 5, 16)["prompt"], request(1, 6, 16)["prompt"]);
    }

    #[test]
    fn a_run_is_cut_into_parts_of_one_length() {
        let run = Run {
            budget_bytes: 1,
            seconds: 1.0,
            tokens: 1,
            first_token_s: (0..95).map(f64::from).collect(),
            memory_hits: 0.0,
            memory_misses: 0.0,
            disk_hits: 0.0,
            disk_misses: 0.0,
            cache_bytes: 0.0,
            dropped_bytes: 0.0,
            memory: Vec::new(),
        };
        let blocks = run.block_p99s(9);
        assert_eq!(blocks.len(), 9);
        assert!(blocks.is_sorted() && (8.9..9.0).contains(&blocks[0]), "{blocks:?}");
        assert_eq!((run.requests(), run.first_token(0.5)), (95, 47.0));
    }
}
