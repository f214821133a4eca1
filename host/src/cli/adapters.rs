//! `tenon adapter add`, `list`, `inspect`, `derive`, `share`, `unshare`, `shared`, `pin`, `unpin`, `revoke` and `remove`, and `tenon
//! revoke`. Not here: what the host does for them.

mod derive;
mod share;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use model::{AdapterLimits, Base, canonical_adapter};
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Printer, cell, items, read, table, text};
use super::remote::{Connection, Remote, segment, upload};
use crate::adapters::{CONFIG, SIGNATURE, WEIGHTS};
use crate::error::Error;
use crate::http::AdapterReport;

/// The files of an adapter in PEFT's form.
const FILES: [&str; 2] = [CONFIG, WEIGHTS];

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Add the PEFT folder under an alias, or have the host fetch a URL
    Add {
        /// Movable name
        alias: String,
        /// A folder here with adapter_config.json, adapter_model.safetensors and perhaps model.sig, or a URL that the host
        /// fetches: file://, https://, hf://organisation/repository@revision, s3://bucket/prefix, ipfs://CID; or what another
        /// tenant shares: tenon://owner/alias
        source: String,
        /// The secret that opens a private source
        #[arg(long, value_name = "NAME")]
        secret: Option<String>,
        /// What it is licensed under, an SPDX identifier such as Apache-2.0
        #[arg(long, value_name = "SPDX")]
        license: Option<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the tenant's adapters
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Show what the host knows of an adapter, or check a folder here against a base
    Inspect {
        /// Alias or digest
        #[arg(required_unless_present = "file")]
        name: Option<String>,
        /// A PEFT folder to check without a host
        #[arg(long, value_name = "DIR", requires = "base", conflicts_with = "name")]
        file: Option<PathBuf>,
        /// The base that the folder is for: a GGUF file, or a folder of safetensors files
        #[arg(long, value_name = "FILE", requires = "file")]
        base: Option<PathBuf>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Derive an adapter from others under an alias
    Derive(Box<derive::DeriveArgs>),
    /// Let other tenants read what an alias names now
    Share(share::ShareArgs),
    /// Let nobody else read what an alias names any more
    Unshare {
        /// The alias
        alias: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// List what other tenants share
    Shared {
        #[command(flatten)]
        connection: Connection,
    },
    /// Revoke an adapter by its digest, for all tenants and for good
    Revoke(RevokeArgs),
    /// Load an adapter and keep it in memory
    Pin {
        /// The alias
        alias: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Let an adapter give way to others again
    Unpin {
        /// The alias
        alias: String,
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

/// What is revoked, and why.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// BLAKE3 of an adapter's canonical form, or of a plugin
    digest: String,
    /// Told to whoever asks for it
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    connection: Connection,
}

/// Revokes an adapter or a plugin.
pub(crate) async fn revoke(args: RevokeArgs, printer: Printer) -> Result<(), Failure> {
    let RevokeArgs { digest, reason, connection } = args;
    let remote = Remote::new(&connection)?;
    let call = remote.call(Method::PUT, &format!("/v1/revocations/{}", segment(&digest)));
    let revoked = remote.json(call.json(&json!({"reason": reason}))).await?;
    printer.result(&revoked, |revoked| format!("{} revoked", text(revoked, "digest")))?;
    Ok(())
}

/// Adds, lists, inspects, derives, shares, pins, revokes, removes.
pub(crate) async fn run(command: AdapterCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        AdapterCommand::Add { alias, source, secret, license, connection } => {
            let remote = Remote::new(&connection)?;
            let added = add(&remote, &alias, &source, secret.as_deref(), license.as_deref()).await?;
            printer
                .result(&added, |added| format!("{alias} {} rank {}", text(added, "digest"), cell(added, "rank")))?;
        }
        AdapterCommand::List { connection } => {
            let list = Remote::new(&connection)?.get("/v1/adapters").await?;
            printer.result(&list, |list| {
                let row = |one| {
                    vec![text(one, "alias").to_owned(), format!("rank {}", cell(one, "rank")), cell(one, "digest")]
                };
                table(&items(list, "data").map(row).collect::<Vec<_>>())
            })?;
        }
        AdapterCommand::Inspect { name, file, base, connection } => {
            let found = match (file, base) {
                (Some(folder), Some(base)) => inspect_folder(&folder, &base)?,
                _ => {
                    let path = format!("/v1/adapters/{}", segment(name.as_deref().unwrap_or_default()));
                    Remote::new(&connection)?.get(&path).await?
                }
            };
            printer.result(&found, |found| table(&fields(found)))?;
        }
        AdapterCommand::Derive(arguments) => derive::run(*arguments, printer).await?,
        AdapterCommand::Share(arguments) => share::share(arguments, printer).await?,
        AdapterCommand::Unshare { alias, connection } => share::unshare(&alias, &connection, printer).await?,
        AdapterCommand::Shared { connection } => share::list(&connection, printer).await?,
        AdapterCommand::Revoke(args) => revoke(args, printer).await?,
        AdapterCommand::Pin { alias, connection } => pin(Method::PUT, &alias, &connection, printer).await?,
        AdapterCommand::Unpin { alias, connection } => pin(Method::DELETE, &alias, &connection, printer).await?,
        AdapterCommand::Remove { alias, connection } => {
            let remote = Remote::new(&connection)?;
            remote.send(remote.call(Method::DELETE, &format!("/v1/adapters/{}", segment(&alias)))).await?;
            printer.result(&json!({"alias": alias, "removed": true}), |_| format!("{alias} removed"))?;
        }
    }
    Ok(())
}

async fn pin(method: Method, alias: &str, connection: &Connection, printer: Printer) -> Result<(), Failure> {
    let (remote, pinned) = (Remote::new(connection)?, method == Method::PUT);
    remote.send(remote.call(method, &format!("/v1/adapters/{}/pin", segment(alias)))).await?;
    let done = if pinned { "pinned" } else { "unpinned" };
    printer.result(&json!({"alias": alias, "pinned": pinned}), |_| format!("{alias} {done}"))?;
    Ok(())
}

async fn add(
    remote: &Remote,
    alias: &str,
    source: &str,
    secret: Option<&str>,
    license: Option<&str>,
) -> Result<Value, Failure> {
    let call = remote.call(Method::PUT, &format!("/v1/adapters/{}", segment(alias)));
    if source.contains("://") {
        let said = [("source", Some(source)), ("secret", secret), ("license", license)];
        let said = said.into_iter().filter_map(|(name, value)| Some((name, value?)));
        return remote.json(call.json(&said.collect::<BTreeMap<_, _>>())).await;
    }
    if secret.is_some() {
        return Err(Error::invalid("invalid_request", "secret", "a folder here needs no secret; leave it out").into());
    }
    let mut form = Form::new();
    if let Some(license) = license {
        form = form.text("license", license.to_owned());
    }
    let folder = PathBuf::from(source);
    let signature = Some(SIGNATURE).filter(|name| folder.join(name).symlink_metadata().is_ok());
    for name in FILES.into_iter().chain(signature) {
        let bytes = read(&folder.join(name))?;
        let length = bytes.len() as u64;
        form = form.part(name, Part::stream_with_length(upload(bytes, &format!("uploading {name}")), length));
    }
    remote.json(call.multipart(form)).await
}

/// What the host would say of a folder, from the same code.
fn inspect_folder(folder: &Path, base: &Path) -> Result<Value, Failure> {
    let base = Base::open(base).map_err(Error::from)?;
    let [config, weights] = FILES;
    let (config, weights) = (read(&folder.join(config))?, read(&folder.join(weights))?);
    let limits = AdapterLimits::default();
    let refused = |error: model::AdapterRejection| Error::invalid("adapter_refused", "file", error.to_string());
    let canonical = canonical_adapter(&config, &weights, &*base, &limits).map_err(refused)?;
    let modules: Vec<&str> = canonical.modules.iter().map(|module| module.name()).collect();
    Ok(json!({
        "digest": canonical.digest.to_string(), "rank": canonical.rank, "modules": modules,
        "bytes": canonical.bytes.len(), "base": base.digest().to_string(),
        "report": serde_json::to_value(AdapterReport::from(&canonical.report)).unwrap_or_default(),
    }))
}

/// Every field in a row of its own; what is nested below a name with dots, lists of objects item by item.
fn fields(value: &Value) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    collect("", value, &mut rows);
    rows
}

fn collect(name: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    let below = |inner: &str| if name.is_empty() { inner.to_owned() } else { format!("{name}.{inner}") };
    match value {
        Value::Object(object) => object.iter().for_each(|(inner, value)| collect(&below(inner), value, rows)),
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for item in list {
                rows.push(vec![name.to_owned(), on_one_line(item)]);
            }
        }
        Value::Array(list) => {
            rows.push(vec![name.to_owned(), list.iter().map(on_one_line).collect::<Vec<_>>().join(", ")]);
        }
        value => rows.push(vec![name.to_owned(), on_one_line(value)]),
    }
}

fn on_one_line(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(object) => {
            object.iter().map(|(name, value)| format!("{name} {}", on_one_line(value))).collect::<Vec<_>>().join("  ")
        }
        Value::Array(list) => match ranges(list) {
            Some(ranges) => ranges,
            None => list.iter().map(on_one_line).collect::<Vec<_>>().join(", "),
        },
        other => other.to_string(),
    }
}

