//! Where records lie: the tables, how one record is appended, how records are read. Not here: when a transaction begins
//! and ends.

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use types::{Digest, TenantId};

use super::commitment::{Salt, Salts};
use super::log::{Final, Started};
use super::record::{Ending, Kind, Outcome, Receipt, ReceiptId, Subject};
use super::usage::UsageTable;
use super::{Envelope, RECORD_BYTES_MAX, ReceiptError, ReceiptKey};

/// Of the prompt and of the answer.
type SaltPair = (Option<[u8; 32]>, Option<[u8; 32]>);

/// Characters of an error's code; a plugin may have chosen it.
const ERROR_CODE_CHARS_MAX: usize = 96;

/// (tenant, sequence) -> envelope, one line of JSON.
pub(super) const RECORDS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("receipt_records");
/// id -> (tenant, sequence of the started record, sequence of the final one or 0).
const IDS: TableDefinition<'_, &str, (&str, u64, u64)> = TableDefinition::new("receipt_ids");
/// tenant -> (sequence, payload digest) of the chain's last record.
const HEADS: TableDefinition<'_, &str, (u64, [u8; 32])> = TableDefinition::new("receipt_heads");
/// id -> salts of the prompt's and the answer's commitments. Private: never exported.
const SALTS: TableDefinition<'_, &str, SaltPair> = TableDefinition::new("receipt_salts");
/// Ids without a final record.
const OPEN: TableDefinition<'_, &str, ()> = TableDefinition::new("receipt_open");

/// What is to be appended.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    Started(&'a ReceiptId, &'a Started),
    Final(&'a ReceiptId, &'a Started, &'a Final),
    Recovered(&'a ReceiptId),
}

/// Who writes.
pub(super) struct Author {
    pub(super) key: ReceiptKey,
    pub(super) node: String,
}

/// The tables, open for writing.
pub(super) struct Tables<'txn> {
    records: Table<'txn, (&'static str, u64), &'static [u8]>,
    ids: Table<'txn, &'static str, (&'static str, u64, u64)>,
    heads: Table<'txn, &'static str, (u64, [u8; 32])>,
    salts: Table<'txn, &'static str, SaltPair>,
    open: Table<'txn, &'static str, ()>,
    usage: UsageTable<'txn>,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(transaction: &'txn WriteTransaction) -> Result<Self, ReceiptError> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            ids: transaction.open_table(IDS)?,
            heads: transaction.open_table(HEADS)?,
            salts: transaction.open_table(SALTS)?,
            open: transaction.open_table(OPEN)?,
            usage: UsageTable::open(transaction)?,
        })
    }

    /// Appends one record. Nothing is written when it fails for another reason than storage.
    pub(super) fn append(&mut self, entry: &Entry<'_>, author: &Author) -> Result<Kind, ReceiptError> {
        match *entry {
            Entry::Started(id, started) => {
                let sequence = self.write(author, id, Kind::Started, &started.tenant, &started.subject, None)?;
                self.ids.insert(id.as_str(), (started.tenant.as_str(), sequence, 0))?;
                self.open.insert(id.as_str(), ())?;
                Ok(Kind::Started)
            }
            Entry::Final(id, started, last) => {
                let first = self.first_of_open(id)?;
                let (kind, outcome) = outcome(last);
                self.end(author, id, first, kind, &started.tenant, &started.subject, Some(outcome))?;
                let bytes = |salt: Option<Salt>| salt.map(|salt| *salt.as_bytes());
                let prompt = last.outcome.prompt.and_then(|commitment| bytes(commitment.salt()));
                let answer = last.outcome.answer.and_then(|commitment| bytes(commitment.salt()));
                if prompt.is_some() || answer.is_some() {
                    self.salts.insert(id.as_str(), (prompt, answer))?;
                }
                Ok(kind)
            }
            Entry::Recovered(id) => {
                let first = self.first_of_open(id)?;
                let started = self.started(id, first)?;
                self.end(author, id, first, Kind::Recovered, &started.tenant, &started.subject, None)?;
                Ok(Kind::Recovered)
            }
        }
    }

    /// Some receipts without a final record.
    pub(super) fn open_ids(&self, limit: usize) -> Result<Vec<ReceiptId>, ReceiptError> {
        let parse = |text: &str| text.parse().map_err(|_| ReceiptError::Damaged(format!("identifier `{text}`")));
        self.open.iter()?.take(limit).map(|entry| parse(entry?.0.value())).collect()
    }

    fn first_of_open(&self, id: &ReceiptId) -> Result<u64, ReceiptError> {
        let entry = self.ids.get(id.as_str())?.ok_or_else(|| ReceiptError::NeverStarted(id.clone()))?;
        let (_, first, last) = entry.value();
        if last == 0 { Ok(first) } else { Err(ReceiptError::AlreadyFinal(id.clone())) }
    }

    fn started(&self, id: &ReceiptId, sequence: u64) -> Result<Receipt, ReceiptError> {
        let damaged = || ReceiptError::Damaged(id.to_string());
        let entry = self.ids.get(id.as_str())?.ok_or_else(damaged)?;
        let line = self.records.get((entry.value().0, sequence))?.ok_or_else(damaged)?;
        Envelope::parse(line.value()).and_then(|envelope| envelope.peek()).map_err(|_| damaged())
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one record, handed on")]
    fn end(
        &mut self,
        author: &Author,
        id: &ReceiptId,
        first: u64,
        kind: Kind,
        tenant: &TenantId,
        subject: &Subject,
        outcome: Option<Outcome>,
    ) -> Result<(), ReceiptError> {
        let sequence = self.write(author, id, kind, tenant, subject, outcome)?;
        self.ids.insert(id.as_str(), (tenant.as_str(), first, sequence))?;
        self.open.remove(id.as_str())?;
        Ok(())
    }

    fn write(
        &mut self,
        author: &Author,
        id: &ReceiptId,
        kind: Kind,
        tenant: &TenantId,
        subject: &Subject,
        outcome: Option<Outcome>,
    ) -> Result<u64, ReceiptError> {
        let head = self.heads.get(tenant.as_str())?.map(|head| head.value());
        let (last, previous) = head.map_or((0, Receipt::GENESIS), |(last, bytes)| (last, Digest::from_bytes(bytes)));
        let sequence = last + 1;
        let receipt = Receipt {
            id: id.clone(),
            kind,
            tenant: tenant.clone(),
            sequence,
            previous,
            node: author.node.clone(),
            time_unix_ms: now_unix_ms(),
            subject: subject.clone(),
            outcome,
        };
        let (envelope, digest) = Envelope::seal(&receipt, &author.key)?;
        let line = envelope.to_line();
        super::record::at_most("a receipt in bytes", line.len(), "record_bytes_max", RECORD_BYTES_MAX)?;
        self.records.insert((tenant.as_str(), sequence), line.as_bytes())?;
        self.heads.insert(tenant.as_str(), (sequence, *digest.as_bytes()))?;
        self.usage.count(&receipt)?;
        Ok(sequence)
    }
}

