//! Packed adapters on disk: found again, refused when they are not what was written, within their budget, each tenant's own.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::*;

const BYTES_MAX: u64 = 1 << 20;

/// Over a folder for packed files. Memory keeps nothing: what is not on lease is loaded again.
async fn over_disk(store: &Arc<MemoryStore>, folder: &Path, bytes_max: u64) -> AdapterStore {
    let disk = AdapterDisk { folder: folder.to_owned(), bytes_max, base: Digest::of(b"base") };
    over(Arc::clone(store) as Arc<dyn Store>, |config| (config.disk, config.host_bytes_max) = (Some(disk), 1)).await
}

fn packed_files(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("one").path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "packed"));
    found.sort();
    found
}

/// Files are written after the lease was given.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "not {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn settled(adapters: &AdapterStore) {
    until("written", || adapters.loads.is_idle()).await;
    adapters.memory.check_integrity();
}

/// All that the adapter is.
fn bits(adapter: &LoraAdapter) -> Vec<u8> {
    let mut bytes = Vec::new();
    adapter.image().expect("an image").write(&mut bytes, &[0; 32], Digest::of(b"")).expect("written");
    bytes
}

async fn lease(adapters: &AdapterStore, whose: &TenantId, digest: Digest) -> (bool, Vec<u8>) {
    let lease = adapters.lease(whose, digest).await.expect("a lease");
    settled(adapters).await;
    (lease.adapter().mapping().strong_count() > 0, bits(lease.adapter()))
}

/// Adds it and brings it to disk.
async fn kept(adapters: &AdapterStore, whose: &TenantId, name: &str, fill: f32) -> Digest {
    let digest = add(adapters, whose, name, fill).await.digest;
    lease(adapters, whose, digest).await;
    digest
}

#[tokio::test]
async fn what_was_packed_once_is_mapped_also_after_a_restart() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().expect("a folder"));
    let path = folder.path().join("packed");
    let acme = tenant("acme");
    let adapters = over_disk(&store, &path, BYTES_MAX).await;
    let digest = add(&adapters, &acme, "caps", 0.5).await.digest;
    let (is_mapped, first) = lease(&adapters, &acme, digest).await;
    assert!(!is_mapped);
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    let files = packed_files(&path);
    assert_eq!((files.len(), mode(&path), mode(&files[0]), mode(&path.join("mark.key"))), (1, 0o700, 0o400, 0o600));
    let bytes = fs::metadata(&files[0]).expect("there").len();
    assert_eq!(adapters.disk_stats(), AdapterDiskStats { bytes, files: 1, misses: 1, ..AdapterDiskStats::default() });

    assert!(lease(&adapters, &acme, digest).await == (true, first.clone()));
    assert_eq!(
        adapters.disk_stats(),
        AdapterDiskStats { bytes, files: 1, misses: 1, hits: 1, ..AdapterDiskStats::default() }
    );
    drop(adapters);
    let adapters = over_disk(&store, &path, BYTES_MAX).await;
    assert!(lease(&adapters, &acme, digest).await == (true, first));
    assert_eq!(adapters.disk_stats(), AdapterDiskStats { bytes, files: 1, hits: 1, ..AdapterDiskStats::default() });
    assert_eq!(packed_files(&path), files, "written once");
}

