//! Concurrent streams against a server, each with its prompt and adapters, and when their tokens came. Closed loop: a stream
//! sends its next request when the last one has ended. Not here: the servers (`process`), the comparison (`served`).

mod prompts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};

use crate::Outcome;
use crate::ours::Mix;
use crate::process::alias;
use crate::statistics::quantile;

pub(crate) use prompts::prompt;

const REQUEST_MAX: Duration = Duration::from_secs(600);

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tenon,
    LlamaServer,
}

/// A server to be asked.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    pub(crate) key: Option<String>,
}

/// How much load, and of what kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) streams: usize,
    pub(crate) requests_each: usize,
    pub(crate) output_tokens: usize,
    pub(crate) mix: Mix,
    /// Adapters that there are.
    pub(crate) adapters: usize,
    /// Makes the prompts others than before.
    pub(crate) turn: usize,
    /// Whether our server is told to leave speculation out.
    pub(crate) without_speculation: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Served {
    pub(crate) tokens_per_s: f64,
    /// Of each request.
    pub(crate) first_token_s: Vec<f64>,
    /// Between the tokens of each request.
    pub(crate) gaps_s: Vec<f64>,
    pub(crate) prompt_tokens: f64,
}

impl Served {
    /// Below which this share of the first tokens came.
    pub(crate) fn first_token(&self, share: f64) -> f64 {
        quantile(&self.first_token_s, share).unwrap_or(f64::NAN)
    }

    /// Below which this share of the gaps lies.
    pub(crate) fn gap(&self, share: f64) -> f64 {
        quantile(&self.gaps_s, share).unwrap_or(f64::NAN)
    }
}

/// An HTTP client with a runtime of its own.
pub(crate) struct Http {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

/// One finished stream.
pub(crate) struct Stream {
    /// From the request to the first text.
    pub(crate) first: Duration,
    gaps: Vec<f64>,
    pub(crate) tokens: usize,
    prompt_tokens: usize,
}

impl Http {
    /// # Errors
    /// If the system gives no threads or sockets.
    pub(crate) fn new() -> Outcome<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        // A connection for each request: llama.cpp's server closes idle ones after 5 s, and a request that meets its end fails.
        let client = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .tls_backend_preconfigured(tls)
            .timeout(REQUEST_MAX);
        // One thread: the cores are the servers'.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, client: client.build()? })
    }

    /// For callers that do more than one thing at a time.
    pub(crate) fn parts(&self) -> (&tokio::runtime::Runtime, &reqwest::Client) {
        (&self.runtime, &self.client)
    }

    /// Status and body.
    ///
    /// # Errors
    /// If there is no answer.
    pub(crate) fn get(&self, target: &Target, path: &str) -> Outcome<(u16, String)> {
        let request = with_key(self.client.get(format!("{}{path}", target.url)), target);
        self.runtime.block_on(async {
            let answer = request.send().await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        })
    }

    /// Status and body of a JSON request.
    ///
    /// # Errors
    /// If there is no answer.
    pub(crate) fn post(&self, target: &Target, path: &str, body: &Value) -> Outcome<(u16, Value)> {
        let request = with_key(self.client.post(format!("{}{path}", target.url)), target).json(body);
        self.runtime.block_on(async {
            let answer = request.send().await?;
            let status = answer.status().as_u16();
            Ok((status, serde_json::from_str(&answer.text().await?).unwrap_or_default()))
        })
    }

    /// Uploads an adapter.
    ///
    /// # Errors
    /// If it is refused.
    pub(crate) fn upload(&self, target: &Target, alias: &str, config: Vec<u8>, weights: Vec<u8>) -> Outcome {
        let upload = upload_request(&self.client, target, alias, config, weights);
        self.runtime.block_on(async {
            let answer = upload.send().await?;
            let status = answer.status();
            if status.is_success() { Ok(()) } else { Err(format!("{alias}: {status} {}", answer.text().await?).into()) }
        })
    }

