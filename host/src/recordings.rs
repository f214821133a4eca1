//! Recordings of requests, for whoever wants to know why a plugin did what it did: kept in the state's database, bounded for each
//! function and tenant, removed with the function. Not here: what is in one (`plugin::Recorder`), and who may read it.
//!
//! They are written by a thread of their own after the answer, many at once and without waiting for the disk: what is written
//! rests on the next receipt's commit. One that finds no room in memory, or no room on the disk, is dropped and counted, and the
//! function's log says so.

mod tables;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use plugin::{Finished, Recorder, RecordingCut, RecordingHead, RecordingMemory, RecordingSink};
use redb::Durability;
use tokio::sync::oneshot;
use types::{FunctionName, TenantId};

use crate::error::Error;
use crate::logs::{InvocationLog, Level};
use crate::store::{StateDatabase, StoreError};
pub(crate) use tables::RecordingCard;

/// What recordings may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordingLimits {
    /// Bytes of one; what would be more is left out of it.
    pub(crate) recording_bytes_max: usize,
    /// Bytes of all of a function; the oldest go.
    pub(crate) function_bytes_max: u64,
    /// Bytes of all of a tenant; the oldest go.
    pub(crate) tenant_bytes_max: u64,
    /// Bytes of those that are open or on their way to the disk.
    pub(crate) memory_bytes_max: usize,
    /// How many may be on their way.
    pub(crate) queue_max: usize,
    /// Bytes of one transaction.
    pub(crate) batch_bytes_max: usize,
}

impl Default for RecordingLimits {
    fn default() -> Self {
        Self {
            recording_bytes_max: 1 << 20,
            function_bytes_max: 32 << 20,
            tenant_bytes_max: 256 << 20,
            memory_bytes_max: 64 << 20,
            queue_max: 1024,
            batch_bytes_max: 4 << 20,
        }
    }
}

/// Whose recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordingOwner {
    pub(crate) tenant: TenantId,
    pub(crate) function: FunctionName,
    /// As [`crate::registry::FunctionVersion::life`].
    pub(crate) life: u32,
}

/// A recording on its way to the disk.
struct Kept {
    owner: RecordingOwner,
    /// How many of the function are kept.
    count_max: u32,
    log: InvocationLog,
    finished: Finished,
}

enum Job {
    Keep(Box<Kept>),
    /// Tells when all that came before is written.
    Flush(oneshot::Sender<()>),
    Close,
}

/// The recordings of all functions.
pub(crate) struct Recordings {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    database: Arc<StateDatabase>,
    limits: RecordingLimits,
    memory: RecordingMemory,
    jobs: SyncSender<Job>,
    dropped: AtomicU64,
    /// Functions that were deleted, with the life that a successor of each begins: what their requests recorded is not written when
    /// they end later. Not kept: no request outlives the host.
    gone: Mutex<HashMap<(TenantId, FunctionName), u32>>,
}

impl Recordings {
    /// In a database.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn open(database: Arc<StateDatabase>, limits: RecordingLimits) -> Result<Self, Error> {
        let (jobs, received) = sync_channel(limits.queue_max);
        let memory = RecordingMemory::new(limits.memory_bytes_max);
        let shared =
            Arc::new(Shared { database, limits, memory, jobs, dropped: AtomicU64::new(0), gone: Mutex::default() });
        let of_writer = Arc::clone(&shared);
        let writer = std::thread::Builder::new().name("recordings".into()).spawn(move || of_writer.write(&received));
        let writer = writer.map_err(Error::io("cannot start the thread that writes recordings"))?;
        Ok(Self { shared, writer: Mutex::new(Some(writer)) })
    }

    /// Records one request of a function.
    pub(crate) fn recorder(
        &self,
        owner: RecordingOwner,
        head: RecordingHead,
        count_max: u32,
        log: InvocationLog,
    ) -> Recorder {
        let sink = Sink { shared: Arc::clone(&self.shared), owner, count_max, log };
        Recorder::new(head, self.shared.limits.recording_bytes_max, &self.shared.memory, Arc::new(sink))
    }

    /// Recordings that were dropped, ever.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Those of a function, the newest first.
    pub(crate) async fn list(&self, owner: RecordingOwner, max: usize) -> Result<Vec<RecordingCard>, StoreError> {
        self.flush().await;
        self.read(move |database| tables::list(database, &owner, max)).await
    }

    /// The recordings of a request, in the order in which its functions ended.
    pub(crate) async fn of_request(
        &self,
        tenant: &TenantId,
        request: &str,
    ) -> Result<Vec<(RecordingCard, String)>, StoreError> {
        self.flush().await;
        let (tenant, request) = (tenant.clone(), request.to_owned());
        self.read(move |database| tables::of_request(database, &tenant, &request)).await
    }

    /// Removes those of a function's lives before this one.
    pub(crate) async fn remove_function(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        before: u32,
    ) -> Result<(), StoreError> {
        self.shared.gone().insert((tenant.clone(), function.clone()), before);
        // What was written without having seen it is there after this.
        self.flush().await;
        loop {
            let (tenant, function) = (tenant.clone(), function.clone());
            let removed = self.change(move |transaction| tables::remove_some(transaction, &tenant, &function, before));
            if removed.await? == 0 {
                return Ok(());
            }
        }
    }

    /// Waits until what has ended is written.
    pub(crate) async fn flush(&self) {
        let (done, told) = oneshot::channel();
        let jobs = self.shared.jobs.clone();
        // The queue may be full, and then this waits like a recording would not.
        let sent = tokio::task::spawn_blocking(move || jobs.send(Job::Flush(done)).is_ok()).await;
        if sent.unwrap_or(false) {
            drop(told.await);
        }
    }

    /// Writes what is left, so that it lasts, and takes no more. Blocks.
    pub(crate) fn close(&self) {
        let _gone = self.shared.jobs.send(Job::Close);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the thread that writes recordings did not end well");
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl Fn(&redb::Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.shared.database);
        blocking(move || database.read(work)).await
    }

    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.shared.database);
        blocking(move || write(&database, Durability::Immediate, work)).await
    }
}