#[tokio::test]
async fn what_is_not_what_was_written_is_packed_again() {
    type Damage = fn(&Path, &Path);
    fn write(path: &Path, bytes: &[u8], mode: u32) {
        fs::remove_file(path).expect("removed");
        fs::write(path, bytes).expect("written");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
    }
    let damages: [(&str, Damage); 9] = [
        ("flipped", |path, _| {
            let mut bytes = fs::read(path).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            write(path, &bytes, 0o400);
        }),
        ("cut", |path, _| write(path, &fs::read(path).expect("read")[..100], 0o400)),
        ("empty", |path, _| write(path, b"", 0o400)),
        ("garbage", |path, _| write(path, &[0xff; 5000], 0o400)),
        ("another's", |path, other| write(path, &fs::read(other).expect("read"), 0o400)),
        ("writable", |path, _| write(path, &fs::read(path).expect("read"), 0o600)),
        ("a link", |path, other| {
            fs::remove_file(path).expect("removed");
            symlink(other, path).expect("a link");
        }),
        ("a pipe", |path, _| {
            fs::remove_file(path).expect("removed");
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).expect("a pipe");
        }),
        ("gone", |path, _| fs::remove_file(path).expect("removed")),
    ];
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().expect("a folder"));
    let acme = tenant("acme");
    let adapters = over_disk(&store, folder.path(), BYTES_MAX).await;
    let digest = add(&adapters, &acme, "caps", 0.5).await.digest;
    let (_, right) = lease(&adapters, &acme, digest).await;
    let [path] = &packed_files(folder.path())[..] else { panic!("one file") };
    let whole = fs::read(path).expect("read");
    kept(&adapters, &acme, "other", 0.25).await;
    let other = packed_files(folder.path()).into_iter().find(|found| found != path).expect("the other");
    for (number, (what, damage)) in damages.into_iter().enumerate() {
        damage(path, &other);
        assert!(lease(&adapters, &acme, digest).await == (false, right.clone()), "{what}");
        assert_eq!(adapters.disk_stats().refused, number as u64 + 1, "{what}");
        assert!(fs::symlink_metadata(path).expect("there").is_file(), "{what}: written again");
        assert!(fs::read(path).expect("read") == whole, "{what}: as it was");
        assert!(lease(&adapters, &acme, digest).await == (true, right.clone()), "{what}");
    }
    // A folder in its place cannot be removed as a file is: nothing is kept, and nothing is lost.
    fs::remove_file(path).expect("removed");
    fs::create_dir(path).expect("in the way");
    for _ in 0..2 {
        assert!(lease(&adapters, &acme, digest).await == (false, right.clone()));
    }
    assert_eq!(adapters.disk_stats().unkept, 2);
    fs::remove_dir(path).expect("removed");
    // Another key, or one that others may read: no mark is right any more.
    lease(&adapters, &acme, digest).await;
    for mode in [0o600, 0o644] {
        let key = folder.path().join("mark.key");
        if mode == 0o600 {
            fs::write(&key, b"short").expect("written")
        }
        fs::set_permissions(&key, Permissions::from_mode(mode)).expect("set");
        let adapters = over_disk(&store, folder.path(), BYTES_MAX).await;
        assert!(lease(&adapters, &acme, digest).await == (false, right.clone()));
        assert_eq!(adapters.disk_stats().refused, 1);
        assert_eq!(fs::metadata(&key).expect("there").permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn the_least_recently_used_give_way_and_none_that_is_mapped() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().expect("a folder"));
    let acme = tenant("acme");
    let one = {
        let adapters = over_disk(&store, folder.path(), BYTES_MAX).await;
        kept(&adapters, &acme, "a", 0.1).await;
        adapters.disk_stats().bytes
    };
    let adapters = over_disk(&store, folder.path(), 2 * one + one / 2).await;
    let a = adapters.resolve(&acme, "a").await.expect("resolved").expect("there");
    let b = kept(&adapters, &acme, "b", 0.2).await;
    assert!(lease(&adapters, &acme, a).await.0, "a is used after b");
    let c = kept(&adapters, &acme, "c", 0.3).await;
    let stats = adapters.disk_stats();
    assert_eq!((stats.evicted, stats.bytes, packed_files(folder.path()).len()), (1, 2 * one, 2));
    let on_lease = adapters.lease(&acme, a).await.expect("a lease");
    assert!(on_lease.adapter().mapping().upgrade().is_some(), "a stayed");
    let right = bits(on_lease.adapter());

    // c is younger than a by now, but a is mapped.
    assert!(!lease(&adapters, &acme, b).await.0, "b went");
    assert!(!lease(&adapters, &acme, c).await.0, "c went for b");
    assert_eq!((adapters.disk_stats().evicted, adapters.disk_stats().bytes), (3, 2 * one));
    let c_on_lease = adapters.lease(&acme, c).await.expect("a lease");
    assert!(!lease(&adapters, &acme, b).await.0, "all others are mapped");
    assert_eq!((adapters.disk_stats().unkept, adapters.disk_stats().bytes), (1, 2 * one));
    drop(c_on_lease);
    settled(&adapters).await;
    lease(&adapters, &acme, b).await;
    assert!(lease(&adapters, &acme, b).await.0);

    // A mapped file that is removed all the same lives on.
    for path in packed_files(folder.path()) {
        fs::remove_file(path).expect("removed");
    }
    assert!(bits(on_lease.adapter()) == right);
    // One that is larger than the budget costs no other its place.
    let small = over_disk(&store, &folder.path().join("small"), one - 1).await;
    lease(&small, &acme, a).await;
    assert_eq!((small.disk_stats().unkept, small.disk_stats().bytes), (1, 0));
}

