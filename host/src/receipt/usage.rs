//! What tenants used, by UTC day: counted in the transaction that writes the final record, out of that record and nothing
//! else, so that usage and receipts cannot disagree. Not here: prices, quotas.

use chrono::{DateTime, Days, NaiveDate};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, Table, TableDefinition, WriteTransaction};
use types::{Digest, FunctionName, TenantId};

use super::record::{Kind, Receipt};
use super::tables::{RECORDS, parse_stored};
use super::{ReceiptError, record::at_most};

/// Days of one question.
pub const USAGE_DAYS_MAX: usize = 92;
/// Rows of one answer: a row is a day's total, or a function, adapter or base on a day.
const USAGE_ROWS_MAX: usize = 20_000;

/// requests, finished, failed, cancelled, recovered, prompt tokens, completion tokens, microseconds in plugins, microseconds in all.
type Counts = (u64, u64, u64, u64, u64, u64, u64, u64, u64);

/// (tenant, day since 1970, part, name) -> counts. Parts are [`Part::code`]; the total's name is empty.
const USAGE: TableDefinition<'_, (&str, i32, u8, &str), Counts> = TableDefinition::new("receipt_usage");

/// What usage is told apart by. A request with two adapters is in the rows of both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// All of the day.
    Total,
    /// Of one function, whichever version: of the one that answered, if the request was handed over.
    Function(FunctionName),
    /// With one adapter, whatever else was composed with it.
    Adapter(Digest),
    /// On one base.
    Base(Digest),
}

impl Part {
    const fn code(&self) -> u8 {
        match self {
            Self::Total => 0,
            Self::Function(_) => 1,
            Self::Adapter(_) => 2,
            Self::Base(_) => 3,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Total => String::new(),
            Self::Function(name) => name.to_string(),
            Self::Adapter(digest) | Self::Base(digest) => digest.to_string(),
        }
    }

    fn read(code: u8, name: &str) -> Option<Self> {
        match code {
            0 => Some(Self::Total),
            1 => name.parse().ok().map(Self::Function),
            2 => name.parse().ok().map(Self::Adapter),
            3 => name.parse().ok().map(Self::Base),
            _ => None,
        }
    }
}

/// What was used. Requests are final records, so those that still run are not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageCounts {
    /// All of them.
    pub requests: u64,
    /// Answered whole.
    pub finished: u64,
    /// Ended by an error.
    pub failed: u64,
    /// The caller went away.
    pub cancelled: u64,
    /// The host stopped before it could say how they ended; their tokens are not known and not counted.
    pub recovered: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Microseconds that requests spent in plugins, by the wall clock.
    pub plugin_us: u64,
    /// Microseconds from admission to the end, summed over requests.
    pub total_us: u64,
}

impl UsageCounts {
    /// What one final record says; `None` for a started one.
    #[must_use]
    pub fn of(receipt: &Receipt) -> Option<Self> {
        let of_kind = |kind: Kind| u64::from(receipt.kind == kind);
        if receipt.kind == Kind::Started {
            return None;
        }
        let mut counts = Self {
            requests: 1,
            finished: of_kind(Kind::Finished),
            failed: of_kind(Kind::Failed),
            cancelled: of_kind(Kind::Cancelled),
            recovered: of_kind(Kind::Recovered),
            ..Self::default()
        };
        if let Some(outcome) = &receipt.outcome {
            let us = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            counts.prompt_tokens = outcome.tokens.prompt.into();
            counts.completion_tokens = outcome.tokens.completion.into();
            (counts.plugin_us, counts.total_us) = (us(outcome.timings.plugin), us(outcome.timings.total));
        }
        Some(counts)
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            finished: self.finished.saturating_add(other.finished),
            failed: self.failed.saturating_add(other.failed),
            cancelled: self.cancelled.saturating_add(other.cancelled),
            recovered: self.recovered.saturating_add(other.recovered),
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
            plugin_us: self.plugin_us.saturating_add(other.plugin_us),
            total_us: self.total_us.saturating_add(other.total_us),
        }
    }

    const fn row(self) -> Counts {
        let Self {
            requests,
            finished,
            failed,
            cancelled,
            recovered,
            prompt_tokens,
            completion_tokens,
            plugin_us,
            total_us,
        } = self;
        (requests, finished, failed, cancelled, recovered, prompt_tokens, completion_tokens, plugin_us, total_us)
    }

    const fn from_row(row: Counts) -> Self {
        let (requests, finished, failed, cancelled, recovered, prompt_tokens, completion_tokens, plugin_us, total_us) =
            row;
        Self { requests, finished, failed, cancelled, recovered, prompt_tokens, completion_tokens, plugin_us, total_us }
    }
}

/// Usage of one part on one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// The day, in UTC, on which the requests ended.
    pub day: NaiveDate,
    /// What it is about.
    pub part: Part,
    /// How much.
    pub counts: UsageCounts,
}

