//! What every [`Store`] must do. Each implementation calls [`run`] on an empty store.

use std::sync::Arc;

use bytes::Bytes;

use super::{BLOB_BYTES_MAX, BlobWrite, POINTER_BYTES_MAX, Store, StoreError};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The whole suite.
pub(crate) async fn run(store: Arc<dyn Store>) {
    blobs_are_kept(&*store).await;
    pointers_are_swapped(&*store).await;
    a_version_never_returns(&*store).await;
    scans_are_ordered_and_bounded_by_their_prefix(&*store).await;
    names_and_sizes_are_checked(&*store).await;
    swaps_race_and_none_is_lost(store).await;
}

async fn blobs_are_kept(store: &dyn Store) {
    assert_eq!(store.get_blob("kind/ab/none").await.expect("get"), None);
    store.put_blob("kind/ab/one", bytes("1"), BlobWrite::Keep).await.expect("put");
    assert_eq!(store.get_blob("kind/ab/one").await.expect("get"), Some(bytes("1")));
    store.put_blob("kind/ab/one", bytes("2"), BlobWrite::Keep).await.expect("the first stays");
    assert_eq!(store.get_blob("kind/ab/one").await.expect("get"), Some(bytes("1")));
    store.put_blob("kind/ab/one", bytes("3"), BlobWrite::Replace).await.expect("repair");
    assert_eq!(store.get_blob("kind/ab/one").await.expect("get"), Some(bytes("3")));
    store.put_blob("kind/ab/empty", Bytes::new(), BlobWrite::Keep).await.expect("put");
    assert_eq!(store.get_blob("kind/ab/empty").await.expect("get"), Some(Bytes::new()));
}

async fn pointers_are_swapped(store: &dyn Store) {
    assert_eq!(store.get("p/x").await.expect("get"), None);
    let first = store.swap("p/x", None, Some(bytes("1"))).await.expect("create");
    assert_eq!(store.get("p/x").await.expect("get"), Some((bytes("1"), first)));
    let again = store.swap("p/x", None, Some(bytes("2"))).await;
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "{again:?}");
    let second = store.swap("p/x", Some(first), Some(bytes("2"))).await.expect("replace");
    for stale in [None, Some(bytes("3"))] {
        let swapped = store.swap("p/x", Some(first), stale).await;
        assert!(matches!(swapped, Err(StoreError::Conflict { .. })), "{swapped:?}");
    }
    assert_eq!(store.get("p/x").await.expect("get"), Some((bytes("2"), second)));
    store.swap("p/x", Some(second), None).await.expect("remove");
    assert_eq!(store.get("p/x").await.expect("get"), None);
    let removed = store.swap("p/x", Some(second), None).await;
    assert!(matches!(removed, Err(StoreError::Conflict { .. })), "{removed:?}");
}

async fn a_version_never_returns(store: &dyn Store) {
    let first = store.swap("p/aba", None, Some(bytes("1"))).await.expect("create");
    store.swap("p/aba", Some(first), None).await.expect("remove");
    let second = store.swap("p/aba", None, Some(bytes("1"))).await.expect("create again");
    assert_ne!(first, second);
    assert!(store.swap("p/aba", Some(first), Some(bytes("2"))).await.is_err());
    store.swap("p/aba", Some(second), None).await.expect("remove");
}

async fn scans_are_ordered_and_bounded_by_their_prefix(store: &dyn Store) {
    for key in ["s/b/2", "s/a/1", "s/b/1", "s/bb/1", "t"] {
        store.swap(key, None, Some(bytes(key))).await.expect("create");
    }
    let keys = |found: Vec<super::Pointer>| found.into_iter().map(|pointer| pointer.key).collect::<Vec<_>>();
    assert_eq!(keys(store.scan("s/b/").await.expect("scan")), ["s/b/1", "s/b/2"]);
    assert_eq!(keys(store.scan("s/").await.expect("scan")), ["s/a/1", "s/b/1", "s/b/2", "s/bb/1"]);
    assert_eq!(keys(store.scan("s/c/").await.expect("scan")), Vec::<String>::new());
    let found = store.scan("s/a/").await.expect("scan");
    let one = found.first().expect("one");
    assert_eq!(store.get("s/a/1").await.expect("get"), Some((one.value.clone(), one.version)));
}

async fn names_and_sizes_are_checked(store: &dyn Store) {
    for bad in ["", "/a", "a//b", "a/../b", "..", "a/", "a b", "a#1", &"x".repeat(513)] {
        let error = store.put_blob(bad, Bytes::new(), BlobWrite::Keep).await.expect_err(bad);
        assert!(matches!(error, StoreError::BadKey(_)), "{error:?}");
        let error = store.get_blob(bad).await.expect_err(bad);
        assert!(matches!(error, StoreError::BadKey(_)), "{error:?}");
        let error = store.swap(bad, None, Some(Bytes::new())).await.expect_err(bad);
        assert!(matches!(error, StoreError::BadKey(_)), "{error:?}");
    }
    let error = store.swap("p/big", None, Some(vec![0; POINTER_BYTES_MAX + 1].into())).await.expect_err("too large");
    assert_eq!(error.code(), "limit_exceeded");
    assert!(super::check_blob_bytes(BLOB_BYTES_MAX + 1).is_err());
}

async fn swaps_race_and_none_is_lost(store: Arc<dyn Store>) {
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..5 {
                    while !add_one(&*store).await {}
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let (value, _) = store.get("p/count").await.expect("get").expect("there");
    assert_eq!(value, bytes("20"));
}

async fn add_one(store: &dyn Store) -> bool {
    let found = store.get("p/count").await.expect("get");
    let (count, version) = match &found {
        Some((value, version)) => {
            (std::str::from_utf8(value).expect("text").parse().expect("a number"), Some(*version))
        }
        None => (0_u32, None),
    };
    match store.swap("p/count", version, Some(bytes(&(count + 1).to_string()))).await {
        Ok(_) => true,
        Err(StoreError::Conflict { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}
