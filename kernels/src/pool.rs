//! The threads of a step: the caller and its workers, who claim the tiles of one operation after the other. Not here: what
//! a tile does, and which operations make a step.
//!
//! A step is many short operations (about 200, of 1 to 100 µs each), so that workers wait for the next one by spinning;
//! between steps they sleep. Tiles are claimed one by one and threads are not pinned: a thread whose core was taken from
//! it delays the tile that it holds and no other, and an operation whose tiles are all done does not wait for a thread
//! that never saw it.
//!
//! The claim: one word holds (operation, unclaimed tiles), and a thread that reads a number above zero, reads what to run,
//! and then swaps the word for one tile less has proof that what it read belongs to that operation: nobody writes a new
//! one while a tile of the old one is unclaimed or unfinished.
//!
//! A thread that finds no tile fetches into the cache what the team was told comes next ([`Team::upcoming`]): a step that is
//! bound by memory must not leave it idle while one thread does what cannot be divided.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Low bits of the claim word: tiles that nobody has claimed. The rest is the operation's number.
const TILE_BITS: u32 = 24;
/// Tiles of one operation.
const TILES_MAX: usize = (1 << TILE_BITS) - 1;
/// What a waiting thread fetches between two looks at the claim: few lines, so that an operation begins at once.
const FETCH_BYTES: usize = 512;
/// What waiting threads fetch at most before they must be told anew: a quarter of a second-level cache.
const FETCH_BYTES_MAX: usize = 256 << 10;
/// Turns of waiting after which a thread offers its core to others: about 20 µs.
const SPINS_MAX: u32 = 1 << 9;

/// Threads of its own, so that nothing process-global decides their number.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held during a step: one at a time.
    stepping: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

/// Why a pool could not be made.
#[derive(Debug)]
pub struct PoolError(std::io::Error);

impl std::fmt::Display for PoolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot start a thread: {}", self.0)
    }
}

impl std::error::Error for PoolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// On a cache line of its own (two, as they are fetched in pairs).
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// (operation, unclaimed tiles).
    claim: Line<AtomicU64>,
    /// Tiles of the operation that are finished.
    done: Line<AtomicUsize>,
    /// The operation: its closure, the function that calls it, its tiles. Valid while the claim word shows its number and an unclaimed tile.
    closure: AtomicPtr<()>,
    call: AtomicPtr<()>,
    tiles: AtomicUsize,
    /// Where the part of what comes next ends that is fetched; never read.
    upcoming_end: AtomicPtr<u8>,
    /// How many bytes of it nobody has fetched.
    unfetched: Line<AtomicUsize>,
    /// Whether workers spin for operations.
    in_step: Line<AtomicBool>,
    /// What a tile panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    state: Mutex<State>,
    woken: Condvar,
}

#[derive(Default)]
struct State {
    /// Steps begun.
    steps: u64,
    stopped: bool,
}

/// Calls a tile of the closure behind the pointer.
type Call = unsafe fn(*const (), usize, usize);

impl Pool {
    /// A pool of this many threads, the caller of [`Pool::step`] among them; at least one.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> Result<Self, PoolError> {
        let shared = Arc::new(Shared {
            claim: Line(AtomicU64::new(0)),
            done: Line(AtomicUsize::new(0)),
            closure: AtomicPtr::new(std::ptr::null_mut()),
            call: AtomicPtr::new(std::ptr::null_mut()),
            tiles: AtomicUsize::new(0),
            upcoming_end: AtomicPtr::new(std::ptr::null_mut()),
            unfetched: Line(AtomicUsize::new(0)),
            in_step: Line(AtomicBool::new(false)),
            panic: Mutex::new(None),
            state: Mutex::new(State::default()),
            woken: Condvar::new(),
        });
        let mut pool = Self { shared, stepping: Mutex::new(()), workers: Vec::new() };
        for worker in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("engine-{worker}"));
            pool.workers.push(thread.spawn(move || shared.work(worker)).map_err(PoolError)?);
        }
        Ok(pool)
    }

    /// How many threads work in a step.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Wakes the workers, runs `work`, and lets them sleep again. A second caller waits.
    pub fn step<R>(&self, work: impl FnOnce(&Team<'_>) -> R) -> R {
        let _one = self.stepping.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = if self.workers.is_empty() { None } else { Some(&*self.shared) };
        let _step = shared.map(Step::begin);
        work(&Team { shared, threads: self.threads(), _one_thread: PhantomData })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.shared.woken.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was caught and handed to the step.
            let _ = worker.join();
        }
    }
}