/// The day, in UTC, of a time in milliseconds since 1970.
#[must_use]
pub fn day_of(time_unix_ms: u64) -> NaiveDate {
    let time = i64::try_from(time_unix_ms).ok().and_then(DateTime::from_timestamp_millis);
    time.map_or(NaiveDate::MAX, |time| time.date_naive())
}

/// The days of a question, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageDays {
    from: NaiveDate,
    to: NaiveDate,
}

impl UsageDays {
    /// From one day to another.
    ///
    /// # Errors
    /// [`ReceiptError::OverLimit`] over [`USAGE_DAYS_MAX`]; [`ReceiptError::BadDays`] if they are the wrong way round.
    pub fn new(from: NaiveDate, to: NaiveDate) -> Result<Self, ReceiptError> {
        let days = to.signed_duration_since(from).num_days() + 1;
        let days = usize::try_from(days).ok().filter(|days| *days > 0).ok_or(ReceiptError::BadDays)?;
        at_most("the number of days", days, "usage_days_max", USAGE_DAYS_MAX)?;
        Ok(Self { from, to })
    }

    /// The last so many days up to this one.
    #[must_use]
    pub fn last(days: u64, to: NaiveDate) -> Self {
        let from = to.checked_sub_days(Days::new(days.saturating_sub(1))).unwrap_or(to);
        Self { from, to }
    }

    /// The first one.
    #[must_use]
    pub const fn from(self) -> NaiveDate {
        self.from
    }

    /// The last one.
    #[must_use]
    pub const fn to(self) -> NaiveDate {
        self.to
    }
}

/// The table, open for writing.
pub(super) struct UsageTable<'txn>(Table<'txn, (&'static str, i32, u8, &'static str), Counts>);

impl<'txn> UsageTable<'txn> {
    pub(super) fn open(transaction: &'txn WriteTransaction) -> Result<Self, ReceiptError> {
        Ok(Self(transaction.open_table(USAGE)?))
    }

    /// Counts a record that is written in the same transaction.
    pub(super) fn count(&mut self, receipt: &Receipt) -> Result<(), ReceiptError> {
        let Some(counts) = UsageCounts::of(receipt) else { return Ok(()) };
        let day = day_of(receipt.time_unix_ms).to_epoch_days();
        for part in parts(receipt) {
            let (code, name) = (part.code(), part.name());
            let key = (receipt.tenant.as_str(), day, code, name.as_str());
            let before = self.0.get(key)?.map(|row| UsageCounts::from_row(row.value())).unwrap_or_default();
            self.0.insert(key, before.plus(counts).row())?;
        }
        Ok(())
    }
}

/// The rows that a receipt belongs to, each once.
fn parts(receipt: &Receipt) -> Vec<Part> {
    let mut parts = vec![Part::Total, Part::Base(receipt.subject.base)];
    // Of those that a request was handed through, the last one answered.
    let handed_over = receipt.outcome.iter().flat_map(|outcome| &outcome.handed_over);
    let answered = receipt.subject.function.iter().chain(handed_over).next_back();
    parts.extend(answered.map(|function| Part::Function(function.name.clone())));
    parts.extend(receipt.subject.adapters.iter().map(|part| Part::Adapter(part.adapter)));
    parts.sort();
    parts.dedup();
    parts
}

/// Counts what was written before there was this table.
pub(super) fn count_missing(transaction: &WriteTransaction) -> Result<(), ReceiptError> {
    let has = |name: &str| -> Result<bool, ReceiptError> {
        Ok(transaction.list_tables()?.any(|table| redb::TableHandle::name(&table) == name))
    };
    if has(redb::TableHandle::name(&USAGE))? {
        return Ok(());
    }
    let records = transaction.open_table(RECORDS)?;
    let mut usage = UsageTable::open(transaction)?;
    for entry in records.iter()? {
        let envelope = parse_stored(entry?.1.value())?;
        usage.count(&envelope.peek().map_err(|fault| ReceiptError::Damaged(fault.to_string()))?)?;
    }
    Ok(())
}

/// A tenant's rows, by day.
pub(super) fn read(db: &Database, tenant: &TenantId, days: UsageDays) -> Result<Vec<UsageRow>, ReceiptError> {
    let table = db.begin_read()?.open_table(USAGE)?;
    let tenant = tenant.as_str();
    let (from, end) = (days.from.to_epoch_days(), days.to.to_epoch_days().saturating_add(1));
    let mut rows = Vec::new();
    for entry in table.range((tenant, from, 0, "")..(tenant, end, 0, ""))? {
        let (key, row) = entry?;
        let (_, day, code, name) = key.value();
        let damaged = || ReceiptError::Damaged(format!("usage of day {day}"));
        rows.push(UsageRow {
            day: NaiveDate::from_epoch_days(day).ok_or_else(damaged)?,
            part: Part::read(code, name).ok_or_else(damaged)?,
            counts: UsageCounts::from_row(row.value()),
        });
        at_most("the number of rows", rows.len(), "usage_rows_max", USAGE_ROWS_MAX)?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
