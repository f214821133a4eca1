//! Buckets: what is kept, what is told apart, what is bounded, and that nothing is counted that is not there.

use redb::backends::InMemoryBackend;

use super::*;

fn store(limits: KeyValueLimits) -> KeyValues {
    let create = || Database::builder().create_with_backend(InMemoryBackend::new());
    KeyValues::new(Arc::new(StateDatabase::new(create().expect("a database"), create)), limits)
}

fn tenant_bucket(tenant: &str, bucket: &str) -> BucketPlace {
    BucketPlace::of_tenant(tenant.parse().expect("a tenant"), bucket.parse().expect("a bucket"))
}

fn own_bucket(tenant: &str, function: &str, life: u32, bucket: &str) -> BucketPlace {
    let (tenant, bucket) = (tenant.parse().expect("a tenant"), bucket.parse().expect("a bucket"));
    BucketPlace::of_function(tenant, &function.parse().expect("a function"), life, bucket)
}

async fn set(store: &KeyValues, place: &BucketPlace, key: &str, value: &str) -> Answer<Written> {
    store.write(place, key, Expected::Any, Some(Bytes::copy_from_slice(value.as_bytes()))).await
}

async fn value(store: &KeyValues, place: &BucketPlace, key: &str) -> Option<String> {
    let found = store.get(place, key).await.expect("a read")?;
    Some(String::from_utf8(found.value.to_vec()).expect("text"))
}

/// What the tenant is told to hold, and what it holds.
async fn conserved(store: &KeyValues, tenant: &str) -> (u64, u64) {
    let buckets = store.buckets(&tenant.parse().expect("a tenant")).await.expect("a list");
    let told = buckets.iter().fold((0, 0), |sum, bucket| (sum.0 + bucket.keys, sum.1 + bucket.bytes));
    let owner = tenant.to_owned();
    let held = store.read(move |database| {
        let values = match database.begin_read()?.open_table(VALUES) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(Ok((0, 0, (0, 0)))),
            values => values?,
        };
        let (mut keys, mut bytes) = (0, 0);
        for entry in values.iter()? {
            let (key, value) = entry?;
            if key.value().0 == owner {
                keys += 1;
                bytes += entry_bytes(key.value().3, value.value().1.len());
            }
        }
        let tenants = database.begin_read()?.open_table(TENANTS)?;
        let in_all = tenants.get(owner.as_str())?.map_or((0, 0), |held| held.value());
        Ok(Ok((keys, bytes, in_all)))
    });
    let (keys, bytes, in_all) = held.await.expect("a read");
    assert_eq!(told, (keys, bytes), "the buckets' counts");
    assert_eq!(in_all, (buckets.len() as u64, bytes), "the tenant's counts");
    told
}

#[tokio::test]
async fn what_is_written_is_read_and_removed() {
    let store = store(KeyValueLimits::default());
    let place = tenant_bucket("acme", "b");
    assert_eq!(value(&store, &place, "k").await, None);
    assert_eq!(set(&store, &place, "k", "one").await.expect("written"), Written::Done(Some(1)));
    assert_eq!(set(&store, &place, "k", "two").await.expect("written"), Written::Done(Some(2)));
    assert_eq!(value(&store, &place, "k").await.as_deref(), Some("two"));
    assert_eq!(conserved(&store, "acme").await, (1, ENTRY_BYTES as u64 + 4));
    assert_eq!(store.write(&place, "k", Expected::Any, None).await.expect("removed"), Written::Done(None));
    assert_eq!(store.write(&place, "k", Expected::Any, None).await.expect("again"), Written::Done(None));
    assert_eq!(value(&store, &place, "k").await, None);
    assert_eq!(conserved(&store, "acme").await, (0, 0));
    for key in ["ключ", "a/b", "a b", " ", "\u{1}", &"k".repeat(512)] {
        set(&store, &place, key, "").await.expect(key);
        assert_eq!(value(&store, &place, key).await.as_deref(), Some(""), "{key}");
    }
}

#[tokio::test]
async fn a_swap_sees_every_change_a_removal_too() {
    let store = store(KeyValueLimits::default());
    let place = tenant_bucket("acme", "b");
    let swap = async |expected, value: Option<&'static str>| {
        let value = value.map(|value| Bytes::from_static(value.as_bytes()));
        store.write(&place, "k", expected, value).await.expect("no error")
    };
    assert_eq!(swap(Expected::Version(1), Some("x")).await, Written::Changed(None));
    assert_eq!(swap(Expected::Absent, Some("one")).await, Written::Done(Some(1)));
    assert_eq!(swap(Expected::Absent, Some("two")).await, Written::Changed(Some(1)));
    assert_eq!(swap(Expected::Version(1), Some("two")).await, Written::Done(Some(2)));
    assert_eq!(swap(Expected::Version(1), None).await, Written::Changed(Some(2)));
    assert_eq!(swap(Expected::Version(2), None).await, Written::Done(None));
    // The same value in another life of the key is another state.
    assert_eq!(swap(Expected::Absent, Some("two")).await, Written::Done(Some(3)));
    assert_eq!(swap(Expected::Version(2), Some("old")).await, Written::Changed(Some(3)));
    assert_eq!(value(&store, &place, "k").await.as_deref(), Some("two"));
}