    /// Puts the load on a server and waits for its end.
    ///
    /// # Errors
    /// If any request is refused, fails, or answers with fewer tokens than it was asked for: then nothing was measured.
    pub(crate) fn load(&self, target: &Target, shape: Shape) -> Outcome<Served> {
        self.runtime.block_on(async {
            let started = Instant::now();
            let streams = (0..shape.streams).map(|stream| async move {
                let mut done = Vec::new();
                for request in 0..shape.requests_each {
                    done.push(stream_once(&self.client, target, shape, stream, request).await?);
                }
                Outcome::Ok(done)
            });
            let streams: Vec<Vec<Stream>> = futures::future::try_join_all(streams).await?;
            let seconds = started.elapsed().as_secs_f64();
            let all: Vec<Stream> = streams.into_iter().flatten().collect();
            let tokens: usize = all.iter().map(|stream| stream.tokens).sum();
            let prompt_tokens: usize = all.iter().map(|stream| stream.prompt_tokens).sum();
            Ok(Served {
                tokens_per_s: tokens as f64 / seconds,
                first_token_s: all.iter().map(|stream| stream.first.as_secs_f64()).collect(),
                prompt_tokens: prompt_tokens as f64 / all.len().max(1) as f64,
                gaps_s: all.into_iter().flat_map(|stream| stream.gaps).collect(),
            })
        })
    }
}

/// Adds the key of the server.
pub(crate) fn with_key(request: reqwest::RequestBuilder, target: &Target) -> reqwest::RequestBuilder {
    match &target.key {
        Some(key) => request.bearer_auth(key),
        None => request,
    }
}

/// The upload of an adapter's two files.
pub(crate) fn upload_request(
    client: &reqwest::Client,
    target: &Target,
    alias: &str,
    config: Vec<u8>,
    weights: Vec<u8>,
) -> reqwest::RequestBuilder {
    let part = |name: &str, bytes| reqwest::multipart::Part::bytes(bytes).file_name(name.to_owned());
    let form = reqwest::multipart::Form::new()
        .part("adapter_config.json", part("adapter_config.json", config))
        .part("adapter_model.safetensors", part("adapter_model.safetensors", weights));
    with_key(client.put(format!("{}/v1/adapters/{alias}", target.url)), target).multipart(form)
}

async fn stream_once(
    client: &reqwest::Client,
    target: &Target,
    shape: Shape,
    stream: usize,
    request: usize,
) -> Outcome<Stream> {
    let (path, body) = request_of(target.kind, shape, stream, request);
    let stream = read_stream(client, target, path, &body).await?;
    if stream.tokens != shape.output_tokens {
        let wanted = shape.output_tokens;
        return Err(format!("{path}: {} tokens came of {wanted} that were asked for", stream.tokens).into());
    }
    Ok(stream)
}

/// Sends a request for a stream, and reads it to its end.
///
/// # Errors
/// If it is refused or fails.
pub(crate) async fn read_stream(
    client: &reqwest::Client,
    target: &Target,
    path: &str,
    body: &Value,
) -> Outcome<Stream> {
    let started = Instant::now();
    let answer = with_key(client.post(format!("{}{path}", target.url)), target).json(body).send().await?;
    if !answer.status().is_success() {
        return Err(format!("{path}: {} {}", answer.status(), answer.text().await?).into());
    }
    let mut bytes = answer.bytes_stream();
    let (mut buffer, mut times) = (Vec::new(), Vec::new());
    let (mut tokens, mut prompt_tokens, mut first_event) = (0, 0, None);
    while let Some(piece) = bytes.next().await {
        buffer.extend_from_slice(&piece?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Some(event) = event_of(&line)? else { continue };
            if has_text(target.kind, &event) {
                times.push(Instant::now());
            }
            first_event.get_or_insert_with(Instant::now);
            if let Some((prompt, output)) = usage_of(target.kind, &event) {
                (prompt_tokens, tokens) = (prompt, output);
            }
        }
    }
    // A random adapter may draw nothing but tokens without text: then the first event tells.
    let first = times.first().or(first_event.as_ref()).ok_or("a stream had no events")?.duration_since(started);
    let gaps = times.windows(2).filter_map(|pair| match pair {
        [one, two] => Some(two.duration_since(*one).as_secs_f64()),
        _ => None,
    });
    Ok(Stream { first, gaps: gaps.collect(), tokens, prompt_tokens })
}

