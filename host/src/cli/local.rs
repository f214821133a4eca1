//! `tenon tenant` and `tenon key`: over HTTP to a running host, or on the data directory of a stopped one (`--data`),
//! which is how the first key is made.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use types::TenantId;

use super::Connection;
use super::output::{Remote, print, text};
use crate::error::Error;
use crate::store::EmbeddedStore;
use crate::tenants::{KeyId, Rights, Tenants};

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
pub(crate) async fn tenant(command: TenantCommand) -> Result<(), Error> {
    match command {
        TenantCommand::Create { name, place } => {
            match &place.data {
                Some(data) => open(data).await?.create_tenant(&tenant_id(&name)?).await?,
                None => {
                    let remote = Remote::new(&place.connection)?;
                    remote.json(remote.call(Method::POST, "/v1/tenants").json(&json!({"name": name}))).await?;
                }
            }
            println!("tenant {name} created");
        }
        TenantCommand::List { place } => match &place.data {
            Some(data) => {
                let tenants = open(data).await?;
                let keys = tenants.list_keys(None).await?;
                for tenant in tenants.list_tenants().await? {
                    println!("{tenant}");
                    for key in keys.iter().filter(|key| key.tenant == tenant) {
                        let state = if key.revoked_unix_ms.is_some() { "revoked" } else { "holds" };
                        println!("  {} {state} {} {}", key.id, key.rights, key.label);
                    }
                }
            }
            None => {
                let remote = Remote::new(&place.connection)?;
                print(&remote.json(remote.call(Method::GET, "/v1/tenants")).await?);
            }
        },
    }
    Ok(())
}

/// Creates and revokes keys.
pub(crate) async fn key(command: KeyCommand) -> Result<(), Error> {
    match command {
        KeyCommand::Create { tenant, rights, label, place } => match &place.data {
            Some(data) => {
                let rights: Rights = rights.join(",").parse().map_err(|error: crate::tenants::RightsError| {
                    Error::invalid("invalid_request", "rights", error.to_string())
                })?;
                let key = open(data).await?.create_key(&tenant_id(&tenant)?, rights, &label).await?;
                println!("{}", key.text.as_str());
            }
            None => {
                let remote = Remote::new(&place.connection)?;
                let body = json!({"tenant": tenant, "rights": rights, "label": label});
                let value: Value = remote.json(remote.call(Method::POST, "/v1/keys").json(&body)).await?;
                println!("{}", text(&value, "key"));
            }
        },
        KeyCommand::Revoke { id, place } => {
            match &place.data {
                Some(data) => {
                    let key: KeyId = id.parse().map_err(|_| Error::NotFound(format!("key `{id}`")))?;
                    open(data).await?.revoke_key(None, &key).await?;
                }
                None => {
                    let remote = Remote::new(&place.connection)?;
                    remote.send(remote.call(Method::DELETE, &format!("/v1/keys/{id}"))).await?;
                }
            }
            println!("key {id} revoked");
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