/// Ends the step also if the caller's work panics.
struct Step<'a>(&'a Shared);

impl<'a> Step<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.in_step.0.store(true, Ordering::Release);
        shared.state.lock().unwrap_or_else(PoisonError::into_inner).steps += 1;
        shared.woken.notify_all();
        Self(shared)
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.0.in_step.0.store(false, Ordering::Release);
    }
}

/// The threads of a step that is running. It stays with the thread that runs the step, so that a tile cannot begin an
/// operation.
pub struct Team<'a> {
    shared: Option<&'a Shared>,
    threads: usize,
    _one_thread: PhantomData<*const ()>,
}

impl Team<'static> {
    /// The caller alone.
    #[must_use]
    pub fn alone() -> Self {
        Self { shared: None, threads: 1, _one_thread: PhantomData }
    }
}

impl Team<'_> {
    /// How many threads run tiles; [`Self::tiles`] numbers them from 0.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `tile(worker, index)` once for each index in `0 .. count`, lower ones first, and returns when all are done. A
    /// single tile, or all in a team of one, run on the caller.
    ///
    /// # Panics
    /// If a tile panics, with what it panicked with; and if there are more than 2²⁴ − 1 of them.
    pub fn tiles<F: Fn(usize, usize) + Sync>(&self, count: usize, tile: F) {
        let Some(shared) = self.shared.filter(|_| count > 1) else {
            return (0..count).for_each(|index| tile(0, index));
        };
        assert!(count <= TILES_MAX, "{count} tiles in one operation");
        let call: Call = call_tile::<F>;
        shared.publish(std::ptr::from_ref(&tile).cast(), call, count);
        shared.run_tiles(0);
        let mut spins = 0;
        while shared.done.0.load(Ordering::Acquire) < count {
            shared.wait_a_little(&mut spins);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Says which memory will be read after the next operation, or in it if there is none before: threads that wait fetch its
    /// beginning into their caches.
    pub fn upcoming(&self, bytes: &[u8]) {
        if let Some(shared) = self.shared {
            let wanted = bytes.len().min(FETCH_BYTES_MAX);
            shared.upcoming_end.store(bytes.as_ptr().wrapping_add(wanted).cast_mut(), Ordering::Relaxed);
            shared.unfetched.0.store(wanted, Ordering::Relaxed);
        }
    }
}

/// # Safety
/// `closure` points to an `F` that lives until this call has returned.
unsafe fn call_tile<F: Fn(usize, usize) + Sync>(closure: *const (), worker: usize, index: usize) {
    // SAFETY: the caller's promise.
    let tile = unsafe { &*closure.cast::<F>() };
    tile(worker, index);
}

impl Shared {
    /// Begins an operation. The previous one is finished: `Team::tiles` has waited for it.
    fn publish(&self, closure: *const (), call: Call, count: usize) {
        self.closure.store(closure.cast_mut(), Ordering::Relaxed);
        self.call.store(call as *mut (), Ordering::Relaxed);
        self.tiles.store(count, Ordering::Relaxed);
        self.done.0.store(0, Ordering::Relaxed);
        let operation = self.claim.0.load(Ordering::Relaxed) >> TILE_BITS;
        self.claim.0.store(operation.wrapping_add(1) << TILE_BITS | count as u64, Ordering::Release);
    }

    /// Claims and runs tiles until none is left; whether there was one.
    fn run_tiles(&self, worker: usize) -> bool {
        let mut finished = 0;
        while let Some((closure, call, index)) = self.claim_tile() {
            // SAFETY: `call` is the function that `Team::tiles` made for the type of `closure`, both of the operation whose
            // tile was claimed (see `claim_tile`); the closure lives in the frame of `Team::tiles`, which returns
            // only after `done` has counted this tile, and that is below.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { call(closure, worker, index) }));
            if let Err(panic) = outcome {
                *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            finished += 1;
            // Release: what the tile wrote is seen by whoever sees the count.
            self.done.0.fetch_add(1, Ordering::Release);
        }
        finished > 0
    }

    /// The operation and a tile of it that nobody else has.
    fn claim_tile(&self) -> Option<(*const (), Call, usize)> {
        let mut word = self.claim.0.load(Ordering::Acquire);
        loop {
            let unclaimed = (word & TILES_MAX as u64) as usize;
            if unclaimed == 0 {
                return None;
            }
            let (closure, call) = (self.closure.load(Ordering::Relaxed), self.call.load(Ordering::Relaxed));
            let tiles = self.tiles.load(Ordering::Relaxed);
            // Success proves that the operation was not over when its parts were read: see the head of this file. The
            // release half keeps those reads before it.
            match self.claim.0.compare_exchange_weak(word, word - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    // SAFETY: of the claimed operation, which `publish` wrote from a `Call`.
                    let call = unsafe { std::mem::transmute::<*mut (), Call>(call) };
                    return Some((closure, call, tiles - unclaimed));
                }
                Err(now) => word = now,
            }
        }
    }

    /// A worker's life.
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                while state.steps == seen && !state.stopped {
                    state = self.woken.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.stopped {
                    return;
                }
                seen = state.steps;
            }
            let mut spins = 0;
            while self.in_step.0.load(Ordering::Acquire) {
                if self.run_tiles(worker) {
                    spins = 0;
                } else {
                    self.wait_a_little(&mut spins);
                }
            }
        }
    }

    /// Fetches some of what comes next; else spins, and offers the core to others after a while: they may be what is waited
    /// for.
    fn wait_a_little(&self, spins: &mut u32) {
        let unfetched = self.unfetched.0.load(Ordering::Relaxed);
        if unfetched > 0 {
            // Another thread may fetch the same, or mix two announcements up: that costs a fetch and nothing else.
            self.unfetched.0.store(unfetched.saturating_sub(FETCH_BYTES), Ordering::Relaxed);
            let end = self.upcoming_end.load(Ordering::Relaxed);
            return fetch(end.wrapping_sub(unfetched));
        }
        *spins += 1;
        if *spins < SPINS_MAX {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// Brings [`FETCH_BYTES`] from here on into the second-level cache. Any address will do: nothing is read.
fn fetch(first: *const u8) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..FETCH_BYTES / 64 {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which has no effect but on the cache, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(line * 64).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = first;
}

/// A slice whose disjoint parts are written by different tiles.
pub(crate) struct SharedMut<'a, T> {
    first: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts through `slice`, whose caller promises that nobody else has them, and, of what several
// threads may read, `read`; a part may go to another thread because `T` may.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Borrows all of it until the last part is given back.
    pub(crate) fn new(all: &'a mut [T]) -> Self {
        Self { first: all.as_mut_ptr(), len: all.len(), _borrow: PhantomData }
    }

    /// Where it begins: for what writes parts of it that lie apart, under the rules of [`Self::slice`].
    pub(crate) fn first(&self) -> *mut T {
        self.first
    }

    /// A part.
    ///
    /// # Safety
    /// No other part that overlaps with it is alive.
    ///
    /// # Panics
    /// If it reaches beyond the end.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice that was borrowed mutably for 'a; not aliased, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}

impl<T: Sync> SharedMut<'_, T> {
    /// A part to read.
    ///
    /// # Safety
    /// Nobody writes to it any more: what was written happened before.
    ///
    /// # Panics
    /// If it reaches beyond the end.
    pub(crate) unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice that was borrowed for 'a; not written, by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.first.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests;
