//! The redb file of a data folder: opened once, and opened anew after an I/O error, since redb refuses everything from the first
//! one on. Not here: what its tables hold.
//!
//! A transaction whose commit failed may be durable all the same. Whoever writes must be content with either outcome: a pointer's
//! version tells, and a receipt that nobody holds is recovered.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use redb::{Builder, Database, DatabaseError};

use super::StoreError;
use super::space::Space;

/// Between two attempts to open the database anew: each may read all of it.
const REOPEN_PAUSE: Duration = Duration::from_millis(250);

/// Errors that can say whether the database is of no use before it is opened anew.
pub(crate) trait DatabaseFailure: From<StoreError> {
    /// Whether the file failed, now or before.
    fn is_of_the_file(&self) -> bool;
}

impl DatabaseFailure for redb::Error {
    fn is_of_the_file(&self) -> bool {
        matches!(self, Self::Io(_) | Self::PreviousIo | Self::DatabaseClosed | Self::LockPoisoned(_))
    }
}

impl From<StoreError> for redb::Error {
    fn from(error: StoreError) -> Self {
        Self::Io(std::io::Error::other(error))
    }
}

type Open = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// A database that outlives the errors of its file. All calls block.
pub struct StateDatabase {
    open: Open,
    /// What it must not grow into; none in tests over memory.
    space: Option<Space>,
    /// None while it cannot be opened.
    current: RwLock<Option<Database>>,
    has_failed: AtomicBool,
    /// When it was last opened anew, and what came of it.
    last_attempt: Mutex<Option<(Instant, Result<(), StoreError>)>>,
}

impl std::fmt::Debug for StateDatabase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateDatabase").field("has_failed", &self.has_failed).finish_non_exhaustive()
    }
}

/// What redb keeps of the file in memory. Every page that is written goes there, so a log of receipts fills it, whatever its
/// size (redb's default is a gigabyte), with pages that nobody reads. What is read and written again is little: the ends of the
/// log's tables and the records of adapters, functions and keys in use; the rest comes from the system's cache of the file.
/// Measured over 10,000 records of 3 kB, read at random: 6 µs a record at 16 MiB, 2 µs at 64 MiB; a commit to a log takes the
/// same time at both, and twice that at 4 MiB.
const CACHE_BYTES: usize = 16 << 20;

/// How the state's database is opened and made.
pub(crate) fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

impl StateDatabase {
    /// Takes an open database whose file lies in `directory`; after an error it is opened there again, unless another file took its
    /// place.
    pub(crate) fn of_file(database: Database, directory: &Path, path: PathBuf) -> Result<Self, StoreError> {
        let space = Space::new(directory, &path)?;
        let mut database = Self::new(database, move || builder().open(&path));
        database.space = Some(space);
        Ok(database)
    }

