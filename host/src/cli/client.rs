//! `tenon deploy`, `invoke` and `adapter`: a user's commands against a running host.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use futures::StreamExt as _;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Map, Value, json};

use super::Connection;
use super::output::{Remote, broken, print, read, text};
use crate::error::Error;

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Name of the function
    name: String,
    /// The component, a .wasm file
    #[arg(long, value_name = "FILE")]
    plugin: PathBuf,
    /// An adapter that the function may use: alias or digest; may be repeated
    #[arg(long = "adapter", value_name = "NAME")]
    adapters: Vec<String>,
    /// Configuration for the plugin, NAME=VALUE; may be repeated
    #[arg(long = "config", value_name = "NAME=VALUE")]
    config: Vec<String>,
    /// A prompt template, NAME=FILE; may be repeated
    #[arg(long = "template", value_name = "NAME=FILE")]
    templates: Vec<String>,
    /// Make the new version live at once
    #[arg(long)]
    promote: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Uploads the plugin and puts a version of the function.
pub(crate) async fn deploy(arguments: DeployArgs) -> Result<(), Error> {
    let remote = Remote::new(&arguments.connection)?;
    let upload = remote.call(Method::POST, "/v1/plugins").body(read(&arguments.plugin)?);
    let digest = text(&remote.json(upload).await?, "digest").to_owned();
    let mut templates = Map::new();
    for pair in &arguments.templates {
        let (name, file) = name_value(pair, "template")?;
        templates.insert(name.to_owned(), super::output::read_text(file.as_ref())?.into());
    }
    let mut config = Map::new();
    for pair in &arguments.config {
        let (name, value) = name_value(pair, "config")?;
        config.insert(name.to_owned(), value.into());
    }
    let manifest = json!({"plugin": digest, "adapters": arguments.adapters, "config": config, "templates": templates});
    let path = format!("/v1/functions/{}", arguments.name);
    let put = remote.json(remote.call(Method::PUT, &path).json(&manifest)).await?;
    let version = put.get("version").cloned().unwrap_or_default();
    let mut live = put.get("live").cloned().unwrap_or_default();
    if arguments.promote && live != version {
        let call = remote.call(Method::POST, &format!("{path}/promote")).json(&json!({"version": version}));
        live = remote.json(call).await?.get("live").cloned().unwrap_or_default();
    }
    println!("{} version {version} (live: {live}), plugin {digest}", arguments.name);
    Ok(())
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
    /// Wait for the whole answer and print it as JSON
    #[arg(long)]
    json: bool,
    /// At most this many tokens
    #[arg(long)]
    max_tokens: Option<u32>,
    #[command(flatten)]
    connection: Connection,
}

/// Invokes a function and prints what comes.
pub(crate) async fn invoke(arguments: InvokeArgs) -> Result<(), Error> {
    let remote = Remote::new(&arguments.connection)?;
    let input: Value = serde_json::from_str(&arguments.input).unwrap_or_else(|_| arguments.input.clone().into());
    let mut body = json!({"input": input, "stream": !arguments.json});
    if let (Some(max_tokens), Some(object)) = (arguments.max_tokens, body.as_object_mut()) {
        object.insert("max_tokens".into(), max_tokens.into());
    }
    let call = remote.call(Method::POST, &format!("/v1/functions/{}/invoke", arguments.name)).json(&body);
    if arguments.json {
        print(&remote.json(call).await?);
        return Ok(());
    }
    let mut stream = remote.send(call).await?.bytes_stream();
    let mut pending = Vec::new();
    while let Some(bytes) = stream.next().await {
        pending.extend_from_slice(&bytes.map_err(broken)?);
        while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = pending.drain(..end + 2).collect();
            event_line(String::from_utf8_lossy(&event).trim())?;
        }
    }
    Ok(())
}

fn event_line(event: &str) -> Result<(), Error> {
    let Some(data) = event.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { return Ok(()) };
    let value: Value = serde_json::from_str(data)
        .map_err(|error| Error::invalid("remote", "", format!("an event is broken: {error}")))?;
    if let Some(error) = value.get("error") {
        println!();
        let message = format!("the host answered {}: {}", text(error, "code"), text(error, "message"));
        return Err(Error::invalid("remote", "", message));
    }
    print!("{}", text(&value, "delta"));
    if text(&value, "object") == "function.end" {
        println!();
        eprintln!("{}: receipt {}", text(&value, "finish_reason"), text(&value, "receipt"));
    }
    std::io::stdout().flush().map_err(Error::io("cannot write"))
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Add the PEFT folder under an alias, or have the host fetch a URL
    Add {
        /// Movable name
        alias: String,
        /// A folder with adapter_config.json and adapter_model.safetensors, or a file:// URL on the host
        source: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the tenant's adapters
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove an alias
    Remove {
        /// The alias
        alias: String,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Adds, lists, removes.
pub(crate) async fn adapter(command: AdapterCommand) -> Result<(), Error> {
    match command {
        AdapterCommand::Add { alias, source, connection } => {
            let remote = Remote::new(&connection)?;
            let call = remote.call(Method::PUT, &format!("/v1/adapters/{alias}"));
            let call = if source.contains("://") {
                call.json(&json!({"source": source}))
            } else {
                let file = |name: &str| read(&PathBuf::from(&source).join(name)).map(Part::bytes);
                let mut form = Form::new();
                for name in ["adapter_config.json", "adapter_model.safetensors"] {
                    form = form.part(name, file(name)?);
                }
                call.multipart(form)
            };
            let added = remote.json(call).await?;
            println!("{alias} {} rank {}", text(&added, "digest"), added.get("rank").cloned().unwrap_or_default());
        }
        AdapterCommand::List { json, connection } => {
            let remote = Remote::new(&connection)?;
            let list = remote.json(remote.call(Method::GET, "/v1/adapters")).await?;
            if json {
                print(&list);
                return Ok(());
            }
            for one in list.get("data").and_then(Value::as_array).into_iter().flatten() {
                let rank = one.get("rank").cloned().unwrap_or_default();
                println!("{:<32} rank {rank:<4} {}", text(one, "alias"), text(one, "digest"));
            }
        }
        AdapterCommand::Remove { alias, connection } => {
            let remote = Remote::new(&connection)?;
            remote.send(remote.call(Method::DELETE, &format!("/v1/adapters/{alias}"))).await?;
            println!("{alias} removed");
        }
    }
    Ok(())
}
