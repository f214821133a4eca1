//! Deploying, promoting, deleting; races; tenants kept apart.

use super::*;
use crate::store::EmbeddedStore;
use crate::store::memory::MemoryStore;
use types::Digest;

fn tenant(name: &str) -> TenantId {
    name.parse().expect("a name")
}

fn function(name: &str) -> FunctionName {
    name.parse().expect("a name")
}

fn manifest(description: &str) -> Manifest {
    Manifest { description: description.to_owned(), ..Manifest::new(Digest::of(b"plugin")) }
}

fn stored(description: &str) -> StoredVersion {
    StoredVersion { created_unix_ms: 1, manifest: manifest(description) }
}

fn by() -> By<'static> {
    By { key: "key", plugin: Digest::of(b"plugin") }
}

async fn registry() -> (Registry, TenantId) {
    let registry = Registry::new(Arc::new(MemoryStore::default()));
    let acme = tenant("acme");
    registry.record_plugin(&acme, Digest::of(b"plugin"), &Default::default()).await.expect("record");
    (registry, acme)
}

#[tokio::test]
async fn uploads_and_deployments_do_not_list_what_there_is() {
    let (store, acme) = (Arc::new(MemoryStore::default()), tenant("acme"));
    let registry = Registry::new(Arc::clone(&store) as Arc<dyn Store>);
    for number in 0..20 {
        let plugin = Digest::of(format!("plugin {number}").as_bytes());
        registry.record_plugin(&acme, plugin, &Default::default()).await.expect("record");
        let deployed = function(&format!("f-{number}"));
        registry.put_version(&acme, &deployed, Manifest::new(plugin), "key").await.expect("put");
    }
    assert_eq!(store.scans(), 2, "plugins once, functions once");
}

#[tokio::test]
async fn the_first_is_live_and_later_ones_are_promoted() {
    let (registry, acme) = registry().await;
    let f = function("f");
    assert_eq!(registry.get_live(&acme, &f).await.expect_err("none").code(), "function_not_found");
    assert_eq!(registry.put_version(&acme, &f, manifest("one"), "key").await.expect("put").version, 1);
    assert_eq!(registry.put_version(&acme, &f, manifest("two"), "key").await.expect("put").version, 2);
    assert_eq!(registry.get_live(&acme, &f).await.expect("live").version, 1);
    assert_eq!(registry.promote(&acme, &f, 2, None, "key").await.expect("promote").manifest.description, "two");
    assert_eq!(registry.get_live(&acme, &f).await.expect("live").manifest.description, "two");
    registry.promote(&acme, &f, 1, None, "key").await.expect("roll back");
    assert_eq!(registry.get_live(&acme, &f).await.expect("live").manifest.description, "one");
    for version in [0, 3, u32::MAX] {
        assert_eq!(
            registry.promote(&acme, &f, version, None, "key").await.expect_err("none").code(),
            "version_not_found"
        );
        assert_eq!(registry.get_version(&acme, &f, version).await.expect_err("none").code(), "version_not_found");
    }
    let versions = registry.versions(&acme, &f).await.expect("versions");
    assert_eq!(versions.iter().map(|found| found.version).collect::<Vec<_>>(), [1, 2]);
    let listed = registry.list(&acme).await.expect("list");
    assert_eq!(listed, [FunctionInfo { function: f, live: 1, latest: 2 }]);
}

