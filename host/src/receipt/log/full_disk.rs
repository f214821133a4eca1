//! Tests of [`super`] on a disk that is full, and has room again.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::InMemoryBackend;
use redb::{Database, StorageBackend};

use super::tests::{started, tenant};
use super::*;
use crate::receipt::{Kind, Receipt, verify};

#[derive(Clone, Debug)]
struct Disk {
    memory: Arc<InMemoryBackend>,
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

struct Bench {
    is_full: Arc<AtomicBool>,
    folder: tempfile::TempDir,
    log: ReceiptLog,
}

impl Bench {
    fn new() -> Self {
        let is_full = Arc::new(AtomicBool::new(false));
        let disk = Disk { memory: Arc::new(InMemoryBackend::new()), is_full: Arc::clone(&is_full) };
        let open = move || Database::builder().create_with_backend(disk.clone());
        let db = Arc::new(StateDatabase::new(open().expect("database"), open));
        let folder = tempfile::tempdir().expect("folder");
        let log = ReceiptLog::open(db, ReceiptKey::open(folder.path()).expect("key"), "node-1").expect("log");
        Self { is_full, folder, log }
    }

    fn fill(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    /// The kinds of a chain that holds and has no loose end.
    fn kinds(&self) -> Vec<Kind> {
        let lines: Vec<_> = self.log.export(&tenant("a")).expect("export").map(|line| line.expect("line")).collect();
        let keys = ReceiptKey::open(self.folder.path()).expect("key").public();
        assert!(verify(lines.join("\n").as_bytes(), &keys).expect("an unbroken chain").open.is_empty());
        let receipt =
            |line: &String| -> Receipt { Envelope::parse(line.as_bytes()).expect("one").peek().expect("one") };
        lines.iter().map(|line| receipt(line).kind).collect()
    }
}

/// Longer than the pause between two attempts to open the database.
async fn wait_for_another_attempt() {
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
}

#[tokio::test]
async fn a_full_disk_shows_and_what_was_written_is_read() {
    let bench = Bench::new();
    let open = bench.log.start(started("a", "one")).await.expect("started");
    bench.log.check().await.expect("all is well");
    bench.fill(true);
    let error = bench.log.start(started("a", "two")).await.expect_err("no room, no receipt, no answer");
    assert_eq!((error.code(), error.blame()), ("storage_full", types::Blame::Capacity));
    assert!(bench.log.check().await.is_err());
    assert!(open.finish(Final::default()).await.is_err());
}

#[tokio::test]
async fn a_disk_with_room_again_is_written_without_a_restart() {
    let bench = Bench::new();
    let ended = bench.log.start(started("a", "ended while there is no room")).await.expect("started");
    let dropped = bench.log.start(started("a", "dropped while there is no room")).await.expect("started");
    let lasting = bench.log.start(started("a", "lasting")).await.expect("started");
    bench.fill(true);
    assert!(bench.log.start(started("a", "refused")).await.is_err());
    assert!(ended.finish(Final { ending: Ending::Finished, ..Final::default() }).await.is_err());
    drop(dropped);
    bench.fill(false);
    wait_for_another_attempt().await;
    bench.log.check().await.expect("there is room");
    lasting.finish(Final { ending: Ending::Finished, ..Final::default() }).await.expect("it was held all the time");
    let after = bench.log.start(started("a", "after")).await.expect("started");
    after.finish(Final { ending: Ending::Finished, ..Final::default() }).await.expect("finished");
    let started = [Kind::Started; 3];
    let rest = [Kind::Recovered, Kind::Recovered, Kind::Finished, Kind::Started, Kind::Finished];
    assert_eq!(bench.kinds(), [&started[..], &rest[..]].concat());
}
