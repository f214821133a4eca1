//! The check of an exported chain by anybody who has the public keys: signatures, spelling, chain, pairing. Not here:
//! anything that needs the log or its salts.
//!
//! What it cannot see is the loss of whole receipts from the end. Compare [`Verified::head`] with a head that was noted
//! elsewhere to see that.

use std::collections::HashMap;

use types::{Digest, TenantId};

use super::PublicKeys;
use super::envelope::{Envelope, Fault};
use super::record::{Kind, Receipt, ReceiptId, Subject};

/// Where a chain breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {record}{of} is wrong: {fault}", of = id.as_ref().map(|id| format!(" ({id})")).unwrap_or_default())]
pub struct Break {
    /// The record's line, counted from 1.
    pub record: u64,
    /// The receipt that the record names, if that much can be read; not to be believed where the signature is wrong.
    pub id: Option<ReceiptId>,
    /// What is wrong.
    pub fault: Fault,
}

/// The end of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose chain.
    pub tenant: TenantId,
    /// The last record's sequence number.
    pub sequence: u64,
    /// Digest of its payload.
    pub digest: Digest,
}

/// A chain without a fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records.
    pub records: u64,
    /// The last one; `None` for no records.
    pub head: Option<Head>,
    /// Receipts without a final record, in the order of their starts: requests that still run, or a chain whose end was
    /// cut off.
    pub open: Vec<ReceiptId>,
}

/// Checks a whole export: lines of JSON, each ended by a newline (the last one's may be missing).
///
/// # Errors
/// Where it breaks first.
pub fn verify(export: &[u8], keys: &PublicKeys) -> Result<Verified, Break> {
    let mut verifier = Verifier::new(keys);
    let export = export.strip_suffix(b"\n").unwrap_or(export);
    if !export.is_empty() {
        export.split(|byte| *byte == b'\n').try_for_each(|line| verifier.record(line).map(drop))?;
    }
    Ok(verifier.finish())
}

/// Checks a chain record by record, for exports that do not fit into memory. (Identifiers do have to fit.)
#[derive(Debug)]
pub struct Verifier<'a> {
    keys: &'a PublicKeys,
    records: u64,
    head: Option<Head>,
    /// The subject of open receipts; `None` once they are final.
    receipts: HashMap<ReceiptId, Option<(u64, Subject)>>,
}

impl<'a> Verifier<'a> {
    /// A verifier that believes these keys and expects the first record of a chain.
    #[must_use]
    pub fn new(keys: &'a PublicKeys) -> Self {
        Self { keys, records: 0, head: None, receipts: HashMap::new() }
    }

    /// Checks the next record, given as its line without the newline.
    ///
    /// # Errors
    /// What is wrong with it. The verifier is of no more use then.
    pub fn record(&mut self, line: &[u8]) -> Result<Receipt, Break> {
        self.records += 1;
        let record = self.records;
        let envelope = Envelope::parse(line).map_err(|fault| Break { record, id: None, fault })?;
        let located = |fault| Break { record, id: envelope.peek().ok().map(|receipt| receipt.id), fault };
        let (receipt, digest) = envelope.open(self.keys).map_err(located)?;
        self.check_chain(&receipt).and_then(|()| self.check_pair(&receipt)).map_err(located)?;
        self.head = Some(Head { tenant: receipt.tenant.clone(), sequence: receipt.sequence, digest });
        Ok(receipt)
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> Verified {
        let mut open: Vec<_> =
            self.receipts.into_iter().filter_map(|(id, started)| started.map(|(sequence, _)| (sequence, id))).collect();
        open.sort_unstable();
        Verified { records: self.records, head: self.head, open: open.into_iter().map(|(_, id)| id).collect() }
    }

    fn check_chain(&self, receipt: &Receipt) -> Result<(), Fault> {
        if self.head.as_ref().is_some_and(|head| head.tenant != receipt.tenant) {
            return Err(Fault::Tenant(receipt.tenant.to_string()));
        }
        let (last, previous) = self.head.as_ref().map_or((0, Receipt::GENESIS), |head| (head.sequence, head.digest));
        if last.checked_add(1) != Some(receipt.sequence) {
            return Err(Fault::Sequence { expected: last.saturating_add(1), found: receipt.sequence });
        }
        if receipt.previous == previous { Ok(()) } else { Err(Fault::Previous) }
    }

    fn check_pair(&mut self, receipt: &Receipt) -> Result<(), Fault> {
        let known = self.receipts.get_mut(&receipt.id);
        match (receipt.kind, known) {
            (Kind::Started, None) => {
                let started = (receipt.sequence, receipt.subject.clone());
                self.receipts.insert(receipt.id.clone(), Some(started));
                Ok(())
            }
            (Kind::Started, Some(_)) => Err(Fault::StartedTwice),
            (_, None) => Err(Fault::NeverStarted),
            (_, Some(None)) => Err(Fault::FinalTwice),
            (_, Some(Some((_, subject)))) if *subject != receipt.subject => Err(Fault::OtherSubject),
            (_, Some(open)) => {
                *open = None;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
