//! Instances that are started before their requests: who gets one, that nobody can tell, and that they are in nobody's way. Not
//! here: what a fresh instance must be like (`kept.rs`).

use std::time::{Duration, Instant};

use bytes::Bytes;
use plugin::{OwnLimits, PluginError, PluginHost, PluginHostConfig, PluginInstance, PluginStats, Session};
use types::{Decision, Digest};

use crate::components;
use crate::recording::{play, recorded};
use crate::setup::{IMAGES_MAX, Nowhere, Setup, compiler, guest, limits, request, session};

/// Of which one may be a spare.
const INSTANCES_MAX: u32 = 8;

fn setup(instances_max: u32) -> Setup {
    let cache = tempfile::tempdir().expect("a folder");
    let config = PluginHostConfig {
        cache_dir: cache.path().to_owned(),
        compiler: compiler(),
        limits: limits(),
        instances_max,
        cache_bytes_max: 64 << 20,
        images_max: IMAGES_MAX,
    };
    Setup { host: PluginHost::new(config).expect("a host"), cache }
}

/// A guest that fills 4 MiB of memory when it starts, and traps there if it finds anything in it.
fn slow(name: &str) -> Bytes {
    components::with_dirty_memories(&guest(name), &[(64, true)]).into()
}

async fn started(host: &PluginHost, digest: Digest, session: Session) -> PluginInstance {
    host.start(digest, &Nowhere, session).await.expect("started")
}

/// Calls it until one waits for the next call. While guests are over their share of the machine none is made.
async fn until_one_waits(host: &PluginHost, digest: Digest) {
    let begun = Instant::now();
    while host.stats() != (PluginStats { instances: 0, spares: 1, ..host.stats() }) || !is_there(host).await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", host.stats());
        drop(started(host, digest, session()).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// It counts from when it is begun; a moment later it has started, or has failed.
async fn is_there(host: &PluginHost) -> bool {
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.stats().spares == 1
}

#[tokio::test]
async fn who_starts_slowly_is_started_before_it_is_asked_for() {
    let Setup { host, cache: _cache } = setup(INSTANCES_MAX);
    let digest = host.admit(slow("wasi-peek")).await.expect("admitted");
    drop(started(&host, digest, session()).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(host.stats().spares, 0, "who is called once may never be called again");
    let mut fresh = started(&host, digest, session()).await;
    let random = fresh.route(&request("random")).await;
    assert!(matches!(random, Ok(Decision::Answer(_))), "{random:?}");
    let fresh_cpu = fresh.cpu_used();
    drop(fresh);
    until_one_waits(&host, digest).await;
    assert_eq!(host.stats().instances, 0, "it is no request's");
    let mut spare = started(&host, digest, session()).await;
    assert!(spare.cpu_used() > Duration::from_micros(100), "its start is the request's to answer for");
    assert_eq!(spare.route(&request("random")).await, random, "the seed is the request's");
    assert!(spare.cpu_used() < fresh_cpu * 100, "{:?}", spare.cpu_used());
    let mut other = started(&host, digest, Session { seed: 8, ..session() }).await;
    assert_ne!(other.route(&request("random")).await, random);
    assert_eq!(host.stats().instances, 2);
}

#[tokio::test]
async fn a_spare_is_given_to_one_request_and_is_as_fresh_as_any() {
    let Setup { host, cache: _cache } = setup(INSTANCES_MAX);
    let digest = host.admit(slow("echo")).await.expect("admitted");
    for _ in 0..20 {
        // Two at once: at most one of them is a spare, and both are clean or would trap.
        let (mut one, mut two) = (started(&host, digest, session()).await, started(&host, digest, session()).await);
        assert!(one.compose(&request("hi")).await.is_ok() && two.compose(&request("ho")).await.is_ok());
    }
    until_one_waits(&host, digest).await;
}

#[tokio::test]
async fn a_spare_makes_room_for_a_request() {
    let Setup { host, cache: _cache } = setup(INSTANCES_MAX);
    let digest = host.admit(slow("echo")).await.expect("admitted");
    let other = host.admit(guest("blend")).await.expect("admitted");
    until_one_waits(&host, digest).await;
    let mut alive = Vec::new();
    for _ in 0..INSTANCES_MAX {
        alive.push(started(&host, other, session()).await);
    }
    let stats = host.stats();
    assert_eq!((stats.instances, stats.spares), (8, 0));
    let error = host.start(other, &Nowhere, session()).await.expect_err("all in use");
    assert_eq!(error, PluginError::Busy { limit: "instances_max" });
    // With half of the places taken nobody gets one.
    alive.truncate(4);
    drop(started(&host, digest, session()).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(host.stats().spares, 0);
}

#[tokio::test]
async fn a_spare_is_for_requests_of_its_own_limits_and_goes_with_its_component() {
    let Setup { host, cache: _cache } = setup(INSTANCES_MAX);
    let digest = host.admit(slow("echo")).await.expect("admitted");
    until_one_waits(&host, digest).await;
    let narrow = OwnLimits { memory_bytes_max: Some(8 << 20), ..OwnLimits::default() };
    let _narrow = started(&host, digest, Session { limits: narrow, ..session() }).await;
    assert_eq!(host.stats().spares, 1, "it was started under other limits");
    let too_narrow = OwnLimits { memory_bytes_max: Some(1 << 20), ..OwnLimits::default() };
    let refused = host.start(digest, &Nowhere, Session { limits: too_narrow, ..session() }).await;
    assert_eq!(refused.expect_err("it needs 4 MiB").code(), "plugin_out_of_memory");
    host.forget(digest).await.expect("forgotten");
    assert_eq!(host.stats().spares, 0);
}

#[tokio::test]
async fn a_small_host_keeps_none() {
    let Setup { host, cache: _cache } = setup(INSTANCES_MAX - 1);
    let digest = host.admit(slow("echo")).await.expect("admitted");
    for _ in 0..5 {
        drop(started(&host, digest, session()).await);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(host.stats().spares, 0);
}

#[tokio::test]
async fn what_a_spare_did_is_recorded_as_of_any_other() {
    let setup = setup(INSTANCES_MAX);
    let digest = setup.host.admit(slow("echo")).await.expect("admitted");
    until_one_waits(&setup.host, digest).await;
    let (session, kept) = recorded(session(), 1 << 20);
    let mut instance = started(&setup.host, digest, session).await;
    assert_eq!(setup.host.stats().instances, 1);
    assert_eq!(instance.route(&request("hi")).await, Ok(Decision::Serve));
    assert!(instance.compose(&request("hi")).await.is_ok());
    drop(instance);
    let text = kept.one();
    assert!(text.contains(r#""call":"start""#) && text.contains(r#""returned":"start""#), "{text}");
    let replay = play(&setup, &text, "echo").await;
    assert!(replay.difference.is_none(), "{:?}", replay.difference);
}
