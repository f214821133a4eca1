//! Tests of [`super`] on a disk that is full.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::tests::{started, tenant};
use super::*;

#[derive(Debug)]
struct Disk {
    memory: InMemoryBackend,
    is_full: Arc<AtomicBool>,
}

impl Disk {
    fn room(&self) -> io::Result<()> {
        if self.is_full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.memory.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_shows() {
    let is_full = Arc::new(AtomicBool::new(false));
    let disk = Disk { memory: InMemoryBackend::new(), is_full: Arc::clone(&is_full) };
    let db = Arc::new(Database::builder().create_with_backend(disk).expect("database"));
    let folder = tempfile::tempdir().expect("folder");
    let log = ReceiptLog::open(db, ReceiptKey::open(folder.path()).expect("key"), "node-1").expect("log");
    let open = log.start(started("a", "one")).await.expect("started");
    assert!(!log.is_failing());
    is_full.store(true, Ordering::Relaxed);
    let error = log.start(started("a", "two")).await.expect_err("no room, no receipt, no answer");
    assert_eq!(error.code(), "receipts_unavailable");
    assert!(log.is_failing());
    assert!(open.finish(Final::default()).await.is_err());
    assert_eq!(log.list(&tenant("a"), 0, 10).map(|records| records.len()).unwrap_or(1), 1);
}
