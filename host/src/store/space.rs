//! Whether the data folder is still the one that was opened, and has room. What is new is refused while some room is left, so
//! that what was begun can end: redb, once it meets a full disk, refuses even to read. Not here: what is written.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{stat, statvfs};

use super::StoreError;

/// Free space that only the ends of what was begun may use.
pub const STORAGE_RESERVE_BYTES: u64 = 16 << 20;

/// The room of a data folder.
#[derive(Debug)]
pub(crate) struct Space {
    directory: PathBuf,
    /// A file in it, and the device and inode that it had.
    anchor: PathBuf,
    identity: (u64, u64),
    /// Bytes that are being written.
    claimed: AtomicU64,
}

/// Room for a file that is being written, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    space: &'a Space,
    bytes: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.space.claimed.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Space {
    /// Of a folder, known by this file in it.
    pub(crate) fn new(directory: &Path, anchor: &Path) -> Result<Self, StoreError> {
        let identity = identity(anchor).map_err(|error| StoreError::backend("look at state.redb", error))?;
        let (directory, anchor) = (directory.to_owned(), anchor.to_owned());
        Ok(Self { directory, anchor, identity, claimed: AtomicU64::new(0) })
    }

    /// Whether the folder is where it was: what is written to one that was removed is lost with the process.
    pub(crate) fn check_place(&self) -> Result<(), StoreError> {
        let same = identity(&self.anchor).is_ok_and(|found| found == self.identity);
        if same { Ok(()) } else { Err(StoreError::Lost(self.directory.display().to_string())) }
    }

    /// Whether so many bytes more leave the reserve as it is.
    pub(crate) fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.check_place()?;
        let found = statvfs(&self.directory).map_err(|error| StoreError::backend("look for free space", error))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let needed = STORAGE_RESERVE_BYTES.saturating_add(self.claimed.load(Ordering::Acquire)).saturating_add(bytes);
        if free >= needed { Ok(()) } else { Err(StoreError::Full) }
    }

    /// Room for a file of so many bytes.
    pub(crate) fn claim(&self, bytes: u64) -> Result<Claim<'_>, StoreError> {
        // Claimed first, so that two do not both see the last of it.
        self.claimed.fetch_add(bytes, Ordering::AcqRel);
        let claim = Claim { space: self, bytes };
        self.check_room(0)?;
        Ok(claim)
    }
}

fn identity(path: &Path) -> rustix::io::Result<(u64, u64)> {
    let found = stat(path)?;
    Ok((found.st_dev, found.st_ino))
}
