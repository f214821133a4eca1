//! The tables of recordings, and what is done to them in a transaction. Not here: when.

use plugin::Finished;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, WriteTransaction};
use types::{FunctionName, TenantId};

use super::{RecordingLimits, RecordingOwner};

/// Recordings that one transaction removes: receipts wait for it.
const REMOVED_AT_ONCE_MAX: usize = 64;

/// (tenant, number) -> the lines.
const TEXTS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("recording_texts");
/// (tenant, number) -> (function, life, request, version, time, steps, is whole, bytes).
const CARDS: TableDefinition<'_, (&str, u64), Card<'_>> = TableDefinition::new("recording_cards");
/// (tenant, function, life, number) -> bytes.
const BY_FUNCTION: TableDefinition<'_, (&str, &str, u32, u64), u64> = TableDefinition::new("recordings_by_function");
/// (tenant, request, number) -> nothing.
const BY_REQUEST: TableDefinition<'_, (&str, &str, u64), ()> = TableDefinition::new("recordings_by_request");
/// (tenant, function, life) -> (recordings, bytes).
const FUNCTIONS: TableDefinition<'_, (&str, &str, u32), (u64, u64)> = TableDefinition::new("recording_functions");
/// tenant -> bytes.
const TENANTS: TableDefinition<'_, &str, u64> = TableDefinition::new("recording_tenants");
/// The last number that was given out.
const LAST: TableDefinition<'_, (), u64> = TableDefinition::new("recording_number");

type Card<'a> = (&'a str, u32, &'a str, u32, u64, u32, bool, u64);

/// A recording in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordingCard {
    pub(crate) request: String,
    pub(crate) function: String,
    pub(crate) life: u32,
    pub(crate) version: u32,
    pub(crate) time_unix_ms: u64,
    pub(crate) steps: u32,
    pub(crate) is_whole: bool,
    pub(crate) bytes: u64,
}

impl RecordingCard {
    fn new((function, life, request, version, time_unix_ms, steps, is_whole, bytes): Card<'_>) -> Self {
        let (function, request) = (function.to_owned(), request.to_owned());
        Self { request, function, life, version, time_unix_ms, steps, is_whole, bytes }
    }
}

/// Keeps a recording, and removes the oldest that are too many with it.
pub(super) fn insert(
    transaction: &WriteTransaction,
    owner: &RecordingOwner,
    finished: &Finished,
    count_max: u32,
    limits: RecordingLimits,
) -> Result<(), redb::Error> {
    let RecordingOwner { tenant, function, life } = owner;
    let (tenant, function) = (tenant.as_str(), function.as_str());
    let bytes = finished.text.len() as u64;
    let number = {
        let mut last = transaction.open_table(LAST)?;
        let number = last.get(())?.map_or(0, |last| last.value()) + 1;
        last.insert((), number)?;
        number
    };
    let head = &finished.head;
    let card = (
        function,
        *life,
        head.request.as_str(),
        head.version,
        head.time_unix_ms,
        finished.steps,
        finished.cut.is_none(),
        bytes,
    );
    transaction.open_table(TEXTS)?.insert((tenant, number), finished.text.as_bytes())?;
    transaction.open_table(CARDS)?.insert((tenant, number), card)?;
    transaction.open_table(BY_FUNCTION)?.insert((tenant, function, *life, number), bytes)?;
    transaction.open_table(BY_REQUEST)?.insert((tenant, head.request.as_str(), number), ())?;
    count(transaction, (tenant, function, *life), 1, bytes, true)?;
    loop {
        let (recordings, of_function) = held(transaction, (tenant, function, *life))?;
        let of_tenant = transaction.open_table(TENANTS)?.get(tenant)?.map_or(0, |bytes| bytes.value());
        let is_over = recordings > u64::from(count_max.max(1)) || of_function > limits.function_bytes_max;
        let oldest = if is_over {
            oldest_of_function(transaction, (tenant, function, *life))?
        } else if of_tenant > limits.tenant_bytes_max {
            oldest_of_tenant(transaction, tenant)?
        } else {
            None
        };
        // The one that was just written stays, whatever the limits.
        match oldest.filter(|oldest| *oldest != number) {
            Some(oldest) => remove(transaction, tenant, oldest)?,
            None => return Ok(()),
        }
    }
}

fn held(transaction: &WriteTransaction, function: (&str, &str, u32)) -> Result<(u64, u64), redb::Error> {
    Ok(transaction.open_table(FUNCTIONS)?.get(function)?.map_or((0, 0), |held| held.value()))
}

fn oldest_of_function(
    transaction: &WriteTransaction,
    (tenant, function, life): (&str, &str, u32),
) -> Result<Option<u64>, redb::Error> {
    let table = transaction.open_table(BY_FUNCTION)?;
    let first = table.range((tenant, function, life, 0)..=(tenant, function, life, u64::MAX))?.next().transpose()?;
    Ok(first.map(|(key, _)| key.value().3))
}

