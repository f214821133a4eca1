//! Who sends the hostile calls: one after the other at a fixed rate, each judged by the catalogue. Not here: the neighbours.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use ::hostile::{Act, Class, Guest, Outcome as Expected, Seen, Tenant};
use serde_json::{Value, json};

use super::RATE;
use super::neighbours::{adapters, put, upload};
use crate::Outcome;
use crate::load::{Http, Target, with_key};

/// Messages that are kept.
const SHOWN_MAX: usize = 20;
/// Uploads as large as the limit are sent so often only: they are all alike, and it is our own machine that they slow down.
const LARGE_BYTES: usize = 8 << 20;
/// A caller that leaves has sent its request by then, whatever it waits for.
const LEAVE_MIN_MS: u64 = 5;

/// The guests, deployed.
pub(super) struct Sender {
    ready: Vec<Ready>,
    keys: [String; 2],
}

struct Ready {
    guest: Guest,
    function: String,
    /// What is uploaded each time.
    component: Option<bytes::Bytes>,
}

/// What came of the calls.
#[derive(Default)]
pub(super) struct Told {
    pub(super) calls: usize,
    pub(super) wrong: usize,
    /// Searches for marks that found one.
    pub(super) found: usize,
    messages: Vec<String>,
    of_class: BTreeMap<String, usize>,
    names: std::collections::BTreeSet<String>,
}

impl Told {
    pub(super) fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.wrong += other.wrong;
        self.found += other.found;
        self.messages.extend(other.messages);
        self.messages.truncate(SHOWN_MAX);
        self.names.extend(other.names);
        other.of_class.into_iter().for_each(|(class, count)| *self.of_class.entry(class).or_default() += count);
    }

    pub(super) fn guests(&self) -> usize {
        self.names.len()
    }

    pub(super) fn json(&self) -> Value {
        json!({"calls": self.calls, "wrong": self.wrong, "marks_found": self.found, "by_class": self.of_class,
            "messages": self.messages})
    }

    fn count(&mut self, guest: &Guest, judged: Result<(), String>) {
        self.calls += 1;
        self.names.insert(guest.name.clone());
        *self.of_class.entry(format!("{:?}", guest.class)).or_default() += 1;
        if let Err(message) = judged {
            self.wrong += 1;
            self.found += usize::from(guest.class == Class::Canaries);
            if self.messages.len() < SHOWN_MAX {
                eprintln!("  {message}");
                self.messages.push(message);
            }
        }
    }
}

impl Sender {
    /// Makes two tenants and the guests' functions. A component that must be refused is not deployed.
    ///
    /// # Errors
    /// If anything else is refused.
    pub(super) fn deploy(target: &Target, guests: Vec<Guest>) -> Outcome<Self> {
        let http = Http::new()?;
        let mut keys = [String::new(), String::new()];
        for (name, key) in ["hostile-first", "hostile-second"].iter().zip(&mut keys) {
            let (status, body) = http.post(target, "/v1/tenants", &json!({"name": name}))?;
            if status != 201 {
                return Err(format!("{name}: {status} {body}").into());
            }
            let rights = ["invoke", "deploy", "adapters", "receipts"];
            let (_, body) = http.post(target, "/v1/keys", &json!({"tenant": name, "rights": rights}))?;
            *key = body.get("key").and_then(Value::as_str).ok_or("no key")?.to_owned();
        }
        let mut sender = Self { ready: Vec::new(), keys };
        let (runtime, client) = http.parts();
        let first = sender.target(target, Tenant::First);
        runtime.block_on(adapters(client, &first, &["all-caps", "iso-date"]))?;
        runtime.block_on(async {
            let url = format!("{}/v1/secrets/canary", target.url);
            let secret = with_key(client.put(url), &first).json(&json!({"value": "canary-7b1f"})).send().await?;
            Outcome::Ok(secret.error_for_status().map(drop)?)
        })?;
        for guest in guests {
            let component = guest.source.component()?;
            let of = sender.target(target, guest.tenant);
            let (function, name) = (name_of(&guest), guest.name.clone());
            let mut kept = None;
            if matches!(guest.outcome, Expected::Refused(_)) {
                kept = Some(component.into());
            } else {
                let digest = runtime.block_on(upload(client, &of, component))?;
                let digest = digest.map_err(|(status, body)| format!("{name}: {status} {body}"))?;
                let mut manifest = guest.manifest.clone();
                manifest["plugin"] = json!(digest);
                runtime.block_on(put(client, &of, &function, &manifest))?;
            }
            sender.ready.push(Ready { guest, function, component: kept });
        }
        Ok(sender)
    }

    /// How many guests.
    pub(super) fn count(&self) -> usize {
        self.ready.len()
    }

    /// The calls of these numbers, each at its time; call n is of guest n modulo their count.
    ///
    /// # Errors
    /// If the system gives no threads or sockets.
    pub(super) fn send(&self, target: &Target, calls: Range<usize>) -> Outcome<Told> {
        let http = Http::new()?;
        let (runtime, client) = http.parts();
        let (begun, first) = (Instant::now(), calls.start);
        let judged = runtime.block_on(async {
            let all = calls.map(|number| async move {
                let due = begun + Duration::from_secs_f64((number - first) as f64 / RATE);
                tokio::time::sleep_until(due.into()).await;
                let ready = self.ready.get(number % self.ready.len().max(1))?;
                // Large ones in every tenth turn.
                let turn = number / self.ready.len().max(1);
                let is_large = ready.component.as_ref().is_some_and(|component| component.len() > LARGE_BYTES);
                let judged = if is_large && !turn.is_multiple_of(10) {
                    Ok(())
                } else {
                    self.call(client, &self.target(target, ready.guest.tenant), ready).await
                };
                Some((&ready.guest, judged))
            });
            futures::future::join_all(all).await
        });
        let mut told = Told::default();
        judged.into_iter().flatten().for_each(|(guest, judged)| told.count(guest, judged));
        Ok(told)
    }

    async fn call(&self, client: &reqwest::Client, target: &Target, ready: &Ready) -> Result<(), String> {
        let Ready { guest, function, component } = ready;
        let failed = |error: reqwest::Error| format!("{}: {error:?}", guest.name);
        let path = format!("{}/v1/functions/{function}/invoke", target.url);
        let request = match (&guest.act, component) {
            (_, Some(component)) => {
                with_key(client.post(format!("{}/v1/plugins", target.url)), target).body(component.clone())
            }
            (Act::Invoke(body) | Act::Leave(body, _), None) => with_key(client.post(path), target).json(body),
            (Act::Upload, None) => return Err(format!("{}: nothing is to be uploaded", guest.name)),
        };
        let answer = async {
            let answer = request.send().await.map_err(failed)?;
            let status = answer.status().as_u16();
            Ok::<_, String>((status, answer.text().await.map_err(failed)?))
        };
        let (status, body) = match &guest.act {
            Act::Leave(_, after_ms) => {
                let time = Duration::from_millis((*after_ms).max(LEAVE_MIN_MS));
                // Whether it answered before is chance.
                let _answered = tokio::time::timeout(time, answer).await;
                return Ok(());
            }
            _ => answer.await?,
        };
        let body = serde_json::from_str(&body).unwrap_or_default();
        guest.judge(Seen { status, body: &body })
    }

    fn target(&self, target: &Target, tenant: Tenant) -> Target {
        let [first, second] = &self.keys;
        let key = if tenant == Tenant::First { first } else { second };
        Target { key: Some(key.clone()), ..target.clone() }
    }
}

/// Names of functions have letters, digits and dashes.
fn name_of(guest: &Guest) -> String {
    guest.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}