/// Numbers in order as `0-3,7`; nothing for a list of anything else.
fn ranges(list: &[Value]) -> Option<String> {
    let numbers: Vec<u64> = list.iter().map(Value::as_u64).collect::<Option<_>>()?;
    let runs = numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next));
    let text = |run: &[u64]| match run {
        [first, .., last] => format!("{first}-{last}"),
        single => single.iter().map(u64::to_string).collect(),
    };
    Some(runs.map(text).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_shown_whole() {
        let report = json!({
            "alias": "a", "rank": 8, "modules": ["q_proj", "v_proj"],
            "report": {"kind": "alora", "invocation_tokens": [1, 520], "warnings": [], "modules": [
                {"module": "q_proj", "layers": [0, 1, 2, 5], "rank": 8, "scale": 2.0}]},
        });
        let rows = fields(&report);
        let expected = [
            ["alias", "a"],
            ["rank", "8"],
            ["modules", "q_proj, v_proj"],
            ["report.kind", "alora"],
            ["report.invocation_tokens", "1, 520"],
            ["report.warnings", ""],
            ["report.modules", "module q_proj  layers 0-2,5  rank 8  scale 2.0"],
        ];
        assert_eq!(rows, expected.map(|row| row.map(str::to_owned).to_vec()));
    }
}
