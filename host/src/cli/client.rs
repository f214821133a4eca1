//! `tenon deploy` and `tenon invoke`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use futures::StreamExt as _;
use reqwest::Method;
use reqwest::header::CONTENT_LENGTH;
use reqwest::multipart::{Form, Part};
use serde_json::{Map, Value, json};

use super::failure::{Failure, Refusal};
use super::output::{Printer, cell, put, read, read_text, text};
use super::registry::{RegistryArgs, reference, signatures};
use super::remote::{Connection, Remote, broken, segment, upload};
use crate::error::Error;
use crate::oci::SIGNATURES_MAX;

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Name of the function
    name: String,
    /// The component: a .wasm file, or oci://REGISTRY/REPOSITORY:TAG, which is pulled first
    #[arg(long, value_name = "FILE|oci://…")]
    plugin: String,
    /// A signature of the component, a Sigstore bundle as `cosign sign-blob --bundle` writes it; may be repeated. What is pulled
    /// brings its own
    #[arg(long = "signature", value_name = "FILE")]
    signatures: Vec<PathBuf>,
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Make the new version live at once
    #[arg(long)]
    promote: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    connection: Connection,
}

/// What a version has beside its plugin.
#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    /// The rest of the manifest, JSON without `plugin`: grants, limits and the like; the other options add to it
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// An adapter that the function may use: alias or digest; may be repeated
    #[arg(long = "adapter", value_name = "NAME")]
    adapters: Vec<String>,
    /// A function that the plugin may hand requests over to; may be repeated
    #[arg(long = "function", value_name = "NAME")]
    functions: Vec<String>,
    /// Configuration for the plugin, NAME=VALUE; may be repeated
    #[arg(long = "config", value_name = "NAME=VALUE")]
    config: Vec<String>,
    /// A prompt template, NAME=FILE; may be repeated
    #[arg(long = "template", value_name = "NAME=FILE")]
    templates: Vec<String>,
    /// Record so many requests in a hundred, for `tenon replay`; all without a number
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, default_missing_value = "100", require_equals = true)]
    record: Option<f64>,
}

/// Uploads the plugin and puts a version of the function.
pub(crate) async fn deploy(arguments: DeployArgs, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(&arguments.connection)?;
    let (component, signatures) = component(&arguments).await?;
    let DeployArgs { name, manifest, promote, .. } = arguments;
    let put = put_version(&remote, &name, (component, signatures), manifest.read()?, promote).await?;
    printer.result(&put, |put| {
        let (version, live, plugin) = (cell(put, "version"), cell(put, "live"), text(put, "plugin"));
        format!("{} version {version} (live: {live}), plugin {plugin}", text(put, "name"))
    })
}

/// Uploads a component with its signatures and puts a version with it; what the host answered, with the plugin's digest.
pub(crate) async fn put_version(
    remote: &Remote,
    name: &str,
    (component, signatures): (Vec<u8>, Vec<Bytes>),
    mut manifest: Map<String, Value>,
    promote: bool,
) -> Result<Value, Failure> {
    let plugin = send_plugin(remote, component, signatures).await?;
    let plugin = text(&plugin, "digest");
    manifest.insert("plugin".to_owned(), plugin.into());
    let path = format!("/v1/functions/{}", segment(name));
    let mut put = remote.json(remote.call(Method::PUT, &path).json(&manifest)).await?;
    let version = put.get("version").cloned().unwrap_or_default();
    if promote && put.get("live") != Some(&version) {
        let call = remote.call(Method::POST, &format!("{path}/promote")).json(&json!({"version": version}));
        let live = remote.json(call).await?.get("live").cloned().unwrap_or_default();
        put.as_object_mut().into_iter().for_each(|put| drop(put.insert("live".into(), live.clone())));
    }
    put.as_object_mut().into_iter().for_each(|put| drop(put.insert("plugin".into(), plugin.into())));
    Ok(put)
}

impl ManifestArgs {
    /// The manifest without its plugin.
    pub(crate) fn read(&self) -> Result<Map<String, Value>, Failure> {
        self.read_or(None)
    }

    /// The same of a project: the `manifest.json` in its folder, if it has one and no other is named.
    pub(crate) fn read_of(&self, project: &Path) -> Result<Map<String, Value>, Failure> {
        self.read_or(Some(project.join("manifest.json")).filter(|own| own.is_file()).as_deref())
    }

    fn read_or(&self, otherwise: Option<&Path>) -> Result<Map<String, Value>, Failure> {
        let mut manifest = written(self.manifest.as_deref().or(otherwise))?;
        for (member, names) in [("adapters", &self.adapters), ("functions", &self.functions)] {
            for name in names {
                if let Some(list) = manifest.entry(member).or_insert_with(|| json!([])).as_array_mut() {
                    list.push(name.as_str().into());
                }
            }
        }
        for pair in &self.templates {
            let (name, file) = name_value(pair, "template")?;
            set(&mut manifest, "templates", name, read_text(file.as_ref())?);
        }
        for pair in &self.config {
            let (name, value) = name_value(pair, "config")?;
            set(&mut manifest, "config", name, value.to_owned());
        }
        if let Some(percent) = self.record
            && let Some(record) = manifest.entry("record").or_insert_with(|| json!({})).as_object_mut()
        {
            record.insert("percent".to_owned(), percent.into());
        }
        Ok(manifest)
    }
}

