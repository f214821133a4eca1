//! What stays of a plugin between requests: compiled code within a bound, and nothing of what its instances had in memory. Not
//! here: what is on disk (`admission.rs`).

use std::time::Duration;

use bytes::Bytes;
use plugin::{Begun, PluginHost, PluginHostConfig};
use types::{Decision, Digest};

use crate::components;
use crate::setup::{Nowhere, Setup, compiler, guest, limits, no_compiler, request, session};

/// Turns of instances in the same places.
const TURNS: usize = 24;

fn host(cache: &std::path::Path, instances_max: u32, cache_bytes_max: u64) -> PluginHost {
    let (cache_dir, limits) = (cache.to_owned(), limits());
    let config = PluginHostConfig {
        cache_dir,
        compiler: compiler(),
        limits,
        instances_max,
        cache_bytes_max,
        images_max: 1 << 16,
    };
    PluginHost::new(config).expect("a host")
}

/// Instantiates and calls it; what a component of `components` finds in its memory and tables it says by a trap.
async fn is_served(host: &PluginHost, digest: Digest) -> Result<(), plugin::PluginError> {
    let begun = host.decide(Duration::ZERO, digest, &Nowhere, session(), &request("hi")).await?;
    let Begun::Decided(decided) = begun else { panic!("it is no agent") };
    assert_eq!(decided.route.outcome?, Decision::Serve);
    decided.compose.expect("a plan is asked for").outcome.map(drop)
}

/// There is one place for an instance, so that each gets what the one before it had, of the same component or another one.
#[tokio::test]
async fn nothing_of_an_instance_is_in_the_next_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = host(folder.path(), 1, 64 << 20);
    let echo = guest("echo");
    let mut digests = Vec::new();
    // More than is kept in memory and less, with and without something in it from the start, in other places each time.
    let cases: [&[(usize, bool)]; 4] =
        [&[(40, true), (3, false)], &[(2, false), (40, false)], &[(5, true), (1, true)], &[(200, false), (200, true)]];
    for memories in cases {
        let component = components::with_dirty_table(&components::with_dirty_memories(&echo, memories));
        digests.push(host.admit(Bytes::from(component)).await.expect("admitted"));
    }
    digests.push(host.admit(echo.clone()).await.expect("admitted"));
    for turn in 0..TURNS {
        // Twice the same, then another one.
        let digest = digests[turn / 2 % digests.len()];
        is_served(&host, digest).await.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
    }
    for turn in 0..TURNS {
        is_served(&host, digests[turn % digests.len()]).await.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
    }
    // The check itself is seen to fail.
    let wrong = host.admit(Bytes::from(components::with_wrong_check(&echo))).await.expect("admitted");
    assert_eq!(is_served(&host, wrong).await.expect_err("it finds something else").code(), "plugin_trap");
}

/// A component that is not in memory any more is mapped from its file, not compiled: no compiler is there.
#[tokio::test]
async fn compiled_plugins_leave_memory_and_come_back() {
    let setup = Setup::new();
    let mut digests = Vec::new();
    for name in ["echo", "blend", "counter", "relay"] {
        digests.push(setup.host.admit(guest(name)).await.expect("admitted"));
    }
    drop(setup.host);
    let largest = std::fs::read_dir(setup.cache.path()).expect("a folder").flatten();
    let largest = largest.map(|entry| entry.metadata().expect("a file").len()).max().expect("files");
    // Room for one and a half.
    let cache_bytes_max = largest * 3 / 2;
    let config = PluginHostConfig {
        cache_dir: setup.cache.path().to_owned(),
        compiler: no_compiler(),
        limits: limits(),
        instances_max: 4,
        cache_bytes_max,
        images_max: 1 << 16,
    };
    let host = PluginHost::new(config).expect("a host");
    for turn in 0..40 {
        let digest = digests[turn % digests.len()];
        host.start(digest, &Nowhere, session()).await.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
        host.settle().await;
        let stats = host.stats();
        assert!(stats.prepared_bytes <= cache_bytes_max && stats.prepared < 4, "turn {turn}: {stats:?}");
    }
    // What is removed from the disk as well is gone.
    host.forget(digests[0]).await.expect("forgotten");
    assert_eq!(host.start(digests[0], &Nowhere, session()).await.expect_err("gone").code(), "plugin_not_found");
}