fn outcome(last: &Final) -> (Kind, Outcome) {
    let (kind, error) = match &last.ending {
        Ending::Finished => (Kind::Finished, None),
        Ending::Cancelled => (Kind::Cancelled, None),
        Ending::Failed(code) => (Kind::Failed, Some(code.chars().take(ERROR_CODE_CHARS_MAX).collect())),
    };
    (kind, Outcome { error, ..last.outcome.clone() })
}

fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Started and final record of a receipt, if it is this tenant's.
pub(super) fn read_pair(
    db: &Database,
    tenant: &TenantId,
    id: &ReceiptId,
) -> Result<Option<(Envelope, Option<Envelope>)>, ReceiptError> {
    let transaction = db.begin_read()?;
    let Some((first, last)) = find(&transaction, tenant, id)? else { return Ok(None) };
    let records = transaction.open_table(RECORDS)?;
    let read = |sequence: u64| -> Result<Envelope, ReceiptError> {
        let line = records.get((tenant.as_str(), sequence))?;
        let line = line.ok_or_else(|| ReceiptError::Damaged(id.to_string()))?;
        parse_stored(line.value())
    };
    let last = if last == 0 { None } else { Some(read(last)?) };
    Ok(Some((read(first)?, last)))
}

/// The salts of a receipt, if it is this tenant's.
pub(super) fn read_salts(db: &Database, tenant: &TenantId, id: &ReceiptId) -> Result<Option<Salts>, ReceiptError> {
    let transaction = db.begin_read()?;
    if find(&transaction, tenant, id)?.is_none() {
        return Ok(None);
    }
    let salts = transaction.open_table(SALTS)?.get(id.as_str())?.map(|salts| salts.value()).unwrap_or_default();
    Ok(Some(Salts { prompt: salts.0.map(Salt::from_bytes), answer: salts.1.map(Salt::from_bytes) }))
}

/// Lines of a tenant's chain after a sequence number.
pub(super) fn read_after(
    db: &Database,
    tenant: &TenantId,
    after: u64,
) -> Result<impl Iterator<Item = Result<(u64, Vec<u8>), ReceiptError>> + use<>, ReceiptError> {
    let records = db.begin_read()?.open_table(RECORDS)?;
    let range = records.range((tenant.as_str(), after.saturating_add(1))..=(tenant.as_str(), u64::MAX))?;
    Ok(range.map(|entry| {
        let (key, line) = entry?;
        Ok((key.value().1, line.value().to_vec()))
    }))
}

pub(super) fn parse_stored(line: &[u8]) -> Result<Envelope, ReceiptError> {
    Envelope::parse(line).map_err(|fault| ReceiptError::Damaged(fault.to_string()))
}

/// Sequence numbers of the started and the final record. Another tenant's receipt is not there.
fn find(
    transaction: &redb::ReadTransaction,
    tenant: &TenantId,
    id: &ReceiptId,
) -> Result<Option<(u64, u64)>, ReceiptError> {
    let entry = transaction.open_table(IDS)?.get(id.as_str())?;
    Ok(entry.and_then(|entry| {
        let (owner, first, last) = entry.value();
        (owner == tenant.as_str()).then_some((first, last))
    }))
}
