//! The log as the rest of the host sees it: start a receipt, finish it, read. Not here: the writer thread's work.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};
use types::TenantId;

use super::commitment::Salts;
use super::record::{Ending, Outcome, ReceiptId, Subject, at_most};
use super::tables::{self, Author};
use super::usage::{self, UsageDays, UsageRow};
use super::verify::{Break, Verified, Verifier};
use super::writer::{Counters, Order, Writer};
use super::{Envelope, PublicKeys, ReceiptError, ReceiptKey};
use crate::store::StateDatabase;

/// Receipts that may be open at once.
const RECEIPTS_OPEN_MAX: usize = 4096;
/// Bytes of a request's identifier.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Records of one page of a list.
const LIST_RECORDS_MAX: usize = 1000;

type Place = mpsc::OwnedPermit<Order>;

/// What is known when a request is admitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// Whose chain.
    pub tenant: TenantId,
    /// What it is about.
    pub subject: Subject,
}

/// What is known at the end. The default is a cancelled request of which nothing is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Final {
    /// How it ended.
    pub ending: Ending,
    /// What was done.
    pub outcome: Outcome,
}

/// The records of one receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReceipt {
    /// The started record.
    pub started: Envelope,
    /// The final record, once there is one.
    pub last: Option<Envelope>,
}

/// Records that were committed since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiptCounts {
    /// Started records.
    pub started: u64,
    /// Finished records.
    pub finished: u64,
    /// Cancelled records.
    pub cancelled: u64,
    /// Failed records.
    pub failed: u64,
    /// Recovered records.
    pub recovered: u64,
    /// Durable transactions that it took.
    pub transactions: u64,
}

/// Append-only chains of receipts, one per tenant, in a database. Closed when dropped.
pub struct ReceiptLog {
    db: Arc<StateDatabase>,
    counters: Arc<Counters>,
    orders: mpsc::Sender<Order>,
    ended: watch::Receiver<()>,
    writer: Mutex<Option<(Place, JoinHandle<()>)>>,
}

impl fmt::Debug for ReceiptLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiptLog").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl ReceiptLog {
    /// Opens the log and gives every receipt that was left open a `recovered` record. `node` names this host.
    ///
    /// # Errors
    /// [`ReceiptError::Storage`] or [`ReceiptError::Damaged`].
    pub fn open(db: Arc<StateDatabase>, key: ReceiptKey, node: impl Into<String>) -> Result<Self, ReceiptError> {
        Self::open_with(db, key, node.into(), RECEIPTS_OPEN_MAX)
    }

    fn open_with(db: Arc<StateDatabase>, key: ReceiptKey, node: String, open_max: usize) -> Result<Self, ReceiptError> {
        let counters = Arc::new(Counters::default());
        let mut writer = Writer::new(Arc::clone(&db), Author { key, node }, Arc::clone(&counters));
        writer.recover()?;
        // An open receipt holds the place of its final record, and for a moment that of its started one.
        let (orders, inbox) = mpsc::channel(open_max.saturating_mul(2).saturating_add(1));
        let close = orders.clone().try_reserve_owned().map_err(|_| ReceiptError::Closed)?;
        let (running, ended) = watch::channel(());
        let thread = std::thread::Builder::new()
            .name("receipts".to_owned())
            .spawn(move || {
                writer.run(inbox);
                drop(running);
            })
            .map_err(|error| ReceiptError::Storage(Arc::new(error)))?;
        Ok(Self { db, counters, orders, ended, writer: Mutex::new(Some((close, thread))) })
    }

    /// Writes a started record; it is durable when this returns.
    ///
    /// # Errors
    /// Any [`ReceiptError`]; then there is no receipt, and the request must not be served.
    pub async fn start(&self, started: Started) -> Result<OpenReceipt, ReceiptError> {
        let length = started.subject.request.len();
        at_most("the request's identifier in bytes", length, "request_id_bytes_max", REQUEST_ID_BYTES_MAX)?;
        let (first, last) = (self.place()?, self.place()?);
        let (reply, answer) = oneshot::channel();
        let (id, started) = (ReceiptId::generate(), Arc::new(started));
        first.send(Order::Start { id: id.clone(), started: Arc::clone(&started), reply });
        // Made before the wait: if the caller gives up meanwhile, dropping it cancels the receipt.
        let mut open =
            OpenReceipt { id, started, draft: Final::default(), place: Some(last), ended: self.ended.clone() };
        let result = wait(answer, &mut open.ended).await;
        if result.is_err() {
            open.place = None;
        }
        result.map(|()| open)
    }

    fn place(&self) -> Result<Place, ReceiptError> {
        self.orders.clone().try_reserve_owned().map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                ReceiptError::TooManyOpen { open_max: (self.orders.max_capacity() - 1) / 2 }
            }
            mpsc::error::TrySendError::Closed(_) => ReceiptError::Closed,
        })
    }

    /// The records of a receipt; `None` if there is none, or if it is another tenant's.
    ///
    /// # Errors
    /// [`ReceiptError::Storage`] or [`ReceiptError::Damaged`]. The same for all that read.
    pub fn get(&self, tenant: &TenantId, id: &ReceiptId) -> Result<Option<StoredReceipt>, ReceiptError> {
        let pair = self.db.read(|db| tables::read_pair(db, tenant, id))?;
        Ok(pair.map(|(started, last)| StoredReceipt { started, last }))
    }

    /// The salts of a receipt's commitments, for the tenant that owns it and nobody else.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn salts(&self, tenant: &TenantId, id: &ReceiptId) -> Result<Option<Salts>, ReceiptError> {
        self.db.read(|db| tables::read_salts(db, tenant, id))
    }

    /// Records of a tenant's chain after a sequence number (0 for the beginning), at most `limit` and 1,000.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn list(&self, tenant: &TenantId, after: u64, limit: usize) -> Result<Vec<(u64, Envelope)>, ReceiptError> {
        self.db.read(|db| {
            let lines = tables::read_after(db, tenant, after)?.take(limit.min(LIST_RECORDS_MAX));
            lines.map(|entry| entry.and_then(|(sequence, line)| Ok((sequence, tables::parse_stored(&line)?)))).collect()
        })
    }

    /// A tenant's whole chain as of now, one line of JSON (without its end) after the other: what [`super::verify`] reads.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn export(
        &self,
        tenant: &TenantId,
    ) -> Result<impl Iterator<Item = Result<String, ReceiptError>> + use<>, ReceiptError> {
        let lines = self.db.read(|db| tables::read_after(db, tenant, 0))?;
        Ok(lines.map(|entry| {
            let (sequence, line) = entry?;
            String::from_utf8(line).map_err(|_| ReceiptError::Damaged(format!("sequence {sequence}")))
        }))
    }

    /// Checks a tenant's whole chain as it lies in a database that no host has open; nothing is written.
    ///
    /// # Errors
    /// As [`Self::get`]; a chain that breaks is no error of this call.
    pub fn check_stored(
        db: &StateDatabase,
        tenant: &TenantId,
        keys: &PublicKeys,
    ) -> Result<Result<Verified, Break>, ReceiptError> {
        let mut verifier = Verifier::new(keys);
        for line in db.read(|db| tables::read_after(db, tenant, 0))? {
            if let Err(fault) = verifier.record(&line?.1) {
                return Ok(Err(fault));
            }
        }
        Ok(Ok(verifier.finish()))
    }

    /// What a tenant used on these days, by day and part.
    ///
    /// # Errors
    /// As [`Self::get`], and [`ReceiptError::OverLimit`] for more rows than an answer may have.
    pub fn usage(&self, tenant: &TenantId, days: UsageDays) -> Result<Vec<UsageRow>, ReceiptError> {
        self.db.read(|db| usage::read(db, tenant, days))
    }

    /// What was committed.
    #[must_use]
    pub fn counts(&self) -> ReceiptCounts {
        self.counters.read()
    }

    /// Whether receipts can be written. After a failure it is tried: what was left open by it is recovered on the way.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), ReceiptError> {
        let (reply, answer) = oneshot::channel();
        self.place()?.send(Order::Check { reply });
        wait(answer, &mut self.ended.clone()).await
    }

    /// Commits what was sent and ends the writer; blocks for as long as that takes. Receipts that are still open get
    /// their `recovered` record at the next start.
    pub fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((place, thread)) = writer {
            place.send(Order::Close);
            if thread.join().is_err() {
                tracing::error!("the receipt writer panicked; open receipts are recovered at the next start");
            }
        }
    }
}

