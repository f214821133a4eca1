//! How many recordings are kept, whose, and for how long. Not here: what is in one.

use plugin::PluginLimits;
use tempfile::TempDir;
use types::Digest;

use super::*;
use crate::logs::{Cursor, FunctionLogs, LogLimits, LogOwner};
use crate::store::EmbeddedStore;

struct Setup {
    recordings: Recordings,
    logs: FunctionLogs,
    folder: TempDir,
}

fn limits() -> RecordingLimits {
    RecordingLimits { function_bytes_max: 1 << 20, ..RecordingLimits::default() }
}

async fn open(folder: TempDir, limits: RecordingLimits) -> Setup {
    let store = EmbeddedStore::open(folder.path()).await.expect("a store");
    let recordings = Recordings::open(store.database(), limits).expect("recordings");
    Setup { recordings, logs: FunctionLogs::new(LogLimits::default()), folder }
}

async fn setup(limits: RecordingLimits) -> Setup {
    open(tempfile::tempdir().expect("a folder"), limits).await
}

fn owner(tenant: &str, function: &str, life: u32) -> RecordingOwner {
    RecordingOwner { tenant: tenant.parse().expect("a name"), function: function.parse().expect("a name"), life }
}

impl Setup {
    /// As an instance that was begun and ended without a call would leave it, with so many bytes of configuration.
    fn record(&self, owner: &RecordingOwner, request: &str, count_max: u32, bytes: usize) {
        let head = RecordingHead {
            request: request.into(),
            function: owner.function.to_string(),
            version: 1,
            plugin: Digest::of(b"").to_string(),
            time_unix_ms: 1,
        };
        let log_owner = LogOwner::new(&owner.tenant, &owner.function, owner.life);
        let log = self.logs.invocation(log_owner, 1, request);
        let recorder = self.recordings.recorder(owner.clone(), head, count_max, log);
        recorder.begin(7, &[("padding".into(), "x".repeat(bytes))], &PluginLimits::default());
    }

    async fn requests(&self, owner: &RecordingOwner) -> Vec<String> {
        let listed = self.recordings.list(owner.clone(), 1000).await.expect("a list");
        listed.into_iter().map(|card| card.request).collect()
    }

    fn held_bytes(&self, tenant: &str) -> u64 {
        let of_tenant = |database: &redb::Database| tables::held_bytes(database, tenant);
        self.recordings.shared.database.read(of_tenant).expect("read")
    }
}

#[tokio::test]
async fn the_newest_are_kept_and_found_by_request() {
    let setup = setup(limits()).await;
    let (own, others) = (owner("one", "f", 1), owner("two", "f", 1));
    for number in 0..5 {
        setup.record(&own, &format!("req_{number}"), 3, 10);
        setup.record(&others, &format!("req_{number}"), 1, 10);
    }
    assert_eq!(setup.requests(&own).await, ["req_4", "req_3", "req_2"]);
    assert_eq!(setup.requests(&others).await, ["req_4"]);
    assert!(setup.requests(&owner("one", "g", 1)).await.is_empty());
    let found = setup.recordings.of_request(&own.tenant, "req_3").await.expect("read");
    assert_eq!(found.len(), 1);
    let read = plugin::Recording::read_all(&found[0].1).expect("a recording");
    assert_eq!((read[0].head.request.as_str(), found[0].0.bytes), ("req_3", found[0].1.len() as u64));
    assert!(setup.recordings.of_request(&own.tenant, "req_1").await.expect("read").is_empty(), "it went");
    assert!(setup.recordings.of_request(&others.tenant, "req_3").await.expect("read").is_empty());
}