#[tokio::test]
async fn a_start_removes_what_is_of_no_use_and_keeps_the_order_of_use() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().expect("a folder"));
    let acme = tenant("acme");
    let adapters = over_disk(&store, folder.path(), BYTES_MAX).await;
    let (mut digests, mut files) = (Vec::new(), Vec::new());
    for (name, fill) in [("a", 0.1), ("b", 0.2), ("c", 0.3)] {
        digests.push(kept(&adapters, &acme, name, fill).await);
        files.push(packed_files(folder.path()).into_iter().find(|path| !files.contains(path)).expect("a new one"));
    }
    let bytes = adapters.disk_stats().bytes;
    drop(adapters);
    // The order of use is that of the times of the files: b, c, a.
    for (age, file) in [(1, &files[0]), (3, &files[1]), (2, &files[2])] {
        let time = SystemTime::now() - Duration::from_secs(100 * age);
        fs::File::open(file).and_then(|file| file.set_modified(time)).expect("set");
    }
    let name = files[0].file_name().expect("a name").to_string_lossy().into_owned();
    let (adapter, rest) = name.split_once('-').expect("three parts");
    let (of, layout) = rest.split_once('-').expect("three parts");
    let left = [
        ".staged-Ab12Cd".to_owned(),
        name.replace(layout, "0123456789abcdef.packed"),
        format!("{adapter}-{}-{layout}", "g".repeat(64)),
        format!("{of}-{layout}"),
        format!("{of}.packed"),
    ];
    left.iter().for_each(|name| fs::write(folder.path().join(name), b"left").expect("written"));
    let link = folder.path().join(format!("{adapter}-{}-{layout}", "0".repeat(64)));
    symlink(&files[0], &link).expect("a link");
    fs::write(folder.path().join("notes.txt"), b"not ours").expect("written");

    let adapters = over_disk(&store, folder.path(), bytes * 2 / 3).await;
    assert_eq!(packed_files(folder.path()), {
        let mut two = [files[0].clone(), files[2].clone()];
        two.sort();
        two
    });
    assert_eq!((adapters.disk_stats().bytes, adapters.disk_stats().evicted), (bytes * 2 / 3, 1));
    assert!(left.iter().all(|name| !folder.path().join(name).exists()));
    assert!(fs::symlink_metadata(&link).is_err(), "the link is gone");
    assert!(files[0].exists() && folder.path().join("notes.txt").exists(), "and nothing else");
    assert!(lease(&adapters, &acme, digests[0]).await.0);

    // Another precision is another layout.
    let disk = AdapterDisk { folder: folder.path().to_owned(), bytes_max: BYTES_MAX, base: Digest::of(b"base") };
    let other = over(Arc::clone(&store) as Arc<dyn Store>, |config| {
        (config.disk, config.precision) = (Some(disk), Precision::F32);
    });
    assert_eq!((other.await.disk_stats().bytes, packed_files(folder.path()).len()), (0, 0));
}

#[tokio::test]
async fn a_disk_that_is_full_or_gone_loses_nothing() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().expect("a folder"));
    let acme = tenant("acme");
    let path = folder.path().join("packed");
    let mut adapters = over_disk(&store, &path, BYTES_MAX).await;
    let disk = adapters.disk.as_mut().and_then(Arc::get_mut).expect("nobody else has it");
    disk.free_bytes_min = u64::MAX;
    let digest = add(&adapters, &acme, "caps", 0.5).await.digest;
    let (_, right) = lease(&adapters, &acme, digest).await;
    assert!(lease(&adapters, &acme, digest).await == (false, right.clone()));
    assert_eq!(adapters.disk_stats(), AdapterDiskStats { misses: 2, unkept: 2, ..AdapterDiskStats::default() });
    assert_eq!(fs::read_dir(&path).expect("a folder").count(), 1, "the key alone");

    let adapters = over_disk(&store, &path, BYTES_MAX).await;
    lease(&adapters, &acme, digest).await;
    fs::remove_dir_all(&path).expect("removed");
    assert!(lease(&adapters, &acme, digest).await == (false, right));
    assert_eq!((adapters.disk_stats().unkept, adapters.disk_stats().bytes), (1, 0));

    fs::write(&path, b"a file in its place").expect("written");
    let disk = AdapterDisk { folder: path, bytes_max: BYTES_MAX, base: Digest::of(b"base") };
    let config = AdapterStoreConfig { disk: Some(disk), ..AdapterStoreConfig::new(Arc::new(base())) };
    let revocations = Revocations::open(store.clone()).await.expect("revocations");
    let error = AdapterStore::new(store.clone(), Artifacts::new(store), revocations, config).await;
    assert_eq!(error.expect_err("no folder").code(), "invalid_adapter_disk");
}