#[tokio::test]
async fn of_many_who_swap_at_once_one_wins_each_round() {
    let store = store(KeyValueLimits::default());
    let place = tenant_bucket("acme", "count");
    let add = async || {
        for _ in 0..20 {
            loop {
                let found = store.get(&place, "n").await.expect("a read");
                let (number, expected) = match &found {
                    None => (0, Expected::Absent),
                    Some(found) => {
                        let text = std::str::from_utf8(&found.value).expect("text");
                        (text.parse::<u32>().expect("a number"), Expected::Version(found.version))
                    }
                };
                let next = Bytes::from((number + 1).to_string());
                if let Written::Done(_) = store.write(&place, "n", expected, Some(next)).await.expect("no error") {
                    break;
                }
            }
        }
    };
    tokio::join!(add(), add(), add(), add());
    assert_eq!(value(&store, &place, "n").await.as_deref(), Some("80"));
}

#[tokio::test]
async fn buckets_of_one_name_are_others_to_others() {
    let store = store(KeyValueLimits::default());
    let places = [
        tenant_bucket("acme", "b"),
        tenant_bucket("beta", "b"),
        tenant_bucket("acme", "b2"),
        own_bucket("acme", "f", 1, "b"),
        own_bucket("acme", "f", 2, "b"),
        own_bucket("acme", "f2", 1, "b"),
        own_bucket("beta", "f", 1, "b"),
    ];
    for (number, place) in places.iter().enumerate() {
        assert_eq!(value(&store, place, "k").await, None, "{place:?}");
        set(&store, place, "k", &number.to_string()).await.expect("written");
    }
    for (number, place) in places.iter().enumerate() {
        assert_eq!(value(&store, place, "k").await, Some(number.to_string()), "{place:?}");
        let page = store.keys(place, None, 10).await.expect("a page");
        assert_eq!((page.keys.len(), page.has_more), (1, false), "{place:?}");
    }
    conserved(&store, "acme").await;
    let function = "f".parse().expect("a function");
    let acme = "acme".parse().expect("a tenant");
    store.remove_function(&acme, &function, 1).await.expect("nothing");
    assert_eq!(conserved(&store, "acme").await.0, 5, "lives from this one on stay");
    store.remove_function(&acme, &function, 3).await.expect("removed");
    let left: Vec<bool> = {
        let mut left = Vec::new();
        for place in &places {
            left.push(value(&store, place, "k").await.is_some());
        }
        left
    };
    assert_eq!(left, [true, true, true, false, false, true, true]);
    let late = set(&store, &own_bucket("acme", "f", 2, "b"), "k", "late").await;
    assert!(matches!(late, Err(KeyValueError::Gone)), "by a request that outlives its function: {late:?}");
    let successor = own_bucket("acme", "f", 3, "b");
    set(&store, &successor, "k", "new").await.expect("a successor writes");
    assert_eq!(store.remove_bucket(&successor).await.expect("removed"), 1);
    assert_eq!(conserved(&store, "acme").await.0, 3);
    assert_eq!(conserved(&store, "beta").await.0, 2);
    assert_eq!(store.remove_bucket(&places[0]).await.expect("removed"), 1);
    assert_eq!(value(&store, &places[2], "k").await.as_deref(), Some("2"));
    assert_eq!(conserved(&store, "acme").await.0, 2);
}

