//! Group commit: one thread takes all that waits, signs and chains it, and makes it durable in one transaction. Not here:
//! what a record is.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Database, Durability};
use tokio::sync::{mpsc, oneshot};

use super::ReceiptError;
use super::log::{Final, ReceiptCounts, Started};
use super::record::{Kind, ReceiptId};
use super::tables::{Author, Entry, Tables};
use super::usage;
use crate::store::StateDatabase;

/// Records of one transaction.
const BATCH_RECORDS_MAX: usize = 1024;

pub(super) type Reply = oneshot::Sender<Result<(), ReceiptError>>;

/// What the writer is told.
pub(super) enum Order {
    Start {
        id: ReceiptId,
        started: Arc<Started>,
        reply: Reply,
    },
    End {
        id: ReceiptId,
        started: Arc<Started>,
        last: Box<Final>,
        reply: Option<Reply>,
    },
    /// Whether records can be written.
    Check {
        reply: Reply,
    },
    Close,
}

/// What was committed, since the log was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    kinds: [AtomicU64; 5],
    transactions: AtomicU64,
}

impl Counters {
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
    db: Arc<StateDatabase>,
    author: Author,
    counters: Arc<Counters>,
    /// Receipts that somebody holds: started, and not yet ended by their holder.
    held: HashSet<ReceiptId>,
    /// A transaction failed: receipts may be open that nobody holds.
    has_lost_some: bool,
}

impl Writer {
    pub(super) fn new(db: Arc<StateDatabase>, author: Author, counters: Arc<Counters>) -> Self {
        Self { db, author, counters, held: HashSet::new(), has_lost_some: true }
    }

    /// Makes the tables, and gives every open receipt that nobody holds a `recovered` record.
    pub(super) fn recover(&mut self) -> Result<(), ReceiptError> {
        self.db.write(count_missing)?;
        loop {
            let lost: Vec<_> = self.db.write(|db| self.lost_ids(db))?;
            if lost.is_empty() {
                self.has_lost_some = false;
                return Ok(());
            }
            let entries: Vec<_> = lost.iter().map(Entry::Recovered).collect();
            self.commit(&entries)?.into_iter().collect::<Result<Vec<_>, _>>()?;
        }
    }

    fn lost_ids(&self, db: &Database) -> Result<Vec<ReceiptId>, ReceiptError> {
        let transaction = db.begin_write()?;
        let mut ids = Tables::open(&transaction)?.open_ids(self.held.len() + BATCH_RECORDS_MAX)?;
        transaction.commit()?;
        ids.retain(|id| !self.held.contains(id));
        ids.truncate(BATCH_RECORDS_MAX);
        Ok(ids)
    }

    /// Serves until told to close, then what was sent before that.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
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
    fn serve(&mut self, batch: &mut Vec<Order>) {
        let room = self.db.check_room().map_err(ReceiptError::from);
        let recovered = if self.has_lost_some && room.is_ok() { self.recover() } else { Ok(()) };
        // What is new needs room and a log without loose ends; what was begun may end in any case.
        let mut orders = Vec::with_capacity(batch.len());
        for order in batch.drain(..) {
            match (order, room.as_ref().and(recovered.as_ref())) {
                (Order::Start { reply, .. }, Err(error)) => drop(reply.send(Err(error.clone()))),
                (Order::Check { reply }, able) => drop(reply.send(able.map(drop).map_err(Clone::clone))),
                (order, _) => orders.push(order),
            }
        }
        let entries: Vec<_> = orders.iter().filter_map(Order::entry).collect();
        if entries.is_empty() {
            return;
        }
        let results = self.commit(&entries);
        drop(entries);
        self.has_lost_some |= results.is_err();
        let orders = orders.into_iter().filter(|order| !matches!(order, Order::Close));
        match results {
            Ok(results) => orders.zip(results).for_each(|(order, result)| self.answer(order, result)),
            Err(error) => orders.for_each(|order| self.answer(order, Err(error.clone()))),
        }
    }

    fn answer(&mut self, order: Order, result: Result<(), ReceiptError>) {
        match &order {
            Order::Start { id, .. } if result.is_ok() => drop(self.held.insert(id.clone())),
            Order::End { id, .. } => {
                self.has_lost_some |= self.held.remove(id) && result.is_err();
            }
            _ => {}
        }
        order.answer(result);
    }

    /// One durable transaction. The outer error is storage's and concerns all; inner ones concern one record.
    fn commit(&self, entries: &[Entry<'_>]) -> Result<Vec<Result<(), ReceiptError>>, ReceiptError> {
        self.db.write(|db| self.commit_to(db, entries))
    }

    fn commit_to(&self, db: &Database, entries: &[Entry<'_>]) -> Result<Vec<Result<(), ReceiptError>>, ReceiptError> {
        let mut transaction = db.begin_write()?;
        transaction
            .set_durability(Durability::Immediate)
            .map_err(|error| ReceiptError::Storage(Arc::new(redb::Error::from(error))))?;
        let mut tables = Tables::open(&transaction)?;
        let mut results = Vec::with_capacity(entries.len());
        for entry in entries {
            match tables.append(entry, &self.author) {
                Err(error @ (ReceiptError::Storage(_) | ReceiptError::Store(_) | ReceiptError::Damaged(_))) => {
                    return Err(error);
                }
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

/// Usage of what was written before usage was counted.
fn count_missing(db: &Database) -> Result<(), ReceiptError> {
    let transaction = db.begin_write()?;
    usage::count_missing(&transaction)?;
    Ok(transaction.commit()?)
}

impl Order {
    fn entry(&self) -> Option<Entry<'_>> {
        match self {
            Self::Start { id, started, .. } => Some(Entry::Started(id, started)),
            Self::End { id, started, last, .. } => Some(Entry::Final(id, started, last)),
            Self::Check { .. } | Self::Close => None,
        }
    }

    fn answer(self, result: Result<(), ReceiptError>) {
        match self {
            // Whoever gave up waiting dropped its receipt, whose `cancelled` record follows in the queue.
            Self::Start { reply, .. } | Self::Check { reply } | Self::End { reply: Some(reply), .. } => {
                drop(reply.send(result));
            }
            Self::End { id, reply: None, .. } => {
                if let Err(error) = result {
                    tracing::error!(receipt = %id, %error, "a dropped receipt has no final record; it will be recovered");
                }
            }
            Self::Close => {}
        }
    }
}
