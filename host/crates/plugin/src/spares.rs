//! Instances that wait for the next request of a plugin whose start takes long: which plugins get one, how many there are, and for
//! how long. To start an interpreter takes longer than to ask it, and nobody need wait for that who calls again. A spare is fresh:
//! it is given to one request and has seen none. Not here: how one is made (`guest/spare.rs`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use types::Digest;

use crate::PluginLimits;
use crate::guest::{Guest, Spare};
use crate::host::{Prepared, Shared};
use crate::pages::{ImageFile, Pages};

/// CPU time of a start from which on another one is made before it is asked for. In Rust it takes 10 to 20 us.
const LONG_START: Duration = Duration::from_micros(100);
/// Long starts in a row before that: the first one, and one that met a cold cache, tell nothing.
const LONG_STARTS: u64 = 2;
/// A plugin that was not called for so long is no longer expected to be; its spare goes.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// One instance in so many may be a spare, and no more than this.
const INSTANCES_PER_SPARE: usize = 8;
const SPARES_MAX: usize = 16;
/// Bytes of the memories of all spares, of which most are never touched.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// How a plugin's instances have started so far.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    long_in_a_row: AtomicU64,
    /// Milliseconds of the host's clock, plus one; 0 is never.
    last_ms: AtomicU64,
    /// When it was called last, the call before that was not long ago.
    was_called_lately: AtomicBool,
    /// It asked the host for something, or failed.
    is_unfit: AtomicBool,
    is_being_made: AtomicBool,
    pages: Pages,
}

impl Starts {
    /// Counts one, at a time of the host's clock.
    fn note(&self, now: Duration, cpu: Duration) {
        if cpu < LONG_START {
            self.long_in_a_row.store(0, Ordering::Relaxed);
        } else {
            self.long_in_a_row.fetch_add(1, Ordering::Relaxed);
        }
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let last_ms = self.last_ms.swap(now_ms, Ordering::Relaxed);
        let is_recent = last_ms > 0 && u128::from(now_ms.saturating_sub(last_ms)) <= KEPT_FOR.as_millis();
        self.was_called_lately.store(is_recent, Ordering::Relaxed);
    }

    /// Whether the next one should be ready before it is asked for.
    fn want_another(&self) -> bool {
        self.long_in_a_row.load(Ordering::Relaxed) >= LONG_STARTS
            && self.was_called_lately.load(Ordering::Relaxed)
            && !self.is_unfit.load(Ordering::Relaxed)
    }
}

/// A place among the instances that a spare has.
#[derive(Debug)]
pub(crate) struct Held {
    permit: Option<OwnedSemaphorePermit>,
    count: Arc<AtomicUsize>,
}