#[tokio::test]
async fn each_tenant_has_files_of_its_own() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().expect("a folder"));
    let adapters = over_disk(&store, folder.path(), BYTES_MAX).await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let digest = kept(&adapters, &acme, "caps", 0.5).await;
    assert_eq!(add(&adapters, &other, "caps", 0.5).await.digest, digest);
    // Whether another has it shows neither in what is done nor in what is kept.
    assert!(!lease(&adapters, &other, digest).await.0);
    assert_eq!((adapters.disk_stats().hits, adapters.disk_stats().misses), (0, 2));
    let files = packed_files(folder.path());
    assert_eq!(files.len(), 2);
    // Nor can one's file stand for the other's.
    let bytes = fs::read(&files[0]).expect("read");
    fs::remove_file(&files[1]).expect("removed");
    fs::write(&files[1], bytes).expect("written");
    fs::set_permissions(&files[1], Permissions::from_mode(0o400)).expect("set");
    let mapped = [lease(&adapters, &acme, digest).await.0, lease(&adapters, &other, digest).await.0];
    assert_eq!((mapped.iter().filter(|mapped| **mapped).count(), adapters.disk_stats().refused), (1, 1));

    adapters.remove(&acme, &alias("caps")).await.expect("removed");
    assert_eq!(packed_files(folder.path()).len(), 1, "the file goes with the right to it");
    assert!(lease(&adapters, &other, digest).await.0);
    adapters.remove(&other, &alias("caps")).await.expect("removed");
    assert_eq!((packed_files(folder.path()).len(), adapters.disk_stats().bytes), (0, 0));
}

#[tokio::test]
async fn what_was_revoked_leaves_no_file_whoever_had_it() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().expect("a folder"));
    let adapters = over_disk(&store, folder.path(), BYTES_MAX).await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let bad = kept(&adapters, &acme, "bad", 0.5).await;
    assert_eq!(kept(&adapters, &other, "same", 0.5).await, bad);
    let good = kept(&adapters, &acme, "good", 0.25).await;
    assert_eq!(packed_files(folder.path()).len(), 3);
    adapters.revocations.add(bad, "it leaks", "key").await.expect("revoked");
    // The host ends here: the next one does what was left to do.
    let adapters = over_disk(&store, folder.path(), BYTES_MAX).await;
    assert_eq!(packed_files(folder.path()).len(), 1);
    assert!(lease(&adapters, &acme, good).await.0, "the other one stayed");
    adapters.revocations.add(good, "it leaks, too", "key").await.expect("revoked");
    adapters.evict(good).await.expect("evicted");
    assert_eq!((packed_files(folder.path()).len(), adapters.disk_stats().bytes), (0, 0));
    assert_eq!(adapters.lease(&acme, good).await.expect_err("revoked").code(), "revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_who_ask_at_once_share_one_load_and_one_file() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().expect("a folder"));
    let disk = AdapterDisk { folder: folder.path().to_owned(), bytes_max: BYTES_MAX, base: Digest::of(b"base") };
    let open = || async { over(Arc::clone(&store) as Arc<dyn Store>, |config| config.disk = Some(disk.clone())).await };
    let acme = tenant("acme");
    let mut digests = Vec::new();
    let adapters = Arc::new(open().await);
    for (name, fill) in [("a", 0.1), ("b", 0.2), ("c", 0.3)] {
        digests.push(add(&adapters, &acme, name, fill).await.digest);
    }
    for round in 0..2 {
        let adapters = Arc::new(open().await);
        let asking: Vec<_> = (0..48)
            .map(|number| {
                let (adapters, acme, digest) = (Arc::clone(&adapters), acme.clone(), digests[number % 3]);
                tokio::spawn(async move { bits(adapters.lease(&acme, digest).await.expect("a lease").adapter()) })
            })
            .collect();
        let mut answers = Vec::new();
        for asked in asking {
            answers.push(asked.await.expect("an answer"));
        }
        assert!((3..48).all(|number| answers[number] == answers[number % 3]));
        settled(&adapters).await;
        let stats = adapters.disk_stats();
        assert_eq!((stats.misses, stats.hits), if round == 0 { (3, 0) } else { (0, 3) });
        assert_eq!(packed_files(folder.path()).len(), 3);
    }
}
