//! Buckets, secrets, hosts, a tokenizer, other functions and sessions that a test can look into.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{
    BucketAccess, CallInput, CapabilityError, Expected, FunctionReply, Functions, GenerationBounds, GenerationSession,
    Generations, KeyPage, KeyValue, LogSink, Opening, Outbound, OutboundBounds, OutboundError, Secrets, Session,
    SessionStep, Tokenizer, Versioned, Written,
};
use types::{Chunk, ChunkToken, FinishReason, HookUsage, Prompt};

use crate::setup::{Kept, session};

/// The bucket `b`, and `read`, which is read only.
#[derive(Default)]
pub(crate) struct Buckets(Mutex<BTreeMap<(String, String), Versioned>>, AtomicU32);

#[async_trait]
impl KeyValue for Buckets {
    fn access(&self, bucket: &str) -> Option<BucketAccess> {
        match bucket {
            "b" => Some(BucketAccess::ReadWrite),
            "read" => Some(BucketAccess::ReadOnly),
            _ => None,
        }
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Versioned>, CapabilityError> {
        if key == "broken" {
            return Err(CapabilityError::Failed("the disk".into()));
        }
        let values = self.0.lock().expect("not poisoned");
        Ok(values.get(&(bucket.to_owned(), key.to_owned())).cloned())
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        expected: Expected,
        value: Option<Bytes>,
    ) -> Result<Written, CapabilityError> {
        let mut values = self.0.lock().expect("not poisoned");
        let place = (bucket.to_owned(), key.to_owned());
        let now = values.get(&place).map(|found| found.version);
        let is_expected = match expected {
            Expected::Any => true,
            Expected::Absent => now.is_none(),
            Expected::Version(version) => now == Some(version),
        };
        if !is_expected {
            return Ok(Written::Changed(now));
        }
        let Some(value) = value else {
            values.remove(&place);
            return Ok(Written::Done(None));
        };
        let version = u64::from(self.1.fetch_add(1, Ordering::Relaxed)) + 1;
        values.insert(place, Versioned { value, version });
        Ok(Written::Done(Some(version)))
    }

    async fn keys(&self, bucket: &str, after: Option<&str>) -> Result<KeyPage, CapabilityError> {
        let values = self.0.lock().expect("not poisoned");
        let own = values.keys().filter(|(owner, _)| owner == bucket).map(|(_, key)| key.clone());
        let mut keys: Vec<String> = own.filter(|key| after.is_none_or(|after| key.as_str() > after)).collect();
        let has_more = keys.len() > 2;
        keys.truncate(2);
        Ok(KeyPage { keys, has_more })
    }
}

/// The secret `key`.
pub(crate) struct OneSecret;

#[async_trait]
impl Secrets for OneSecret {
    async fn get(&self, name: &str) -> Result<String, CapabilityError> {
        match name {
            "key" => Ok("s3cret".to_owned()),
            _ => Secrets::get(&plugin::Nothing, name).await,
        }
    }
}

/// Answers with what it was sent; knows some hosts.
#[derive(Default)]
pub(crate) struct Web {
    /// Requests that were begun and neither ended nor dropped.
    pub(crate) pending: Arc<AtomicU32>,
}

struct Pending(Arc<AtomicU32>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Outbound for Web {
    async fn send(
        &self,
        request: http::Request<Bytes>,
        bounds: OutboundBounds,
    ) -> Result<http::Response<Bytes>, OutboundError> {
        self.pending.fetch_add(1, Ordering::SeqCst);
        let _pending = Pending(Arc::clone(&self.pending));
        let answer = http::Response::builder().header("x-was", "here").header("connection", "close");
        match request.uri().host() {
            Some("long") if bounds.response_bytes_max < 1000 => {
                let max = bounds.response_bytes_max;
                Err(OutboundError::Limit { limit: "http_response_bytes_max", max })
            }
            Some("echo" | "long") => {
                let headers = request.headers().iter().map(|(name, value)| format!("{name}={value:?}"));
                let headers: Vec<String> = headers.collect();
                let (method, uri, body) = (request.method(), request.uri(), String::from_utf8_lossy(request.body()));
                Ok(answer.body(format!("{method} {uri} {headers:?} {body}").into()).expect("an answer"))
            }
            Some("moved") => Ok(answer
                .status(302)
                .header("location", "http://169.254.169.254/")
                .body(Bytes::new())
                .expect("an answer")),
            Some("silent") => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Err(OutboundError::Failed("never".into()))
            }
            Some("private") => Err(OutboundError::Address("private".into())),
            _ => plugin::Nothing.send(request, bounds).await,
        }
    }
}

/// One token for each byte.
pub(crate) struct ByteTokens;

#[async_trait]
impl Tokenizer for ByteTokens {
    async fn encode(&self, text: String) -> Result<Vec<u32>, CapabilityError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    async fn decode(&self, tokens: Vec<u32>, bytes_max: usize) -> Result<String, CapabilityError> {
        // As a token of a vocabulary may stand for a long text.
        let bytes = tokens.iter().map(|token| *token as usize).sum();
        if bytes > bytes_max {
            return Err(CapabilityError::Limit("tokenizer_bytes_max".into()));
        }
        Ok("x".repeat(bytes))
    }
}

const USAGE: HookUsage = HookUsage { prompt_tokens: 1, completion_tokens: 1, finish: FinishReason::Stop };

/// Other functions: `slow` never answers, `later` after a while, the others at once.
#[derive(Default)]
pub(crate) struct Others {
    /// Calls that were begun and neither ended nor dropped.
    pub(crate) pending: Arc<AtomicU32>,
}

#[async_trait]
impl Functions for Others {
    async fn call(&self, function: String, input: CallInput, _: Option<u32>) -> Result<FunctionReply, CapabilityError> {
        self.pending.fetch_add(1, Ordering::SeqCst);
        let _pending = Pending(Arc::clone(&self.pending));
        match function.as_str() {
            "slow" => tokio::time::sleep(Duration::from_secs(3600)).await,
            "later" => tokio::time::sleep(Duration::from_millis(600)).await,
            _ => {}
        }
        let text = format!("{input:?}");
        Ok(FunctionReply { text, function, version: 1, usage: USAGE, metadata: Vec::new(), receipt: String::new() })
    }
}

/// Opens sessions of one token for each byte, which say `x` as often as they may. It counts those that live.
#[derive(Default)]
pub(crate) struct Sessions(pub(crate) Arc<AtomicU32>);

struct ByteSession {
    tokens: u32,
    left: u32,
    logprob: Option<f32>,
    living: Pending,
}

impl ByteSession {
    fn new(tokens: u32, living: &Arc<AtomicU32>) -> Box<Self> {
        living.fetch_add(1, Ordering::SeqCst);
        Box::new(Self { tokens, left: 0, logprob: None, living: Pending(Arc::clone(living)) })
    }
}

#[async_trait]
impl Generations for Sessions {
    async fn open(&self, opening: Opening) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        let bytes = match opening.prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
            _ => return Err(CapabilityError::Failed("no text".into())),
        };
        Ok(ByteSession::new(u32::try_from(bytes).expect("short"), &self.0))
    }
}