/// The path and the body of a request: greedy, to the full length, streamed.
fn request_of(kind: Kind, shape: Shape, stream: usize, request: usize) -> (&'static str, Value) {
    let text = prompt(shape.turn * 1_000_003 + stream * 1009 + request);
    let adapters = shape.mix.adapters_of(stream, shape.adapters.max(1));
    match kind {
        Kind::Tenon => {
            let named: Vec<Value> =
                adapters.iter().map(|adapter| json!({"name": alias(*adapter), "weight": 1.0})).collect();
            let mut body = json!({
                "model": "base", "adapters": named, "prompt": text, "max_tokens": shape.output_tokens, "temperature": 0,
                "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
            });
            if shape.without_speculation {
                body["speculation"] = false.into();
            }
            ("/v1/completions", body)
        }
        Kind::LlamaServer => {
            let mut body = json!({
                "prompt": text, "n_predict": shape.output_tokens, "temperature": 0, "ignore_eos": true,
                "cache_prompt": false, "stream": true,
            });
            if !adapters.is_empty() {
                let scaled = adapters.iter().map(|adapter| json!({"id": adapter, "scale": 1.0}));
                body["lora"] = scaled.collect::<Vec<_>>().into();
            }
            ("/completion", body)
        }
    }
}

/// The event of a line, if it has one.
pub(crate) fn event_of(line: &[u8]) -> Outcome<Option<Value>> {
    let Some(data) = line.strip_prefix(b"data:") else { return Ok(None) };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        return Ok(None);
    }
    let event: Value = serde_json::from_slice(data)?;
    match event.get("error") {
        Some(error) => Err(format!("a stream failed: {error}").into()),
        None => Ok(Some(event)),
    }
}

fn has_text(kind: Kind, event: &Value) -> bool {
    let text = match kind {
        Kind::Tenon => event.pointer("/choices/0/text"),
        Kind::LlamaServer => event.get("content"),
    };
    text.and_then(Value::as_str).is_some_and(|text| !text.is_empty())
}

/// Tokens of prompt and output, in the event that says so.
fn usage_of(kind: Kind, event: &Value) -> Option<(usize, usize)> {
    let number = |pointer: &str| event.pointer(pointer).and_then(Value::as_u64).map(|number| number as usize);
    match kind {
        Kind::Tenon => number("/usage/prompt_tokens").zip(number("/usage/completion_tokens")),
        Kind::LlamaServer => {
            let is_last = event.get("stop").and_then(Value::as_bool) == Some(true);
            number("/tokens_evaluated").zip(number("/tokens_predicted")).filter(|_| is_last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        streams: 4,
        requests_each: 1,
        output_tokens: 64,
        mix: Mix::TwoEach,
        adapters: 32,
        turn: 3,
        without_speculation: false,
    };

    #[test]
    fn both_servers_are_asked_for_the_same() {
        let (path, ours) = request_of(Kind::Tenon, SHAPE, 1, 0);
        let (other_path, theirs) = request_of(Kind::LlamaServer, SHAPE, 1, 0);
        assert_eq!((path, other_path), ("/v1/completions", "/completion"));
        assert_eq!(ours["prompt"], theirs["prompt"]);
        assert_eq!(ours["adapters"], json!([{"name": "random-1", "weight": 1.0}, {"name": "random-2", "weight": 1.0}]));
        assert_eq!(theirs["lora"], json!([{"id": 1, "scale": 1.0}, {"id": 2, "scale": 1.0}]));
        let base = request_of(Kind::LlamaServer, Shape { mix: Mix::Base, ..SHAPE }, 1, 0).1;
        assert!(base.get("lora").is_none() && ours.get("speculation").is_none());
        assert_ne!(ours["prompt"], request_of(Kind::Tenon, Shape { turn: 4, ..SHAPE }, 1, 0).1["prompt"]);
    }

    #[test]
    fn events_are_read_and_errors_end_a_stream() {
        let event = event_of(b"data: {\"choices\": [{\"text\": \"a\"}]}\r\n").expect("read").expect("an event");
        assert!(has_text(Kind::Tenon, &event) && usage_of(Kind::Tenon, &event).is_none());
        assert!(event_of(b"data: [DONE]\n").expect("read").is_none() && event_of(b"\n").expect("read").is_none());
        assert!(event_of(b"data: {\"error\": {\"message\": \"no\"}}\n").is_err());
        let last = json!({"content": "", "stop": true, "tokens_predicted": 64, "tokens_evaluated": 50});
        assert_eq!(usage_of(Kind::LlamaServer, &last), Some((50, 64)));
        assert!(!has_text(Kind::LlamaServer, &last));
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}});
        assert_eq!(usage_of(Kind::Tenon, &usage), Some((5, 6)));
    }
}
