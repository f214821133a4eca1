//! A user's HTTP calls, with nothing that a user could not do. Not here: what is asked.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::blocking::multipart::{Form, Part};
use reqwest::blocking::{RequestBuilder, Response};
use serde_json::{Value, json};

use crate::shell::Outcome;

/// A caller with a key.
pub(crate) struct Client {
    http: reqwest::blocking::Client,
    url: String,
    key: String,
}

/// A streamed answer, read to its end.
pub(crate) struct Streamed {
    pub(crate) receipt: String,
    pub(crate) text: String,
    /// From the request to the first text.
    pub(crate) first: Duration,
    /// From the first text to the last.
    pub(crate) rest: Duration,
    /// The closing event.
    pub(crate) end: Value,
}

impl Client {
    /// A caller of the server at this address.
    ///
    /// # Errors
    /// If there is no HTTP client to be had.
    pub(crate) fn new(url: &str, key: &str) -> Outcome<Self> {
        let http = super::http()?.timeout(Duration::from_secs(300)).build()?;
        Ok(Self { http, url: url.to_owned(), key: key.to_owned() })
    }

    /// Uploads a PEFT folder under an alias; what the host says of it.
    ///
    /// # Errors
    /// If a file is missing or the host refuses it.
    pub(crate) fn put_adapter(&self, alias: &str, folder: &Path) -> Outcome<Value> {
        let mut form = Form::new();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            let path = folder.join(name);
            let bytes = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            form = form.part(name, Part::bytes(bytes).file_name(name));
        }
        self.json(self.http.put(self.at(&format!("/v1/adapters/{alias}"))).multipart(form))
    }

    /// Uploads a component; its digest.
    ///
    /// # Errors
    /// If the host refuses it.
    pub(crate) fn post_plugin(&self, component: Vec<u8>) -> Outcome<String> {
        let answer = self.json(self.http.post(self.at("/v1/plugins")).body(component))?;
        Ok(answer.get("digest").and_then(Value::as_str).ok_or("the upload has no digest")?.to_owned())
    }

    /// Deploys a version of a function and makes it live; its number.
    ///
    /// # Errors
    /// If the host refuses it.
    pub(crate) fn deploy(&self, function: &str, manifest: &Value) -> Outcome<u64> {
        let path = format!("/v1/functions/{function}");
        let put = self.json(self.http.put(self.at(&path)).json(manifest))?;
        let version = put.get("version").and_then(Value::as_u64).ok_or("the deployment has no version")?;
        if put.get("live").and_then(Value::as_u64) != Some(version) {
            self.json(self.http.post(self.at(&format!("{path}/promote"))).json(&json!({"version": version})))?;
        }
        Ok(version)
    }

    /// A receipt by its id.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn receipt(&self, id: &str) -> Outcome<Value> {
        self.json(self.http.get(self.at(&format!("/v1/receipts/{id}"))))
    }

    /// Invokes a function and gives each piece of text to `show` as it comes.
    ///
    /// # Errors
    /// If the host refuses, or the stream breaks or holds an error.
    pub(crate) fn invoke(&self, function: &str, input: &Value, mut show: impl FnMut(&str)) -> Outcome<Streamed> {
        let call = self.http.post(self.at(&format!("/v1/functions/{function}/invoke")));
        let started = Instant::now();
        let response = accepted(call.bearer_auth(&self.key).json(&json!({"input": input, "stream": true})))?;
        let header = response.headers().get("x-tenon-receipt").and_then(|value| value.to_str().ok());
        let receipt = header.ok_or("the answer has no x-tenon-receipt")?.to_owned();
        let (mut text, mut first, mut last, mut end) = (String::new(), None, started, Value::Null);
        for line in BufReader::new(response).lines() {
            let line = line?;
            let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
            let event: Value = serde_json::from_str(data)?;
            if let Some(error) = event.get("error") {
                return Err(format!("the stream ended with an error: {error}").into());
            }
            if let Some(delta) = event.get("delta").and_then(Value::as_str) {
                last = Instant::now();
                first.get_or_insert(last);
                text.push_str(delta);
                show(delta);
            }
            if event.get("object").and_then(Value::as_str) == Some("function.end") {
                end = event;
            }
        }
        let first = first.ok_or("the stream had no text")?;
        Ok(Streamed { receipt, text, first: first - started, rest: last - first, end })
    }

    fn json(&self, request: RequestBuilder) -> Outcome<Value> {
        Ok(accepted(request.bearer_auth(&self.key))?.json()?)
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

/// The response, if its status says success; the host's own message if not.
fn accepted(request: RequestBuilder) -> Outcome<Response> {
    let response = request.send()?;
    let (status, url) = (response.status(), response.url().clone());
    if status.is_success() {
        return Ok(response);
    }
    Err(format!("{} answered {status}: {}", url.path(), response.text()?).into())
}
