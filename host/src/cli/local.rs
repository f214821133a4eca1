//! `tenon tenant` and `tenon key`: over HTTP to a running host, or on the data directory of a stopped one (`--data`),
//! which is how the first key is made.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use types::TenantId;

use super::failure::Failure;
use super::output::{Printer, cell, items, printable, read_text, text};
use super::remote::{Connection, Remote, segment};
use crate::error::Error;
use crate::quotas::Quota;
use crate::store::EmbeddedStore;
use crate::tenants::{KeyId, KeyInfo, Right, Rights, Tenants};

#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The data directory of a host that is not running
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Create a tenant
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Show who may sign a tenant's adapters and plugins, or set it
    Signers {
        /// The tenant
        name: String,
        /// `required`, `optional` or `none`: sets the policy, and the keys with it
        #[arg(long, value_parser = ["required", "optional", "none"])]
        policy: Option<String>,
        /// The same for plugins; left out, that stays as it is
        #[arg(long, value_name = "POLICY", value_parser = ["required", "optional", "none"], requires = "policy")]
        plugins: Option<String>,
        /// A public key (ECDSA P-256, PEM) whose signatures hold; may be given again
        #[arg(long = "signer-key", value_name = "FILE", requires = "policy")]
        keys: Vec<PathBuf>,
        /// Set it only if this is its revision
        #[arg(long, value_name = "REVISION", requires = "policy")]
        expect: Option<u64>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show what a tenant may use and what is left of it, or set it: what is left out then has no limit
    Quota {
        /// The tenant
        name: String,
        /// Requests to functions and models in a minute
        #[arg(long, value_name = "COUNT")]
        requests_per_minute_max: Option<u32>,
        /// Tokens of prompts and answers in a minute
        #[arg(long, value_name = "TOKENS")]
        tokens_per_minute_max: Option<u32>,
        /// Bytes of all requests' bodies in a minute
        #[arg(long, value_name = "BYTES")]
        body_bytes_per_minute_max: Option<u64>,
        /// Requests to functions and models at once
        #[arg(long, value_name = "COUNT")]
        concurrent_requests_max: Option<u32>,
        /// Back to the host's quota for every tenant
        #[arg(long, conflicts_with_all = ["requests_per_minute_max", "tokens_per_minute_max",
            "body_bytes_per_minute_max", "concurrent_requests_max"])]
        default: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// List tenants and their keys (without secrets)
    List {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Create a key; its secret is printed once
    Create {
        /// The tenant it belongs to
        #[arg(long)]
        tenant: String,
        /// Comma-separated: invoke, deploy, adapters, receipts, admin
        #[arg(long, value_delimiter = ',', default_value = "invoke,deploy,adapters,receipts")]
        rights: Vec<String>,
        /// For people
        #[arg(long, default_value = "")]
        label: String,
        #[command(flatten)]
        place: Place,
    },
    /// Revoke a key, at once
    Revoke {
        /// Its id, the middle part of the key
        id: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Creates and lists tenants.
pub(crate) async fn tenant(command: TenantCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        TenantCommand::Create { name, place } => {
            let created = json!({"name": name});
            match &place.data {
                Some(data) => open(data).await?.create_tenant(&tenant_id(&name)?).await?,
                None => {
                    let remote = Remote::new(&place.connection)?;
                    remote.json(remote.call(Method::POST, "/v1/tenants").json(&created)).await?;
                }
            }
            printer.result(&created, |_| format!("tenant {name} created"))?;
        }
        TenantCommand::Signers { name, policy, plugins, keys, expect, connection } => {
            let (remote, path) = (Remote::new(&connection)?, format!("/v1/tenants/{}/signers", segment(&name)));
            let found = match policy {
                Some(policy) => {
                    let keys = keys.iter().map(|file| read_text(file)).collect::<Result<Vec<_>, _>>()?;
                    let body = json!({"policy": policy, "plugins": plugins, "keys": keys, "expect": expect});
                    remote.json(remote.call(Method::PUT, &path).json(&body)).await?
                }
                None => remote.get(&path).await?,
            };
            printer.result(&found, signers_text)?;
        }
        TenantCommand::Quota {
            name,
            requests_per_minute_max,
            tokens_per_minute_max,
            body_bytes_per_minute_max,
            concurrent_requests_max,
            default,
            connection,
        } => {
            let (remote, path) = (Remote::new(&connection)?, format!("/v1/tenants/{}/quota", segment(&name)));
            let quota = Quota {
                requests_per_minute_max,
                tokens_per_minute_max,
                body_bytes_per_minute_max,
                concurrent_requests_max,
            };
            let found = match default {
                true => remote.json(remote.call(Method::DELETE, &path)).await?,
                false if quota == Quota::default() => remote.get(&path).await?,
                false => remote.json(remote.call(Method::PUT, &path).json(&quota)).await?,
            };
            printer.result(&found, quota_text)?;
        }
        TenantCommand::List { place } => {
            let list = match &place.data {
                Some(data) => list_stored(&open(data).await?).await?,
                None => Remote::new(&place.connection)?.get("/v1/tenants").await?,
            };
            printer.result(&list, tenants_text)?;
        }
    }
    Ok(())
}

/// The same as `GET /v1/tenants` answers.
async fn list_stored(tenants: &Tenants) -> Result<Value, Error> {
    let keys = tenants.list_keys(None).await?;
    let key = |key: &KeyInfo| {
        let rights: Vec<&str> = key.rights.iter().map(Right::name).collect();
        json!({
            "id": key.id.as_str(), "label": key.label, "rights": rights, "created_unix_ms": key.created_unix_ms,
            "revoked_unix_ms": key.revoked_unix_ms,
        })
    };
    let mut data = Vec::new();
    for tenant in tenants.list_tenants().await? {
        let keys: Vec<Value> = keys.iter().filter(|key| key.tenant == tenant).map(key).collect();
        data.push(json!({"name": tenant.as_str(), "keys": keys}));
    }
    Ok(json!({"object": "list", "data": data}))
}

fn signers_text(signers: &Value) -> String {
    let (policy, revision) = (text(signers, "policy"), cell(signers, "revision"));
    let (tenant, plugins) = (text(signers, "tenant"), text(signers, "plugins"));
    let mut lines = vec![format!("{tenant} {policy} (plugins {plugins}) revision {revision}")];
    lines.extend(items(signers, "keys").map(|key| format!("  {}", text(key, "id"))));
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

fn quota_text(found: &Value) -> String {
    let whose = if found.get("own").and_then(Value::as_bool) == Some(true) { "its own" } else { "the host's" };
    let mut lines = vec![format!("{} {whose}", text(found, "tenant"))];
    lines.extend(items(found, "standing").map(|one| {
        let (what, remaining, limit) = (text(one, "what"), cell(one, "remaining"), cell(one, "limit"));
        format!("  {what} {remaining} of {limit} left")
    }));
    if lines.len() == 1 {
        lines.push("  no limit".to_owned());
    }
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

fn tenants_text(list: &Value) -> String {
    let mut lines = Vec::new();
    for tenant in items(list, "data") {
        lines.push(text(tenant, "name").to_owned());
        for key in items(tenant, "keys") {
            let state = if cell(key, "revoked_unix_ms").is_empty() { "holds" } else { "revoked" };
            let rights: Vec<&str> = items(key, "rights").filter_map(Value::as_str).collect();
            lines.push(format!("  {} {state} {} {}", text(key, "id"), rights.join(","), text(key, "label")));
        }
    }
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

/// Creates and revokes keys.
pub(crate) async fn key(command: KeyCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        KeyCommand::Create { tenant, rights, label, place } => {
            let made = match &place.data {
                Some(data) => {
                    let rights: Rights = rights.join(",").parse().map_err(|error: crate::tenants::RightsError| {
                        Error::invalid("invalid_request", "rights", error.to_string())
                    })?;
                    let key = open(data).await?.create_key(&tenant_id(&tenant)?, rights, &label).await?;
                    let names: Vec<&str> = rights.iter().map(Right::name).collect();
                    json!({"id": key.id.as_str(), "key": key.text.as_str(), "tenant": tenant, "rights": names})
                }
                None => {
                    let remote = Remote::new(&place.connection)?;
                    let body = json!({"tenant": tenant, "rights": rights, "label": label});
                    remote.json(remote.call(Method::POST, "/v1/keys").json(&body)).await?
                }
            };
            printer.result(&made, |made| text(made, "key").to_owned())?;
        }
        KeyCommand::Revoke { id, place } => {
            match &place.data {
                Some(data) => {
                    let key: KeyId = id.parse().map_err(|_| Error::NotFound(format!("key `{id}`")))?;
                    open(data).await?.revoke_key(None, &key).await?;
                }
                None => {
                    let remote = Remote::new(&place.connection)?;
                    remote.send(remote.call(Method::DELETE, &format!("/v1/keys/{}", segment(&id)))).await?;
                }
            }
            printer.result(&json!({"id": id, "revoked": true}), |_| format!("key {id} revoked"))?;
        }
    }
    Ok(())
}

async fn open(data: &Path) -> Result<Tenants, Error> {
    let store = EmbeddedStore::open(data).await?;
    Ok(Tenants::new(std::sync::Arc::new(store)))
}

fn tenant_id(text: &str) -> Result<TenantId, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "tenant", error.to_string()))
}
