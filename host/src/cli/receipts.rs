//! `tenon receipt show` and `verify`. The check runs here, on what the host (or a file) gives, against public keys that
//! may be pinned with `--keys`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Printer, read, text};
use super::remote::{Connection, Remote, broken, segment};
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
pub(crate) async fn run(command: ReceiptCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        ReceiptCommand::Show { id, connection } => {
            let remote = Remote::new(&connection)?;
            let receipt = remote.get(&format!("/v1/receipts/{}", segment(&id))).await?;
            printer.result(&receipt, |receipt| format!("{receipt:#}"))?;
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
            let verified = verify(&export, &keys, id.as_ref())?;
            printer.result(&verified, verified_text)?;
            Ok(())
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

async fn fetch(remote: &Remote, path: &str) -> Result<Vec<u8>, Failure> {
    let response = remote.send(remote.call(Method::GET, path)).await?;
    Ok(response.bytes().await.map_err(broken)?.to_vec())
}

fn public_keys(json: &[u8]) -> Result<PublicKeys, Error> {
    let text = std::str::from_utf8(json).map_err(|error| Error::invalid("remote", "", format!("keys: {error}")))?;
    PublicKeys::parse(text).map_err(|error| Error::invalid("remote", "", format!("keys: {error}")))
}

fn verify(export: &[u8], keys: &PublicKeys, wanted: Option<&ReceiptId>) -> Result<Value, Error> {
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
    let receipt = match (wanted, last_of_wanted) {
        (None, _) => Value::Null,
        (Some(id), Some(kind)) if !verified.open.contains(id) => json!({"id": id.as_str(), "kind": kind}),
        (Some(id), Some(_)) => return Err(Error::invalid("receipt_open", "", format!("{id} has no final record yet"))),
        (Some(id), None) => return Err(Error::NotFound(format!("receipt {id} in this chain is"))),
    };
    let head = verified.head.as_ref().map(
        |head| json!({"tenant": head.tenant.as_str(), "sequence": head.sequence, "digest": head.digest.to_string()}),
    );
    Ok(json!({"records": verified.records, "open": verified.open.len(), "head": head, "receipt": receipt}))
}

fn verified_text(verified: &Value) -> String {
    let number = |name: &str| verified.get(name).cloned().unwrap_or_default();
    let receipt = verified.get("receipt").filter(|receipt| receipt.is_object());
    let receipt = receipt.map(|receipt| format!("{}: {}\n", text(receipt, "id"), text(receipt, "kind")));
    let head = verified.get("head").filter(|head| head.is_object());
    let head = head.map(|head| {
        format!(", head {} at {}", text(head, "digest"), head.get("sequence").cloned().unwrap_or_default())
    });
    format!(
        "{}{} records verified: signatures and chain hold{}; {} receipts are open",
        receipt.unwrap_or_default(),
        number("records"),
        head.unwrap_or_default(),
        number("open")
    )
}