#[tokio::test]
async fn bytes_of_a_function_and_of_a_tenant_are_bounded_by_the_oldest() {
    let limits = RecordingLimits { function_bytes_max: 40_000, tenant_bytes_max: 60_000, ..limits() };
    let setup = setup(limits).await;
    let (first, second) = (owner("one", "first", 1), owner("one", "second", 1));
    for number in 0..6 {
        setup.record(&first, &format!("a{number}"), 100, 10_000);
    }
    assert_eq!(setup.requests(&first).await, ["a5", "a4", "a3"], "40,000 bytes hold three and their heads");
    for number in 0..4 {
        setup.record(&second, &format!("b{number}"), 100, 10_000);
    }
    assert_eq!(setup.requests(&second).await, ["b3", "b2", "b1"]);
    assert_eq!(setup.requests(&first).await.len(), 2, "the tenant's oldest made room");
    assert!(setup.held_bytes("one") <= 60_000, "{}", setup.held_bytes("one"));
    setup.record(&second, "large", 100, 100_000);
    assert_eq!(setup.requests(&second).await, ["large"], "the last one stays");
    for function in [&first, &second] {
        setup.recordings.remove_function(&function.tenant, &function.function, 2).await.expect("removed");
    }
    assert_eq!(setup.held_bytes("one"), 0, "what was counted in was counted out");
}

#[tokio::test]
async fn they_go_with_their_function_and_a_successor_has_its_own() {
    let setup = setup(limits()).await;
    let (old, new) = (owner("one", "f", 1), owner("one", "f", 5));
    for number in 0..100 {
        setup.record(&old, &format!("old{number}"), 1000, 10);
    }
    setup.record(&new, "new", 10, 10);
    setup.record(&owner("one", "f2", 1), "other", 10, 10);
    setup.recordings.remove_function(&old.tenant, &old.function, 5).await.expect("removed");
    assert!(setup.requests(&old).await.is_empty());
    setup.record(&old, "late", 10, 10);
    assert!(setup.requests(&old).await.is_empty(), "of a request that outlived its function");
    assert_eq!(setup.requests(&new).await, ["new"]);
    assert_eq!(setup.requests(&owner("one", "f2", 1)).await, ["other"]);
}

#[tokio::test]
async fn they_outlive_the_host_and_after_its_end_nothing_is_taken() {
    let first = setup(limits()).await;
    let own = owner("one", "f", 1);
    first.record(&own, "req", 10, 10);
    first.recordings.close();
    first.record(&own, "late", 10, 10);
    assert_eq!(first.recordings.dropped(), 1);
    let Setup { recordings, folder, .. } = first;
    drop(recordings);
    let second = open(folder, limits()).await;
    assert_eq!(second.requests(&own).await, ["req"]);
}

#[tokio::test]
async fn what_finds_no_room_is_dropped_and_the_function_s_log_says_so() {
    let setup = setup(RecordingLimits { memory_bytes_max: 3000, recording_bytes_max: 3000, ..limits() }).await;
    let own = owner("one", "f", 1);
    setup.record(&own, "large", 10, 10_000);
    assert!(setup.requests(&own).await.is_empty(), "not even its head fits");
    let small = RecordingLimits { memory_bytes_max: 20_000, queue_max: 64, ..limits() };
    let setup = self::setup(small).await;
    setup.record(&own, "small", 10, 10_000);
    assert_eq!(setup.requests(&own).await, ["small"]);
    setup.record(&own, "again", 10, 10_000);
    assert_eq!(setup.requests(&own).await, ["again", "small"], "what is written takes no memory");
}

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_the_recording_and_it_is_said() {
    let setup = setup(limits()).await;
    let own = owner("one", "f", 1);
    setup.record(&own, "written", 10, 10);
    setup.recordings.flush().await;
    assert_eq!(setup.recordings.dropped(), 0);
    // A folder that is gone takes as little as a full one, and is easier to come by.
    std::fs::remove_dir_all(setup.folder.path()).expect("removed");
    setup.record(&own, "lost", 10, 10);
    setup.recordings.flush().await;
    assert_eq!(setup.recordings.dropped(), 1);
    let log = setup.logs.read(&LogOwner::new(&own.tenant, &own.function, own.life), Cursor::default(), 10);
    let said: Vec<(&str, &str)> = log.lines.iter().map(|line| (&*line.request_id, line.message.as_str())).collect();
    assert_eq!(said, [("lost", "the recording was dropped: the host could not write it")]);
}
