//! `tenon kv list`, `get`, `put` and `delete`. Not here: what a plugin may do with a bucket, which its manifest says.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Printer, items, read, table, text};
use super::remote::{Connection, Remote, broken, segment};
use crate::error::Error;

#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// List the tenant's buckets, or a bucket's keys
    List {
        /// The bucket whose keys are listed; all buckets without it
        bucket: Option<String>,
        /// The function whose own bucket it is
        #[arg(long, value_name = "NAME")]
        function: Option<String>,
        /// Only keys that come after this one
        #[arg(long, value_name = "KEY")]
        after: Option<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Print a key's value as it is
    Get {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Give a key a value, in place of what it has
    Put {
        #[command(flatten)]
        key: KeyArgs,
        /// File that holds the value; `-` is standard input
        file: PathBuf,
        /// Only if the key has this version, as `get --json` says it; `absent`: only if it has no value
        #[arg(long, value_name = "VERSION")]
        expect: Option<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove a key
    Delete {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Which key.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The bucket
    bucket: String,
    /// The key
    #[arg(value_name = "KEY")]
    entry: String,
    /// The function whose own bucket it is
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
}

impl KeyArgs {
    fn path(&self) -> String {
        let function = self.function.as_deref().map(|name| format!("?function={}", segment(name)));
        format!("/v1/kv/{}/{}{}", segment(&self.bucket), segment(&self.entry), function.unwrap_or_default())
    }
}

/// Lists, reads, writes, removes.
pub(crate) async fn run(command: KvCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        KvCommand::List { bucket: None, connection, .. } => {
            let list = Remote::new(&connection)?.get("/v1/kv").await?;
            printer.result(&list, |list| {
                let row = |one: &Value| {
                    let cells = [text(one, "bucket"), text(one, "function")].map(str::to_owned);
                    let counts = [format!("{} keys", one["keys"]), format!("{} bytes", one["bytes"])];
                    cells.into_iter().chain(counts).collect()
                };
                table(&items(list, "data").map(row).collect::<Vec<_>>())
            })
        }
        KvCommand::List { bucket: Some(bucket), function, after, connection } => {
            let mut path = format!("/v1/kv/{}?limit=1000", segment(&bucket));
            for (name, value) in [("function", function), ("after", after)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", segment(&value)));
                }
            }
            let page = Remote::new(&connection)?.get(&path).await?;
            printer.result(&page, |page| {
                let keys = items(page, "keys").filter_map(Value::as_str).map(str::to_owned);
                let more = page["has_more"].as_bool() == Some(true);
                keys.chain(more.then(|| "… (more: --after KEY)".to_owned())).collect::<Vec<_>>().join("\n")
            })
        }
        KvCommand::Get { key, connection } => get(&key, &connection, printer).await,
        KvCommand::Put { key, file, expect, connection } => {
            let remote = Remote::new(&connection)?;
            let call = remote.call(Method::PUT, &key.path()).header(CONTENT_TYPE, "application/octet-stream");
            let call = match expect.as_deref() {
                None => call,
                Some("absent") => call.header(IF_NONE_MATCH, "*"),
                Some(version) => call.header(IF_MATCH, format!("\"{version}\"")),
            };
            let answer = remote.send(call.body(read(&file)?)).await?;
            let version = version(&answer);
            printer
                .result(&json!({"key": key.entry, "kept": true, "version": version}), |_| format!("{} kept", key.entry))
        }
        KvCommand::Delete { key, connection } => {
            let remote = Remote::new(&connection)?;
            remote.send(remote.call(Method::DELETE, &key.path())).await?;
            printer.result(&json!({"key": key.entry, "removed": true}), |_| format!("{} removed", key.entry))
        }
    }
}

async fn get(key: &KeyArgs, connection: &Connection, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(connection)?;
    let answer = remote.send(remote.call(Method::GET, &key.path())).await?;
    let version = version(&answer);
    let value = answer.bytes().await.map_err(broken)?;
    if printer.json {
        let value = match std::str::from_utf8(&value) {
            Ok(text) => json!({"key": key.entry, "version": version, "value": text}),
            Err(_) => json!({"key": key.entry, "version": version, "value_base64": STANDARD.encode(&value)}),
        };
        return printer.result(&value, |_| String::new());
    }
    let mut output = std::io::stdout().lock();
    let written = output.write_all(&value).and_then(|()| {
        // A prompt would stand behind the value.
        if output.is_terminal() && !value.ends_with(b"\n") { output.write_all(b"\n") } else { Ok(()) }
    });
    Ok(written.and_then(|()| output.flush()).map_err(Error::io("cannot write the value"))?)
}

fn version(answer: &reqwest::Response) -> Option<String> {
    Some(answer.headers().get(ETAG)?.to_str().ok()?.trim_matches('"').to_owned())
}