#[tokio::test]
async fn keys_come_in_pages() {
    let store = store(KeyValueLimits { page_keys_max: 4, ..KeyValueLimits::default() });
    let place = tenant_bucket("acme", "b");
    for number in 0..10 {
        set(&store, &place, &format!("k{number}"), "").await.expect("written");
    }
    set(&store, &tenant_bucket("acme", "c"), "other", "").await.expect("written");
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = store.keys(&place, after.as_deref(), usize::MAX).await.expect("a page");
        assert!(page.keys.len() <= 4);
        all.extend(page.keys);
        after = all.last().cloned();
        if !page.has_more {
            break;
        }
    }
    assert_eq!(all, (0..10).map(|number| format!("k{number}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_over_a_limit_is_refused_and_changes_nothing() {
    let limits = KeyValueLimits {
        key_bytes_max: 8,
        value_bytes_max: 16,
        bucket_keys_max: 2,
        tenant_buckets_max: 2,
        tenant_bytes_max: 38 + 3 * ENTRY_BYTES as u64,
        page_keys_max: 10,
    };
    let store = store(limits);
    let place = tenant_bucket("acme", "b");
    let refused = async |place: &BucketPlace, key: &str, value: &str, limit: &str| {
        let error = set(&store, place, key, value).await.expect_err(limit);
        assert_eq!(error.code(), "limit_exceeded", "{error}");
        assert!(error.to_string().contains(limit), "{error}");
        conserved(&store, "acme").await;
    };
    refused(&place, "123456789", "", "kv_key_bytes_max").await;
    refused(&place, "k", "12345678901234567", "kv_value_bytes_max").await;
    for bad in ["", "a\0b"] {
        assert_eq!(set(&store, &place, bad, "").await.expect_err("bad").code(), "invalid_request");
    }
    set(&store, &place, "a", "1234567890").await.expect("written");
    set(&store, &place, "b", "1234567890").await.expect("written");
    refused(&place, "c", "", "kv_bucket_keys_max").await;
    set(&store, &tenant_bucket("acme", "c"), "a", "1234567890").await.expect("written");
    refused(&tenant_bucket("acme", "d"), "a", "", "kv_tenant_buckets_max").await;
    refused(&own_bucket("acme", "f", 1, "b"), "a", "", "kv_tenant_buckets_max").await;
    refused(&place, "a", "1234567890123456", "kv_tenant_bytes_max").await;
    assert_eq!(value(&store, &place, "a").await.as_deref(), Some("1234567890"));
    // Another tenant has its own.
    set(&store, &tenant_bucket("beta", "b"), "a", "1234567890123456").await.expect("written");
    store.write(&place, "b", Expected::Any, None).await.expect("removed");
    set(&store, &place, "c", "123").await.expect("there is room again");
    assert_eq!(conserved(&store, "acme").await, (3, 3 * ENTRY_BYTES as u64 + 11 + 4 + 11));
}

#[tokio::test]
async fn a_large_bucket_is_removed_in_pieces() {
    let store = store(KeyValueLimits::default());
    let (large, other) = (tenant_bucket("acme", "large"), tenant_bucket("acme", "other"));
    let keys = 2 * REMOVED_AT_ONCE_MAX + 3;
    let writing = large.clone();
    let written = store.change(&large.tenant, true, move |transaction| {
        for number in 0..keys {
            let written = write_value(
                transaction,
                KeyValueLimits::default(),
                &writing,
                &number.to_string(),
                Expected::Any,
                Some(b"v"),
            )?;
            assert!(matches!(written, Ok(Written::Done(Some(_)))));
        }
        Ok(Ok(()))
    });
    written.await.expect("written");
    set(&store, &other, "k", "v").await.expect("written");
    assert_eq!(conserved(&store, "acme").await.0, keys + 1);
    assert_eq!(store.remove_bucket(&large).await.expect("removed"), keys);
    assert_eq!(conserved(&store, "acme").await.0, 1);
    assert_eq!(store.remove_bucket(&large).await.expect("again"), 0);
}

/// On a runtime with two threads that may block: whoever waits in the database keeps one of them.
#[test]
fn one_write_at_a_time_is_in_front_of_the_database() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().expect("a runtime");
    let create = || Database::builder().create_with_backend(InMemoryBackend::new());
    let database = Arc::new(StateDatabase::new(create().expect("a database"), create));
    let store = KeyValues::new(Arc::clone(&database), KeyValueLimits::default());
    let written = database.write(|database| {
        // As a receipt's commit has it.
        let transaction = database.begin_write()?;
        let write = |number: u32| {
            let store = store.clone();
            runtime.spawn(async move {
                let place = tenant_bucket(if number.is_multiple_of(2) { "acme" } else { "umbrella" }, "notes");
                set(&store, &place, &number.to_string(), "x").await
            })
        };
        let given_up: Vec<_> = (0..8).map(write).collect();
        // Again and again, while the writes come as far as they can.
        let stays_free = |what: &str| {
            for _ in 0..40 {
                let free = runtime.spawn_blocking(|| ());
                let free = async { tokio::time::timeout(std::time::Duration::from_secs(20), free).await };
                runtime.block_on(free).expect(what).expect("done");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        };
        stays_free("writes wait for a turn without a thread");
        given_up.iter().for_each(tokio::task::JoinHandle::abort);
        let writes: Vec<_> = (8..16).map(write).collect();
        // What was given up still writes, and keeps its turn.
        stays_free("a write that is given up has its turn to its end");
        transaction.abort()?;
        Ok::<_, redb::Error>(writes)
    });
    runtime.block_on(async {
        for write in written.expect("a transaction") {
            write.await.expect("a task").expect("written");
        }
        let buckets = store.buckets(&"acme".parse().expect("a tenant")).await.expect("a list");
        assert!(buckets.iter().map(|bucket| bucket.keys).sum::<u64>() >= 4, "{buckets:?}");
    });
}