    /// Takes an open database, and how to open it again.
    pub(crate) fn new(
        database: Database,
        open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Self {
        let current = RwLock::new(Some(database));
        let (has_failed, last_attempt) = (AtomicBool::new(false), Mutex::new(None));
        Self { open: Box::new(open), space: None, current, has_failed, last_attempt }
    }

    /// Where the data folder is, and how much room there is.
    pub(crate) fn space(&self) -> Option<&Space> {
        self.space.as_ref()
    }

    /// Whether something may be written that is not the end of what was begun.
    pub(crate) fn check_room(&self) -> Result<(), StoreError> {
        self.space.as_ref().map_or(Ok(()), |space| space.check_room(0))
    }

    /// Reads; once more if the file had failed and could be opened anew.
    pub(crate) fn read<T, E: DatabaseFailure>(&self, work: impl Fn(&Database) -> Result<T, E>) -> Result<T, E> {
        match self.attempt(&work) {
            Err(error) if error.is_of_the_file() => self.attempt(&work),
            result => result,
        }
    }

    /// Writes. After an error of the file nobody knows whether it was written.
    pub(crate) fn write<T, E: DatabaseFailure>(&self, work: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, E> {
        if let Some(space) = &self.space {
            space.check_place()?;
        }
        self.attempt(work)
    }

    fn attempt<T, E: DatabaseFailure>(&self, work: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, E> {
        let current = self.usable()?;
        let database = current.as_ref().ok_or_else(|| StoreError::Closed)?;
        let result = work(database);
        if result.as_ref().is_err_and(DatabaseFailure::is_of_the_file) {
            self.has_failed.store(true, Ordering::Release);
        }
        result
    }

    /// The database, opened anew if it has failed.
    fn usable(&self) -> Result<RwLockReadGuard<'_, Option<Database>>, StoreError> {
        if self.has_failed.load(Ordering::Acquire) {
            self.reopen()?;
        }
        Ok(self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whoever comes too soon after an attempt that failed is told of that; after one that succeeded, it waits.
    fn reopen(&self) -> Result<(), StoreError> {
        let mut last_attempt = self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.has_failed.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some((when, outcome)) = &*last_attempt
            && let Some(early) = REOPEN_PAUSE.checked_sub(when.elapsed())
        {
            tracing::debug!(?early, "the database is not opened again so soon");
            outcome.clone()?;
            std::thread::sleep(early);
        }
        // Everybody who works with the old one is done when this lock is had.
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // The old one holds the lock on the file.
        *current = None;
        let opened = self.open_in_place();
        let outcome = opened.as_ref().map(|_| ()).map_err(StoreError::clone);
        match &outcome {
            Ok(()) => tracing::warn!("the database was opened anew after an I/O error"),
            Err(error) => tracing::error!(%error, "the database could not be opened again"),
        }
        if let Ok(database) = opened {
            *current = Some(database);
            self.has_failed.store(false, Ordering::Release);
        }
        *last_attempt = Some((Instant::now(), outcome.clone()));
        outcome
    }

    fn open_in_place(&self) -> Result<Database, StoreError> {
        if let Some(space) = &self.space {
            space.check_place()?;
        }
        (self.open)().map_err(|error| StoreError::backend("open state.redb again", redb::Error::from(error)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use redb::StorageError;
    use redb::backends::InMemoryBackend;

    use super::*;

    /// A database, whether it can be opened, and when that was tried.
    struct Bench {
        database: StateDatabase,
        can_open: Arc<AtomicBool>,
        attempts: Arc<Mutex<Vec<Instant>>>,
    }

    impl Bench {
        fn new() -> Self {
            let create = || Database::builder().create_with_backend(InMemoryBackend::new());
            let (can_open, attempts) = (Arc::new(AtomicBool::new(true)), Arc::<Mutex<Vec<Instant>>>::default());
            let (can, tried) = (Arc::clone(&can_open), Arc::clone(&attempts));
            let open = move || {
                tried.lock().expect("the attempts").push(Instant::now());
                if can.load(Ordering::Relaxed) { create() } else { Err(StorageError::PreviousIo.into()) }
            };
            Self { database: StateDatabase::new(create().expect("a database"), open), can_open, attempts }
        }

        /// A write that finds its file failed.
        fn fail(&self) {
            let failed = self.database.write(|_| Err::<(), _>(redb::Error::PreviousIo));
            assert!(matches!(failed, Err(redb::Error::PreviousIo)), "it got as far as the database: {failed:?}");
        }

        fn read(&self) -> Result<(), redb::Error> {
            self.database.read(|_| Ok(()))
        }

        /// How many attempts there were; no two of them in quick succession.
        fn count_attempts(&self) -> usize {
            let attempts = self.attempts.lock().expect("the attempts");
            for pair in attempts.windows(2) {
                assert!(pair[1] - pair[0] >= REOPEN_PAUSE, "{:?}", pair[1] - pair[0]);
            }
            attempts.len()
        }
    }

    #[test]
    fn a_file_that_fails_again_and_again_is_opened_anew_after_a_pause_each_time() {
        let bench = Bench::new();
        for expected in 1..=4 {
            bench.fail();
            bench.read().expect("it could be opened");
            bench.read().expect("it is open");
            assert_eq!(bench.count_attempts(), expected);
        }
    }

    #[test]
    fn who_comes_soon_after_an_attempt_that_failed_is_told_of_it() {
        let bench = Bench::new();
        bench.can_open.store(false, Ordering::Relaxed);
        bench.fail();
        for _ in 0..1000 {
            bench.read().expect_err("it cannot be opened");
        }
        assert!(bench.count_attempts() >= 1);
        bench.can_open.store(true, Ordering::Relaxed);
        std::thread::sleep(REOPEN_PAUSE);
        bench.read().expect("it can be opened");
    }
}