impl Held {
    /// The place, which is no longer a spare's.
    pub(crate) fn given(mut self) -> Option<OwnedSemaphorePermit> {
        self.permit.take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Waiting {
    digest: Digest,
    since: Instant,
    spare: Box<Spare>,
}

/// The spares of one host.
pub(crate) struct Spares {
    began: Instant,
    waiting: Mutex<VecDeque<Waiting>>,
    /// Those that wait, and those that are being made.
    count: Arc<AtomicUsize>,
    count_max: usize,
    is_swept: AtomicBool,
    tasks: Mutex<JoinSet<()>>,
}

impl Spares {
    pub(crate) fn of(instances_max: usize) -> Self {
        Self {
            began: Instant::now(),
            waiting: Mutex::default(),
            count: Arc::default(),
            count_max: (instances_max / INSTANCES_PER_SPARE).min(SPARES_MAX),
            is_swept: AtomicBool::new(false),
            tasks: Mutex::default(),
        }
    }

    /// Places among the instances that no request has.
    pub(crate) fn places(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// One that a request of this component would have started the same way under these limits.
    pub(crate) fn take(&self, digest: Digest, limits: &PluginLimits) -> Option<Box<Spare>> {
        let mut waiting = self.lock();
        let place = waiting.iter().position(|waiting| waiting.digest == digest && waiting.spare.fits(limits))?;
        waiting.remove(place).map(|waiting| waiting.spare)
    }

    fn holds(&self, digest: Digest, limits: &PluginLimits) -> bool {
        self.lock().iter().any(|waiting| waiting.digest == digest && waiting.spare.fits(limits))
    }

    /// Lets go of the oldest, for a request that finds no place. Whether there was one.
    pub(crate) fn give_way(&self) -> bool {
        let oldest = self.lock().pop_front();
        oldest.is_some()
    }

    /// Lets go of a component's.
    pub(crate) fn forget(&self, digest: Digest) {
        self.let_go(|waiting| waiting.digest == digest);
    }

    fn put(&self, digest: Digest, spare: Box<Spare>) {
        let mut gone = Vec::new();
        let mut waiting = self.lock();
        waiting.push_back(Waiting { digest, since: Instant::now(), spare });
        while waiting.iter().map(|waiting| waiting.spare.memory_bytes()).sum::<usize>() > MEMORY_BYTES_MAX {
            gone.extend(waiting.pop_front());
        }
        drop(waiting);
        // To give an instance back takes longer than anybody should wait for the lock.
        drop(gone);
    }

    fn let_go(&self, is_over: impl Fn(&Waiting) -> bool) {
        let mut waiting = self.lock();
        let (gone, kept) = std::mem::take(&mut *waiting).into_iter().partition(is_over);
        *waiting = kept;
        drop(waiting);
        drop::<VecDeque<_>>(gone);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, if there may be one more and more than half of the instances' places are free.
    fn hold(&self, instances: &Arc<Semaphore>, instances_max: usize) -> Option<Held> {
        let one_more = |count: usize| (count < self.count_max).then_some(count + 1);
        self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        let mut held = Held { permit: None, count: Arc::clone(&self.count) };
        if instances.available_permits() * 2 <= instances_max {
            return None;
        }
        held.permit = Some(Arc::clone(instances).try_acquire_owned().ok()?);
        Some(held)
    }
}

/// Counts a start, and has another instance started on the plugin threads if one should be ready for the next request.
pub(crate) fn after_start(shared: &Arc<Shared>, prepared: &Prepared, guest: &Guest) {
    let (spares, starts, digest, limits) = (&shared.spares, &prepared.starts, prepared.digest, guest.limits());
    starts.note(spares.began.elapsed(), guest.start_cpu());
    if !starts.want_another() || shared.share.is_over() || spares.holds(digest, limits) {
        return;
    }
    if starts.is_being_made.swap(true, Ordering::AcqRel) {
        return;
    }
    let Some(held) = spares.hold(&shared.instances, shared.instances_max) else {
        starts.is_being_made.store(false, Ordering::Release);
        return;
    };
    let (making, prepared, limits) = (Arc::clone(shared), prepared.clone(), Arc::clone(limits));
    run(shared, async move {
        let pages = &prepared.starts.pages;
        match Spare::start(&making, &prepared, limits, held).await {
            Some(spare) => {
                note(prepared.image.map(|image| pages.populate(image)));
                making.spares.put(digest, Box::new(spare));
                sweep(&making);
            }
            None => prepared.starts.is_unfit.store(true, Ordering::Relaxed),
        }
        prepared.starts.is_being_made.store(false, Ordering::Release);
    });
}

/// What fails here makes the next request as slow as it was.
fn note(outcome: Option<std::io::Result<()>>) {
    if let Some(Err(error)) = outcome {
        tracing::debug!(%error, "pages that a plugin will touch could not be made ready");
    }
}

/// Looks which pages an instance has touched when it goes, if that is worth knowing: the next request will touch them as well.
pub(crate) struct LastLook {
    starts: Arc<Starts>,
    image: Option<ImageFile>,
}

impl LastLook {
    pub(crate) fn at(prepared: &Prepared) -> Self {
        Self { starts: Arc::clone(&prepared.starts), image: prepared.image }
    }
}

impl Drop for LastLook {
    fn drop(&mut self) {
        if self.starts.want_another() {
            note(self.image.map(|image| self.starts.pages.look(image)));
        }
    }
}

/// Runs a task that ends with the host.
fn run(shared: &Shared, task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = shared.spares.tasks.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some(ended) = tasks.try_join_next() {
        if let Err(error) = ended {
            tracing::error!(%error, "what makes a plugin ready for its next request has failed");
        }
    }
    shared.threads.spawn(&mut tasks, task);
}

/// Lets go of spares in time, as long as there are any.
fn sweep(shared: &Arc<Shared>) {
    if shared.spares.is_swept.swap(true, Ordering::AcqRel) {
        return;
    }
    let host: Weak<Shared> = Arc::downgrade(shared);
    run(shared, async move {
        loop {
            tokio::time::sleep(KEPT_FOR / 4).await;
            let Some(shared) = host.upgrade() else { return };
            shared.spares.let_go(|waiting| waiting.since.elapsed() >= KEPT_FOR);
            let waiting = shared.spares.lock();
            if waiting.is_empty() {
                // Who puts one in after this finds nobody sweeping.
                shared.spares.is_swept.store(false, Ordering::Release);
                return;
            }
        }
    });
}
