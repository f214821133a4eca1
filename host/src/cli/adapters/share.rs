//! `tenon adapter share`, `unshare` and `shared`. Not here: taking what is shared, which is `tenon adapter add`.

use clap::Args;
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::cli::failure::Failure;
use crate::cli::output::{Printer, cell, items, table, text};
use crate::cli::remote::{Connection, Remote, segment};

#[derive(Debug, Args)]
pub(crate) struct ShareArgs {
    /// The alias
    alias: String,
    /// A tenant that may read it; once for each
    #[arg(long = "with", value_name = "TENANT", required_unless_present = "everyone")]
    tenants: Vec<String>,
    /// All tenants of the host may
    #[arg(long, conflicts_with = "tenants")]
    everyone: bool,
    /// What it is licensed under, if that was not said before: an SPDX identifier such as Apache-2.0
    #[arg(long, value_name = "SPDX")]
    license: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Shares.
pub(super) async fn share(arguments: ShareArgs, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(&arguments.connection)?;
    let shared = remote.json(remote.call(Method::PUT, &path(&arguments.alias)).json(&body(&arguments))).await?;
    printer.result(&shared, |shared| {
        format!("{} {} {}", text(shared, "source"), text(shared, "digest"), text(shared, "license"))
    })?;
    Ok(())
}

/// Ends it.
pub(super) async fn unshare(alias: &str, connection: &Connection, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(connection)?;
    remote.send(remote.call(Method::DELETE, &path(alias))).await?;
    printer.result(&json!({"alias": alias, "shared": false}), |_| format!("{alias} is not shared any more"))?;
    Ok(())
}

/// Lists what others share.
pub(super) async fn list(connection: &Connection, printer: Printer) -> Result<(), Failure> {
    let list = Remote::new(connection)?.get("/v1/shared-adapters").await?;
    printer.result(&list, |list| {
        let row = |one| {
            let rank = format!("rank {}", cell(one, "rank"));
            vec![text(one, "source").to_owned(), rank, text(one, "license").to_owned(), cell(one, "digest")]
        };
        table(&items(list, "data").map(row).collect::<Vec<_>>())
    })?;
    Ok(())
}

fn path(alias: &str) -> String {
    format!("/v1/adapters/{}/readers", segment(alias))
}

fn body(arguments: &ShareArgs) -> Value {
    let ShareArgs { tenants, everyone, license, .. } = arguments;
    let mut body = Map::new();
    if *everyone {
        body.insert("everyone".to_owned(), json!(true));
    } else {
        body.insert("tenants".to_owned(), json!(tenants));
    }
    if let Some(license) = license {
        body.insert("license".to_owned(), json!(license));
    }
    body.into()
}
