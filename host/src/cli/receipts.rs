//! `tenon receipt show` and `verify`. The check runs here, on what the host (or a file) gives, against public keys that
//! may be pinned with `--keys`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use reqwest::Method;
use serde_json::Value;

use super::Connection;
use super::output::{Remote, broken, print, read};
use crate::error::Error;
use crate::receipt::{PublicKeys, ReceiptId, Verifier};

#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptCommand {
    /// Print a receipt with its envelopes
    Show {
        /// The receipt's id, from `x-tenon-receipt`
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Check signatures and chain of the tenant's receipts, and say where it breaks
    Verify {
        /// Also demand that this receipt is there and final
        id: Option<String>,
        /// An export (JSON lines) to check in place of the host's chain
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Public keys to believe (DATA/receipt.pub); those of the host if absent
        #[arg(long, value_name = "FILE")]
        keys: Option<PathBuf>,
        /// Keep what was checked
        #[arg(long, value_name = "FILE")]
        save: Option<PathBuf>,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Shows or verifies.
pub(crate) async fn run(command: ReceiptCommand) -> Result<(), Error> {
    match command {
        ReceiptCommand::Show { id, connection } => {
            let remote = Remote::new(&connection)?;
            print(&remote.json(remote.call(Method::GET, &format!("/v1/receipts/{id}"))).await?);
            Ok(())
        }
        ReceiptCommand::Verify { id, file, keys, save, connection } => {
            let id = id.map(|id| id.parse::<ReceiptId>()).transpose();
            let id = id.map_err(|error| Error::invalid("invalid_request", "id", error.to_string()))?;
            let remote = Remote::new(&connection)?;
            let export = match file {
                Some(file) => read_export(&file)?,
                None => fetch(&remote, "/v1/receipts/export").await?,
            };
            if let Some(path) = save {
                std::fs::write(&path, &export).map_err(Error::io(format!("cannot write {}", path.display())))?;
            }
            let keys = match keys {
                Some(file) => PublicKeys::read(&file)?,
                None => public_keys(&fetch(&remote, "/v1/receipts/keys").await?)?,
            };
            verify(&export, &keys, id.as_ref())
        }
    }
}

/// A file without a record is the wrong file or was cut off: nothing was verified then.
fn read_export(file: &Path) -> Result<Vec<u8>, Error> {
    let export = read(file)?;
    if export.trim_ascii().is_empty() {
        return Err(Error::invalid("receipt_invalid", "", format!("{} holds no records", file.display())));
    }
    Ok(export)
}

async fn fetch(remote: &Remote, path: &str) -> Result<Vec<u8>, Error> {
    let response = remote.send(remote.call(Method::GET, path)).await?;
    Ok(response.bytes().await.map_err(broken)?.to_vec())
}

fn public_keys(json: &[u8]) -> Result<PublicKeys, Error> {
    let text = std::str::from_utf8(json).map_err(|error| Error::invalid("remote", "", format!("keys: {error}")))?;
    PublicKeys::parse(text).map_err(|error| Error::invalid("remote", "", format!("keys: {error}")))
}

fn verify(export: &[u8], keys: &PublicKeys, wanted: Option<&ReceiptId>) -> Result<(), Error> {
    let mut verifier = Verifier::new(keys);
    let mut last_of_wanted: Option<Value> = None;
    for line in export.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let receipt = verifier
            .record(line)
            .map_err(|broken| Error::invalid("receipt_invalid", "", format!("the chain breaks: {broken}")))?;
        if Some(&receipt.id) == wanted {
            last_of_wanted = Some(serde_json::to_value(receipt.kind).unwrap_or_default());
        }
    }
    let verified = verifier.finish();
    if let Some(id) = wanted {
        match last_of_wanted {
            Some(kind) if !verified.open.contains(id) => println!("{id}: {}", kind.as_str().unwrap_or_default()),
            Some(_) => return Err(Error::invalid("receipt_open", "", format!("{id} has no final record yet"))),
            None => return Err(Error::NotFound(format!("receipt {id} in this chain is"))),
        }
    }
    let head = verified.head.as_ref().map(|head| format!(", head {} at {}", head.digest, head.sequence));
    let (records, open) = (verified.records, verified.open.len());
    println!(
        "{records} records verified: signatures and chain hold{}; {open} receipts are open",
        head.unwrap_or_default()
    );
    Ok(())
}
