//! `tenon secret set`, `list` and `remove`. A secret comes from a file: arguments are seen by every process of a machine.

use std::path::PathBuf;

use clap::Subcommand;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::json;
use zeroize::Zeroizing;

use super::failure::Failure;
use super::output::{Printer, items, read, table, text};
use super::remote::{Connection, Remote, segment};

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Keep a secret under a name, in place of the one that has it
    Set {
        /// The name that `adapter add --secret` uses
        name: String,
        /// JSON: {"origin": "https://huggingface.co", "token": "…"}, or {"access_key_id": "…", "secret_access_key": "…"} for S3, or {"value": "…"} for plugins
        file: PathBuf,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the tenant's secrets by name
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove a secret
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Sets, lists, removes.
pub(crate) async fn run(command: SecretCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        SecretCommand::Set { name, file, connection } => {
            let remote = Remote::new(&connection)?;
            let body = Zeroizing::new(read(&file)?);
            let call = remote.call(Method::PUT, &format!("/v1/secrets/{}", segment(&name)));
            remote.send(call.header(CONTENT_TYPE, "application/json").body(body.to_vec())).await?;
            printer.result(&json!({"name": name, "kept": true}), |_| format!("{name} kept"))
        }
        SecretCommand::List { connection } => {
            let list = Remote::new(&connection)?.get("/v1/secrets").await?;
            printer.result(&list, |list| {
                table(&items(list, "data").map(|one| vec![text(one, "name").to_owned()]).collect::<Vec<_>>())
            })
        }
        SecretCommand::Remove { name, connection } => {
            let remote = Remote::new(&connection)?;
            remote.send(remote.call(Method::DELETE, &format!("/v1/secrets/{}", segment(&name)))).await?;
            printer.result(&json!({"name": name, "removed": true}), |_| format!("{name} removed"))
        }
    }
}
