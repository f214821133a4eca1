//! Tenants who mean no harm: requests at a fixed rate, each due at its time whether the last one was answered or not, as those of
//! many callers are. Not here: who else is there.

use std::time::{Duration, Instant};

use ::hostile::Source;
use serde_json::{Value, json};

use crate::Outcome;
use crate::load::{Http, Target, upload_request, with_key};
use crate::machine::repository;

/// Requests a second.
pub(super) const RATE: f64 = 6.0;
/// The adapters whose files are in the tree.
const ADAPTERS: [&str; 3] = ["all-caps", "sentiment-json", "iso-date"];

/// What they ask, and what came when they were alone.
pub(super) struct Neighbours {
    asked: Vec<Asked>,
}

struct Asked {
    path: &'static str,
    body: Value,
    /// Where in the answer's JSON the text is.
    place: &'static str,
    expected: Value,
}

/// What they heard in a phase.
#[derive(Default)]
pub(super) struct Heard {
    /// From the time at which a request was due to its answer.
    pub(super) seconds: Vec<f64>,
    pub(super) changed: usize,
    pub(super) failed: usize,
}

impl Neighbours {
    /// Deploys what they need, and asks everything once.
    ///
    /// # Errors
    /// If anything is refused.
    pub(super) fn deploy(http: &Http, target: &Target) -> Outcome<Self> {
        let (runtime, client) = http.parts();
        runtime.block_on(adapters(client, target, &ADAPTERS))?;
        for (function, plugin, adapters) in [("skills", "skill-router", &ADAPTERS[..]), ("echo", "echo", &[])] {
            let digest = runtime.block_on(upload(client, target, Source::Fixture(plugin).component()?))?;
            let digest = digest.map_err(|(status, body)| format!("{plugin}: {status} {body}"))?;
            runtime.block_on(put(client, target, function, &json!({"plugin": digest, "adapters": adapters})))?;
        }
        let function = |path, input: &str| Asked {
            path,
            body: json!({"input": input, "max_tokens": 8}),
            place: "/output",
            expected: Value::Null,
        };
        let base = |prompt: &str| Asked {
            path: "/v1/completions",
            body: json!({"model": "base", "prompt": prompt, "max_tokens": 8, "temperature": 0}),
            place: "/choices/0/text",
            expected: Value::Null,
        };
        let mut asked = vec![
            function("/v1/functions/skills/invoke", "December 7th, 1997"),
            function("/v1/functions/echo/invoke", "What is the capital of France?"),
            base("The sea is"),
            function("/v1/functions/echo/invoke", "Name a colour."),
            base("One, two, three,"),
        ];
        for asked in &mut asked {
            let (status, body) = http.post(target, asked.path, &asked.body)?;
            let text = body.pointer(asked.place).filter(|_| status == 200);
            asked.expected = text.ok_or_else(|| format!("{}: {status} {body}", asked.path))?.clone();
        }
        Ok(Self { asked })
    }

    /// Asks for so long.
    ///
    /// # Errors
    /// If there is nothing to ask.
    pub(super) fn listen(&self, target: &Target, length: Duration) -> Outcome<Heard> {
        let http = Http::new()?;
        let (runtime, client) = http.parts();
        let count = (length.as_secs_f64() * RATE) as usize;
        let begun = Instant::now();
        let answers = runtime.block_on(async {
            let requests = (0..count).map(|number| async move {
                let due = begun + Duration::from_secs_f64(number as f64 / RATE);
                tokio::time::sleep_until(due.into()).await;
                let asked = self.asked.get(number % self.asked.len().max(1))?;
                let request = with_key(client.post(format!("{}{}", target.url, asked.path)), target).json(&asked.body);
                let answer = async {
                    let answer = request.send().await.ok()?.error_for_status().ok()?;
                    answer.json::<Value>().await.ok()
                };
                let text = answer.await.and_then(|body| body.pointer(asked.place).cloned());
                Some((due.elapsed().as_secs_f64(), text.map(|text| text == asked.expected)))
            });
            futures::future::join_all(requests).await
        });
        let mut heard = Heard::default();
        for (seconds, is_same) in answers.into_iter().flatten() {
            heard.seconds.push(seconds);
            heard.changed += usize::from(is_same == Some(false));
            heard.failed += usize::from(is_same.is_none());
        }
        Ok(heard)
    }
}

/// Uploads adapters whose files are in the tree.
///
/// # Errors
/// If one is refused.
pub(super) async fn adapters(client: &reqwest::Client, target: &Target, names: &[&str]) -> Outcome {
    for name in names {
        let folder = repository().join("tests/fixtures/lora").join(name);
        let read = |file: &str| std::fs::read(folder.join(file));
        let (config, weights) = (read("adapter_config.json")?, read("adapter_model.safetensors")?);
        let answer = upload_request(client, target, name, config, weights).send().await?;
        if !answer.status().is_success() {
            return Err(format!("{name}: {}", answer.text().await?).into());
        }
    }
    Ok(())
}

/// The digest of an uploaded component, or status and body of the refusal.
///
/// # Errors
/// If there is no answer.
pub(crate) async fn upload(
    client: &reqwest::Client,
    target: &Target,
    component: Vec<u8>,
) -> Outcome<Result<String, (u16, Value)>> {
    let answer = with_key(client.post(format!("{}/v1/plugins", target.url)), target).body(component).send().await?;
    let status = answer.status().as_u16();
    let body: Value = serde_json::from_str(&answer.text().await?).unwrap_or_default();
    Ok(body.get("digest").and_then(Value::as_str).map(str::to_owned).ok_or((status, body.clone())))
}

/// Deploys a function.
///
/// # Errors
/// If it is refused.
pub(crate) async fn put(client: &reqwest::Client, target: &Target, function: &str, manifest: &Value) -> Outcome {
    let request = with_key(client.put(format!("{}/v1/functions/{function}", target.url)), target).json(manifest);
    let answer = request.send().await?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("{function}: {}", answer.text().await?).into()) }
}