/// The component with its signatures, from files or from a registry.
async fn component(arguments: &DeployArgs) -> Result<(Vec<u8>, Vec<Bytes>), Failure> {
    let mut signatures = signatures(&arguments.signatures)?;
    if !arguments.plugin.starts_with("oci://") {
        return Ok((read(Path::new(&arguments.plugin))?, signatures));
    }
    let pulled = arguments.registry.pull(&reference(&arguments.plugin)?).await?;
    // Those that were named come first: the host takes so many.
    signatures.extend(pulled.signatures);
    signatures.truncate(SIGNATURES_MAX);
    Ok((pulled.component.into(), signatures))
}

async fn send_plugin(remote: &Remote, component: Vec<u8>, signatures: Vec<Bytes>) -> Result<Value, Failure> {
    let call = remote.call(Method::POST, "/v1/plugins");
    let bytes = component.len();
    let body = upload(component, "uploading the plugin");
    if signatures.is_empty() {
        return remote.json(call.header(CONTENT_LENGTH, bytes).body(body)).await;
    }
    let form = Form::new().part("plugin", Part::stream_with_length(body, bytes as u64));
    let signed = |form: Form, bundle: Bytes| form.part("signature", Part::stream(bundle));
    remote.json(call.multipart(signatures.into_iter().fold(form, signed))).await
}

/// The manifest as it was written in a file.
fn written(file: Option<&Path>) -> Result<Map<String, Value>, Failure> {
    let Some(file) = file else { return Ok(Map::new()) };
    let text = read_text(file)?;
    let bad = |reason: String| Error::invalid("invalid_request", "manifest", format!("{}: {reason}", file.display()));
    Ok(serde_json::from_str(&text).map_err(|error| bad(format!("not a JSON object: {error}")))?)
}

fn set(manifest: &mut Map<String, Value>, member: &str, name: &str, value: String) {
    // What is no object there is the host's to refuse.
    if let Some(map) = manifest.entry(member).or_insert_with(|| json!({})).as_object_mut() {
        map.insert(name.to_owned(), value.into());
    }
}

fn name_value<'a>(pair: &'a str, option: &str) -> Result<(&'a str, &'a str), Error> {
    let message = || format!("--{option} takes NAME=VALUE, not `{pair}`");
    pair.split_once('=').ok_or_else(|| Error::invalid("invalid_request", option, message()))
}

#[derive(Debug, Args)]
pub(crate) struct InvokeArgs {
    /// Name of the function
    name: String,
    /// The input: JSON, or text if it is no JSON
    input: String,
    /// At most this many tokens
    #[arg(long)]
    max_tokens: Option<u32>,
    #[command(flatten)]
    connection: Connection,
}

/// Invokes a function and prints what comes; as JSON, the whole answer at its end.
pub(crate) async fn invoke(arguments: InvokeArgs, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(&arguments.connection)?;
    let input: Value = serde_json::from_str(&arguments.input).unwrap_or_else(|_| arguments.input.clone().into());
    let mut body = json!({"input": input, "stream": !printer.json});
    if let (Some(max_tokens), Some(object)) = (arguments.max_tokens, body.as_object_mut()) {
        object.insert("max_tokens".into(), max_tokens.into());
    }
    let path = format!("/v1/functions/{}/invoke", segment(&arguments.name));
    let call = remote.call(Method::POST, &path).json(&body);
    if printer.json {
        printer.result(&remote.json(call).await?, |_| String::new())?;
        return Ok(());
    }
    let mut stream = remote.send(call).await?.bytes_stream();
    let (mut pending, mut is_whole) = (Vec::new(), false);
    while let Some(bytes) = stream.next().await {
        pending.extend_from_slice(&bytes.map_err(broken)?);
        while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = pending.drain(..end + 2).collect();
            is_whole |= event_line(String::from_utf8_lossy(&event).trim())?;
        }
    }
    if is_whole { Ok(()) } else { Err(Failure::Unreachable("the answer was cut off before its end".into())) }
}

/// Prints what one event says; whether it is the end.
fn event_line(event: &str) -> Result<bool, Failure> {
    let Some(data) = event.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { return Ok(false) };
    let value: Value = serde_json::from_str(data)
        .map_err(|error| Failure::Unreachable(format!("an event of the answer is broken: {error}")))?;
    if value.get("error").is_some() {
        put("\n")?;
        return Err(Failure::Remote(Box::new(Refusal::read(None, &value))));
    }
    put(text(&value, "delta"))?;
    let is_end = text(&value, "object") == "function.end";
    if is_end {
        put("\n")?;
        eprintln!("{}: receipt {}", text(&value, "finish_reason"), text(&value, "receipt"));
    }
    Ok(is_end)
}
