//! The redb file of a data folder: opened once, and opened anew after an I/O error, since redb refuses everything from the first
//! one on. Not here: what its tables hold.
//!
//! A transaction whose commit failed may be durable all the same. Whoever writes must be content with either outcome: a pointer's
//! version tells, and a receipt that nobody holds is recovered.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError};

use super::StoreError;
use super::space::Space;

/// Between two attempts to open a database that did not open: each may read all of it.
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
    last_attempt: Mutex<Option<(Instant, StoreError)>>,
}

impl std::fmt::Debug for StateDatabase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateDatabase").field("has_failed", &self.has_failed).finish_non_exhaustive()
    }
}

impl StateDatabase {
    /// Takes an open database whose file lies in `directory`; after an error it is opened there again, unless another file took its
    /// place.
    pub(crate) fn of_file(database: Database, directory: &Path, path: PathBuf) -> Result<Self, StoreError> {
        let space = Space::new(directory, &path)?;
        let mut database = Self::new(database, move || Database::open(&path));
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

    fn reopen(&self) -> Result<(), StoreError> {
        let mut last_attempt = self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner);
        // Everybody who works with the old one is done when this lock is had.
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if !self.has_failed.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some((when, error)) = last_attempt.as_ref().filter(|(when, _)| when.elapsed() < REOPEN_PAUSE) {
            tracing::debug!(ago = ?when.elapsed(), "the database is not opened again so soon");
            return Err(error.clone());
        }
        // The old one holds the lock on the file.
        *current = None;
        match self.open_in_place() {
            Ok(database) => {
                *current = Some(database);
                *last_attempt = None;
                self.has_failed.store(false, Ordering::Release);
                tracing::warn!("the database was opened anew after an I/O error");
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the database could not be opened again");
                *last_attempt = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn open_in_place(&self) -> Result<Database, StoreError> {
        if let Some(space) = &self.space {
            space.check_place()?;
        }
        (self.open)().map_err(|error| StoreError::backend("open state.redb again", redb::Error::from(error)))
    }
}