#[tokio::test]
async fn a_deleted_function_is_gone_and_its_numbers_are_not_used_again() {
    let (registry, acme) = registry().await;
    let f = function("f");
    assert_eq!(registry.delete(&acme, &f).await.expect_err("none").code(), "function_not_found");
    registry.put_version(&acme, &f, manifest("one"), "key").await.expect("put");
    registry.put_version(&acme, &f, manifest("two"), "key").await.expect("put");
    registry.delete(&acme, &f).await.expect("delete");
    assert_eq!(registry.get_live(&acme, &f).await.expect_err("gone").code(), "function_not_found");
    assert_eq!(registry.get_version(&acme, &f, 1).await.expect_err("gone").code(), "function_not_found");
    assert_eq!(registry.versions(&acme, &f).await.expect_err("gone").code(), "function_not_found");
    assert_eq!(registry.delete(&acme, &f).await.expect_err("gone").code(), "function_not_found");
    assert!(registry.list(&acme).await.expect("list").is_empty());
    assert_eq!(registry.put_version(&acme, &f, manifest("three"), "key").await.expect("put").version, 3);
    assert_eq!(registry.get_live(&acme, &f).await.expect("live").version, 3);
    assert_eq!(registry.promote(&acme, &f, 2, None, "key").await.expect_err("gone").code(), "version_not_found");
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let (registry, acme) = registry().await;
    let other = tenant("other");
    let f = function("f");
    registry.put_version(&acme, &f, manifest("acme's"), "key").await.expect("put");
    assert_eq!(registry.get_live(&other, &f).await.expect_err("not theirs").code(), "function_not_found");
    assert!(registry.list(&other).await.expect("list").is_empty());
    assert!(registry.plugins(&other).await.expect("list").is_empty());
    // The digest of another tenant's plugin is answered like one that nobody has.
    let theirs = registry.put_version(&other, &f, manifest(""), "key").await.expect_err("not theirs");
    let nobodys = Manifest::new(Digest::of(b"nobody's"));
    let nobodys = registry.put_version(&other, &f, nobodys, "key").await.expect_err("nobody's");
    assert_eq!((theirs.code(), theirs.blame()), (nobodys.code(), nobodys.blame()));
    assert_eq!(theirs.code(), "plugin_not_found");
    registry.record_plugin(&other, Digest::of(b"plugin"), &Default::default()).await.expect("record");
    registry.record_plugin(&other, Digest::of(b"plugin"), &Default::default()).await.expect("again is no error");
    assert_eq!(registry.put_version(&other, &f, manifest("other's"), "key").await.expect("put").version, 1);
    registry.delete(&other, &f).await.expect("delete");
    assert_eq!(registry.get_live(&acme, &f).await.expect("live").manifest.description, "acme's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_deploys_lose_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Arc::new(EmbeddedStore::open(folder.path()).await.expect("open"));
    let registry = Registry::new(store);
    let (acme, f) = (tenant("acme"), function("f"));
    registry.record_plugin(&acme, Digest::of(b"plugin"), &Default::default()).await.expect("record");
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let (registry, acme, f) = (registry.clone(), acme.clone(), f.clone());
            tokio::spawn(async move {
                registry.put_version(&acme, &f, manifest(&number.to_string()), "key").await.expect("put").version
            })
        })
        .collect();
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.push(task.await.expect("no panic"));
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
    let versions = registry.versions(&acme, &f).await.expect("versions");
    let mut descriptions: Vec<_> = versions.iter().map(|found| found.manifest.description.clone()).collect();
    descriptions.sort();
    assert_eq!(descriptions, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    assert!(registry.get_live(&acme, &f).await.is_ok());
}

#[tokio::test]
async fn a_number_whose_writer_died_is_passed_over() {
    let (registry, acme) = registry().await;
    let f = function("f");
    registry.put_version(&acme, &f, manifest("one"), "key").await.expect("put");
    registry.write_version(&acme, &f, &stored("orphan")).await.expect("write");
    assert_eq!(registry.get_version(&acme, &f, 2).await.expect_err("not noted").code(), "version_not_found");
    assert_eq!(registry.put_version(&acme, &f, manifest("three"), "key").await.expect("put").version, 3);
    assert_eq!(registry.get_version(&acme, &f, 3).await.expect("there").manifest.description, "three");
    assert_eq!(
        registry.promote(&acme, &f, 2, None, "key").await.expect_err("nobody was told of it").code(),
        "version_not_found"
    );
    let numbers = async || -> Vec<u32> {
        registry.versions(&acme, &f).await.expect("versions").iter().map(|found| found.version).collect()
    };
    assert_eq!(numbers().await, [1, 3], "it does not turn up with the next one");
    registry.note_version(&acme, &f, 2, by()).await.expect("its writer was only slow");
    assert_eq!(numbers().await, [1, 2, 3]);
    assert_eq!(registry.get_live(&acme, &f).await.expect("live").version, 1);
}

#[tokio::test]
async fn a_delete_between_the_steps_of_a_deploy_wins() {
    let (registry, acme) = registry().await;
    let f = function("f");
    let slow = registry.write_version(&acme, &f, &stored("slow")).await.expect("write");
    registry.put_version(&acme, &f, manifest("fast"), "key").await.expect("put");
    registry.delete(&acme, &f).await.expect("delete");
    registry.note_version(&acme, &f, slow, by()).await.expect("too late is no error");
    assert_eq!(registry.get_live(&acme, &f).await.expect_err("gone").code(), "function_not_found");
    assert_eq!(registry.put_version(&acme, &f, manifest("next"), "key").await.expect("put").version, 3);
}