impl Drop for Recordings {
    /// The thread holds the database: whoever opens it next must find it free.
    fn drop(&mut self) {
        self.close();
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, redb::Error> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| StoreError::backend("read or write recordings", error))?;
    done.map_err(|error| StoreError::backend("read or write recordings", error))
}

fn write<T>(
    database: &StateDatabase,
    durability: Durability,
    work: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    database.write(|database| {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(durability)?;
        let done = work(&transaction)?;
        transaction.commit()?;
        Ok(done)
    })
}

struct Sink {
    shared: Arc<Shared>,
    owner: RecordingOwner,
    count_max: u32,
    log: InvocationLog,
}

impl RecordingSink for Sink {
    fn keep(&self, finished: Finished) {
        if let Some(cut) = finished.cut {
            let steps = finished.steps;
            let why = match cut {
                RecordingCut::Bytes => format!("recording_bytes_max is {}", self.shared.limits.recording_bytes_max),
                RecordingCut::Memory => "the host has much to record".to_owned(),
                RecordingCut::ShortSecret => {
                    "the plugin was given a secret of less than 4 bytes, which could not be kept out".to_owned()
                }
            };
            self.log.write(Level::Warn, &format!("the recording holds only the first {steps} steps: {why}"));
        }
        let (owner, log) = (self.owner.clone(), self.log.clone());
        let kept = Kept { owner, count_max: self.count_max, log, finished };
        if let Err(TrySendError::Full(Job::Keep(kept)) | TrySendError::Disconnected(Job::Keep(kept))) =
            self.shared.jobs.try_send(Job::Keep(Box::new(kept)))
        {
            self.shared.drop_one(&kept.log, "the host has much to record");
        }
    }
}

impl Shared {
    fn gone(&self) -> MutexGuard<'_, HashMap<(TenantId, FunctionName), u32>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_gone(&self, owner: &RecordingOwner) -> bool {
        let name = (owner.tenant.clone(), owner.function.clone());
        self.gone().get(&name).is_some_and(|next| owner.life < *next)
    }

    fn drop_one(&self, log: &InvocationLog, why: &str) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        log.write(Level::Warn, &format!("the recording was dropped: {why}"));
    }

    fn write(&self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let (mut batch, mut waiting, mut bytes, mut is_last) = (Vec::new(), Vec::new(), 0, false);
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Keep(kept) => {
                        bytes += kept.finished.text.len();
                        batch.push(kept);
                    }
                    Job::Flush(done) => waiting.push(done),
                    Job::Close => is_last = true,
                }
                next = if bytes < self.limits.batch_bytes_max && !is_last { jobs.try_recv().ok() } else { None };
            }
            // A transaction that waits for the disk makes the earlier ones last, too.
            self.write_batch(&batch, if is_last { Durability::Immediate } else { Durability::None }, is_last);
            waiting.into_iter().for_each(|done| {
                let _nobody_waits = done.send(());
            });
            if is_last {
                return;
            }
        }
    }

    fn write_batch(&self, batch: &[Box<Kept>], durability: Durability, even_empty: bool) {
        if batch.is_empty() && !even_empty {
            return;
        }
        let room = self.database.check_room().map_err(redb::Error::from);
        let written = room.and_then(|()| {
            write(&self.database, durability, |transaction| {
                for kept in batch {
                    let Kept { owner, count_max, finished, .. } = &**kept;
                    if self.is_gone(owner) {
                        continue;
                    }
                    tables::insert(transaction, owner, finished, *count_max, self.limits)?;
                }
                Ok(())
            })
        });
        let Err(error) = written else { return };
        tracing::warn!(%error, recordings = batch.len(), "recordings were dropped");
        for kept in batch {
            self.drop_one(&kept.log, "the host could not write it");
        }
    }
}

#[cfg(test)]
mod tests;