#[async_trait]
impl GenerationSession for ByteSession {
    fn tokens(&self) -> u32 {
        self.tokens
    }

    async fn append(&mut self, text: String) -> Result<(), CapabilityError> {
        self.tokens += u32::try_from(text.len()).expect("short");
        Ok(())
    }

    async fn start(&mut self, bounds: GenerationBounds) -> Result<u32, CapabilityError> {
        self.left = bounds.max_tokens.unwrap_or(1);
        let asked = bounds.sampling.filter(|sampling| sampling.logprobs.is_some());
        self.logprob = asked.map(|sampling| -0.1 * (sampling.seed.unwrap_or_default() % 7 + 1) as f32);
        Ok(self.left)
    }

    async fn next(&mut self) -> Result<SessionStep, CapabilityError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(SessionStep::Done(USAGE)) };
        (self.left, self.tokens) = (left, self.tokens + 1);
        Ok(SessionStep::Text(Chunk { text: "x".into(), tokens: vec![ChunkToken { id: 1, logprob: self.logprob }] }))
    }

    fn stop(&mut self) -> u32 {
        // As if all of it had been generated.
        std::mem::take(&mut self.left)
    }

    fn fork(&self) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        Ok(Self::new(self.tokens, &self.living.0))
    }
}

/// A session with all of them, and its log.
pub(crate) fn lent() -> (Session, Arc<Kept>) {
    let log = Arc::new(Kept::default());
    let session = Session {
        log: Arc::clone(&log) as Arc<dyn LogSink>,
        keyvalue: Arc::new(Buckets::default()),
        secrets: Arc::new(OneSecret),
        outbound: Arc::new(Web::default()),
        tools: Arc::new(plugin::Nothing),
        tokenizer: Arc::new(ByteTokens),
        functions: Arc::new(Others::default()),
        generations: Arc::new(Sessions::default()),
        ..session()
    };
    (session, log)
}

pub(crate) fn lines(log: &Kept) -> Vec<String> {
    log.0.lock().expect("not poisoned").iter().map(|(_, line)| line.clone()).collect()
}