#[tokio::test]
async fn a_successor_of_the_name_lives_another_life() {
    let (registry, acme) = registry().await;
    let f = function("f");
    registry.put_version(&acme, &f, manifest("one"), "key").await.expect("put");
    let second = registry.put_version(&acme, &f, manifest("two"), "key").await.expect("put");
    registry.promote(&acme, &f, 2, None, "key").await.expect("promote");
    let life = registry.get_live(&acme, &f).await.expect("live").life;
    assert_eq!((life, second.life), (1, 1), "all versions are of one life");
    let next = registry.delete(&acme, &f).await.expect("delete");
    let third = registry.put_version(&acme, &f, manifest("three"), "key").await.expect("put");
    assert_eq!((next, third.life), (3, 3));
    let cold = Registry::new(Arc::clone(&registry.store));
    for registry in [registry, cold] {
        assert_eq!(registry.get_live(&acme, &f).await.expect("live").life, next);
        assert_eq!(registry.live(&acme, &f).await.expect("live").life, next);
    }
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = || async { Registry::new(Arc::new(EmbeddedStore::open(folder.path()).await.expect("open"))) };
    let (acme, f) = (tenant("acme"), function("f"));
    let registry = open().await;
    registry.record_plugin(&acme, Digest::of(b"plugin"), &Default::default()).await.expect("record");
    let mut sent = manifest("one");
    sent.templates.insert("greet".into(), "Hello {{ name }}".into());
    sent.limits.output_tokens_max = Some(7);
    registry.put_version(&acme, &f, sent.clone(), "key").await.expect("put");
    registry.put_version(&acme, &f, manifest("two"), "key").await.expect("put");
    registry.promote(&acme, &f, 2, None, "key").await.expect("promote");
    drop(registry);
    let registry = open().await;
    assert_eq!(registry.get_live(&acme, &f).await.expect("live").version, 2);
    assert_eq!(*registry.get_version(&acme, &f, 1).await.expect("there").manifest, sent);
    assert_eq!(registry.plugins(&acme).await.expect("plugins"), [Digest::of(b"plugin")]);
}

#[tokio::test]
async fn of_two_rollbacks_at_once_one_is_refused() {
    let (registry, acme) = registry().await;
    let f = function("f");
    for description in ["one", "two", "three"] {
        let version = registry.put_version(&acme, &f, manifest(description), "deployer").await.expect("put").version;
        registry.promote(&acme, &f, version, None, "deployer").await.expect("promote");
    }
    let before = registry.live(&acme, &f).await.expect("live");
    let target = before.history.before(before.live).expect("a version was live before");
    assert_eq!((before.live, target, before.history.iter().count()), (3, 2, 3));
    let rollback = async || registry.promote(&acme, &f, target, Some(before.live), "operator").await;
    let (first, second) = tokio::join!(rollback(), rollback());
    let refused = first.err().or(second.err()).expect("one of them came too late");
    assert_eq!((refused.code(), refused.blame()), ("conflict", types::Blame::Caller));
    let after = registry.live(&acme, &f).await.expect("live");
    assert_eq!((after.live, after.history.before(after.live)), (2, Some(1)), "no version was skipped");
    let last = after.history.iter().last().expect("noted");
    assert_eq!((last.from, last.to, last.by.as_str()), (Some(3), 2, "operator"));
    assert!(last.time_unix_ms > 1_700_000_000_000);
    registry.delete(&acme, &f).await.expect("delete");
    registry.put_version(&acme, &f, manifest("four"), "deployer").await.expect("put");
    assert_eq!(registry.live(&acme, &f).await.expect("live").history.iter().count(), 1, "a new life");
}

#[tokio::test]
async fn records_of_before_there_were_times_are_read() {
    let store = Arc::new(MemoryStore::default());
    let (acme, f) = (tenant("acme"), function("f"));
    let head = Bytes::from_static(br#"{"first":1,"latest":1,"live":1}"#);
    store.swap("functions/acme/f", None, Some(head)).await.expect("written");
    let old = serde_json::to_vec(&manifest("old")).expect("json");
    store.swap(&version_key(&acme, &f, 1), None, Some(old.into())).await.expect("written");
    let registry = Registry::new(store);
    let live = registry.get_live(&acme, &f).await.expect("live");
    assert_eq!((live.manifest.description.as_str(), live.created_unix_ms), ("old", 0));
    assert_eq!(registry.live(&acme, &f).await.expect("live").history.before(1), None);
}

#[tokio::test]
async fn heads_of_before_there_were_kinds_are_read_and_go_on() {
    let store = Arc::new(MemoryStore::default());
    let (acme, f) = (tenant("acme"), function("f"));
    let head = br#"{"first":1,"latest":2,"live":2,"history":[{"from":null,"to":1,"time_unix_ms":7,"by":"one"},
        {"from":1,"to":2,"time_unix_ms":8,"by":"two"}]}"#;
    store.swap("functions/acme/f", None, Some(Bytes::from_static(head))).await.expect("written");
    let registry = Registry::new(store);
    registry.record_plugin(&acme, Digest::of(b"plugin"), &Default::default()).await.expect("record");
    for number in [1, 2] {
        let value = record("manifest", &stored("old")).expect("json");
        registry.store.swap(&version_key(&acme, &f, number), None, Some(value)).await.expect("written");
    }
    assert_eq!(registry.live(&acme, &f).await.expect("live").history.before(2), Some(1));
    registry.promote(&acme, &f, 1, Some(2), "three").await.expect("rolled back");
    let live = registry.live(&acme, &f).await.expect("live");
    let told: Vec<_> = live.changes.iter().map(|change| (change.kind, change.to, change.by.as_str())).collect();
    assert_eq!(told, [(None, 1, "one"), (None, 2, "two"), (Some(ChangeKind::Rollback), 1, "three")]);
    assert_eq!(live.changes[2].plugin, Some(Digest::of(b"plugin")));
}
