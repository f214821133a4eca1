//! Group commit: one thread takes all that waits, signs and chains it, and makes it durable in one transaction. Not here:
//! what a record is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::{Database, Durability};
use tokio::sync::{mpsc, oneshot};

use super::ReceiptError;
use super::log::{Final, ReceiptCounts, Started};
use super::record::{Kind, ReceiptId};
use super::tables::{Author, Entry, Tables};
use super::usage;

/// Records of one transaction.
const BATCH_RECORDS_MAX: usize = 1024;

pub(super) type Reply = oneshot::Sender<Result<(), ReceiptError>>;

/// What the writer is told.
pub(super) enum Order {
    Start { id: ReceiptId, started: Arc<Started>, reply: Reply },
    End { id: ReceiptId, started: Arc<Started>, last: Box<Final>, reply: Option<Reply> },
    Close,
}

/// What was committed, since the log was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    kinds: [AtomicU64; 5],
    transactions: AtomicU64,
    /// Whether the last transaction failed.
    failing: AtomicBool,
}

impl Counters {
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self) -> ReceiptCounts {
        let of = |kind: Kind| self.kinds.get(kind as usize).map_or(0, |count| count.load(Ordering::Relaxed));
        ReceiptCounts {
            started: of(Kind::Started),
            finished: of(Kind::Finished),
            cancelled: of(Kind::Cancelled),
            failed: of(Kind::Failed),
            recovered: of(Kind::Recovered),
            transactions: self.transactions.load(Ordering::Relaxed),
        }
    }
}

/// The only one who writes receipts.
pub(super) struct Writer {
    pub(super) db: Arc<Database>,
    pub(super) author: Author,
    pub(super) counters: Arc<Counters>,
}

impl Writer {
    /// Makes the tables, and gives every open receipt a `recovered` record.
    pub(super) fn recover(&self) -> Result<(), ReceiptError> {
        let transaction = self.db.begin_write()?;
        usage::count_missing(&transaction)?;
        transaction.commit()?;
        loop {
            let transaction = self.db.begin_write()?;
            let ids = Tables::open(&transaction)?.open_ids(BATCH_RECORDS_MAX)?;
            transaction.commit()?;
            if ids.is_empty() {
                return Ok(());
            }
            let entries: Vec<_> = ids.iter().map(Entry::Recovered).collect();
            self.commit(&entries)?.into_iter().collect::<Result<Vec<_>, _>>()?;
        }
    }

    /// Serves until told to close, then what was sent before that.
    pub(super) fn run(&self, mut inbox: mpsc::Receiver<Order>) {
        let mut batch = Vec::new();
        while inbox.blocking_recv_many(&mut batch, BATCH_RECORDS_MAX) > 0 {
            if batch.iter().any(|order| matches!(order, Order::Close)) {
                inbox.close();
                while let Ok(order) = inbox.try_recv() {
                    batch.push(order);
                }
                self.serve(&mut batch);
                return;
            }
            self.serve(&mut batch);
        }
    }

    /// Commits the batch and answers everybody in it.
    fn serve(&self, batch: &mut Vec<Order>) {
        let entries: Vec<_> = batch.iter().filter_map(Order::entry).collect();
        if entries.is_empty() {
            return batch.clear();
        }
        let results = self.commit(&entries);
        self.counters.failing.store(results.is_err(), Ordering::Relaxed);
        drop(entries);
        let orders = batch.drain(..).filter(|order| !matches!(order, Order::Close));
        match results {
            Ok(results) => orders.zip(results).for_each(|(order, result)| order.answer(result)),
            Err(error) => orders.for_each(|order| order.answer(Err(error.clone()))),
        }
    }

    /// One durable transaction. The outer error is storage's and concerns all; inner ones concern one record.
    fn commit(&self, entries: &[Entry<'_>]) -> Result<Vec<Result<(), ReceiptError>>, ReceiptError> {
        let mut transaction = self.db.begin_write()?;
        transaction
            .set_durability(Durability::Immediate)
            .map_err(|error| ReceiptError::Storage(Arc::new(error.into())))?;
        let mut tables = Tables::open(&transaction)?;
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            match tables.append(entry, &self.author) {
                Err(error @ (ReceiptError::Storage(_) | ReceiptError::Damaged(_))) => return Err(error),
                result => results.push(result),
            }
        }
        drop(tables);
        transaction.commit()?;
        self.counters.transactions.fetch_add(1, Ordering::Relaxed);
        for kind in results.iter().flatten() {
            if let Some(count) = self.counters.kinds.get(*kind as usize) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(results.into_iter().map(|result| result.map(drop)).collect())
    }
}

impl Order {
    fn entry(&self) -> Option<Entry<'_>> {
        match self {
            Self::Start { id, started, .. } => Some(Entry::Started(id, started)),
            Self::End { id, started, last, .. } => Some(Entry::Final(id, started, last)),
            Self::Close => None,
        }
    }

    fn answer(self, result: Result<(), ReceiptError>) {
        match self {
            // Whoever gave up waiting dropped its receipt, whose `cancelled` record follows in the queue.
            Self::Start { reply, .. } | Self::End { reply: Some(reply), .. } => drop(reply.send(result)),
            Self::End { id, reply: None, .. } => {
                if let Err(error) = result {
                    tracing::error!(receipt = %id, %error, "a dropped receipt has no final record before the next start");
                }
            }
            Self::Close => {}
        }
    }
}