fn oldest_of_tenant(transaction: &WriteTransaction, tenant: &str) -> Result<Option<u64>, redb::Error> {
    let table = transaction.open_table(CARDS)?;
    let first = table.range((tenant, 0)..=(tenant, u64::MAX))?.next().transpose()?;
    Ok(first.map(|(key, _)| key.value().1))
}

fn remove(transaction: &WriteTransaction, tenant: &str, number: u64) -> Result<(), redb::Error> {
    transaction.open_table(TEXTS)?.remove((tenant, number))?;
    let card = transaction.open_table(CARDS)?.remove((tenant, number))?.map(|card| RecordingCard::new(card.value()));
    let Some(card) = card else { return Ok(()) };
    transaction.open_table(BY_FUNCTION)?.remove((tenant, card.function.as_str(), card.life, number))?;
    transaction.open_table(BY_REQUEST)?.remove((tenant, card.request.as_str(), number))?;
    count(transaction, (tenant, &card.function, card.life), 1, card.bytes, false)
}

/// Counts recordings that came, or went.
fn count(
    transaction: &WriteTransaction,
    owner: (&str, &str, u32),
    recordings: u64,
    bytes: u64,
    came: bool,
) -> Result<(), redb::Error> {
    let after = |held: u64, change: u64| if came { held + change } else { held.saturating_sub(change) };
    let mut functions = transaction.open_table(FUNCTIONS)?;
    let (held, held_bytes) = functions.get(owner)?.map_or((0, 0), |held| held.value());
    match (after(held, recordings), after(held_bytes, bytes)) {
        (0, _) => drop(functions.remove(owner)?),
        left => drop(functions.insert(owner, left)?),
    }
    let mut tenants = transaction.open_table(TENANTS)?;
    let held_bytes = tenants.get(owner.0)?.map_or(0, |bytes| bytes.value());
    match after(held_bytes, bytes) {
        0 => drop(tenants.remove(owner.0)?),
        left => drop(tenants.insert(owner.0, left)?),
    }
    Ok(())
}

/// Some of a function's lives before this one; how many went.
pub(super) fn remove_some(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    function: &FunctionName,
    before: u32,
) -> Result<usize, redb::Error> {
    let (tenant, function) = (tenant.as_str(), function.as_str());
    let mut numbers = Vec::new();
    for entry in transaction.open_table(BY_FUNCTION)?.range((tenant, function, 0, 0)..(tenant, function, before, 0))? {
        numbers.push(entry?.0.value().3);
        if numbers.len() >= REMOVED_AT_ONCE_MAX {
            break;
        }
    }
    for number in &numbers {
        remove(transaction, tenant, *number)?;
    }
    Ok(numbers.len())
}

#[cfg(test)]
pub(super) fn held_bytes(database: &Database, tenant: &str) -> Result<u64, redb::Error> {
    let transaction = database.begin_read()?;
    Ok(transaction.open_table(TENANTS)?.get(tenant)?.map_or(0, |bytes| bytes.value()))
}

pub(super) fn list(database: &Database, owner: &RecordingOwner, max: usize) -> Result<Vec<RecordingCard>, redb::Error> {
    let RecordingOwner { tenant, function, life } = owner;
    let (tenant, function, life) = (tenant.as_str(), function.as_str(), *life);
    let transaction = database.begin_read()?;
    // Any of them may be missing: that a function without recordings was removed makes the index alone.
    let (table, cards) = match (transaction.open_table(BY_FUNCTION), transaction.open_table(CARDS)) {
        (Err(TableError::TableDoesNotExist(_)), _) | (_, Err(TableError::TableDoesNotExist(_))) => {
            return Ok(Vec::new());
        }
        (table, cards) => (table?, cards?),
    };
    let mut found = Vec::new();
    for entry in table.range((tenant, function, life, 0)..=(tenant, function, life, u64::MAX))?.rev().take(max) {
        let number = entry?.0.value().3;
        found.extend(cards.get((tenant, number))?.map(|card| RecordingCard::new(card.value())));
    }
    Ok(found)
}

pub(super) fn of_request(
    database: &Database,
    tenant: &TenantId,
    request: &str,
) -> Result<Vec<(RecordingCard, String)>, redb::Error> {
    let tenant = tenant.as_str();
    let transaction = database.begin_read()?;
    let opened = (|| {
        let (table, cards) = (transaction.open_table(BY_REQUEST)?, transaction.open_table(CARDS)?);
        Ok((table, cards, transaction.open_table(TEXTS)?))
    })();
    let (table, cards, texts) = match opened {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut found = Vec::new();
    for entry in table.range((tenant, request, 0)..=(tenant, request, u64::MAX))? {
        let number = entry?.0.value().2;
        let card = cards.get((tenant, number))?.map(|card| RecordingCard::new(card.value()));
        let text = texts.get((tenant, number))?.map(|text| String::from_utf8_lossy(text.value()).into_owned());
        found.extend(card.zip(text));
    }
    Ok(found)
}