impl Drop for ReceiptLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// A receipt without its final record. When dropped, its draft becomes the final record.
pub struct OpenReceipt {
    id: ReceiptId,
    started: Arc<Started>,
    draft: Final,
    /// Its place in the writer's queue, so that the final record cannot be turned away.
    place: Option<Place>,
    ended: watch::Receiver<()>,
}

impl fmt::Debug for OpenReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenReceipt").field("id", &self.id).finish_non_exhaustive()
    }
}

impl OpenReceipt {
    /// The receipt's identifier.
    #[must_use]
    pub const fn id(&self) -> &ReceiptId {
        &self.id
    }

    /// What is written if this is dropped: at first `cancelled` and nothing more. Fill it in as the request goes on, so
    /// that a caller who goes away leaves a full record.
    pub const fn draft(&mut self) -> &mut Final {
        &mut self.draft
    }

    /// Writes the final record; it is durable when this returns, and is written even if the caller gives up waiting.
    ///
    /// # Errors
    /// [`ReceiptError::Storage`], [`ReceiptError::Encode`] or [`ReceiptError::Closed`]; then the record follows as
    /// `recovered` at the next start.
    pub async fn finish(mut self, last: Final) -> Result<(), ReceiptError> {
        let (reply, answer) = oneshot::channel();
        self.draft = last;
        self.send(Some(reply));
        wait(answer, &mut self.ended).await
    }

    fn send(&mut self, reply: Option<super::writer::Reply>) {
        if let Some(place) = self.place.take() {
            let (id, started) = (self.id.clone(), Arc::clone(&self.started));
            place.send(Order::End { id, started, last: Box::new(std::mem::take(&mut self.draft)), reply });
        }
    }
}

impl Drop for OpenReceipt {
    fn drop(&mut self) {
        self.send(None);
    }
}

/// Waits for the writer's answer. What is sent after its last look into the queue is never answered, so its end counts too.
async fn wait(
    mut answer: oneshot::Receiver<Result<(), ReceiptError>>,
    ended: &mut watch::Receiver<()>,
) -> Result<(), ReceiptError> {
    tokio::select! {
        biased;
        result = &mut answer => result.unwrap_or(Err(ReceiptError::Closed)),
        _ = ended.changed() => answer.try_recv().unwrap_or(Err(ReceiptError::Closed)),
    }
}

#[cfg(test)]
mod full_disk;
#[cfg(test)]
pub(in crate::receipt) mod tests;
