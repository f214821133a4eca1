//! Shares and buckets: who gets the canary, always the same callers, never one who leaves it when the share grows.

use std::sync::Arc;

use super::super::{LiveChange, Manifest};
use super::*;
use crate::store::memory::MemoryStore;

fn acme() -> TenantId {
    "acme".parse().expect("a name")
}

fn f() -> FunctionName {
    "f".parse().expect("a name")
}

fn share(percent: f64) -> Share {
    Share::of_percent(percent).expect("a share")
}

/// A function with so many versions, of which the first is live.
async fn registry(versions: u32) -> Registry {
    let registry = Registry::new(Arc::new(MemoryStore::default()));
    registry.record_plugin(&acme(), Digest::of(b"plugin"), &Default::default()).await.expect("record");
    for _ in 0..versions {
        let manifest = Manifest::new(Digest::of(b"plugin"));
        registry.put_version(&acme(), &f(), manifest, "deployer").await.expect("put");
    }
    registry
}

async fn set(registry: &Registry, beside: Beside, version: u32, percent: f64) -> Result<Rollout, RegistryError> {
    registry.set_beside(&acme(), &f(), beside, version, share(percent), None, "operator").await
}

async fn version_for(registry: &Registry, sticky: &str) -> u32 {
    registry.choose(&acme(), &f(), sticky, "req_1").await.expect("chosen").version.version
}

fn told(changes: &[LiveChange]) -> Vec<(ChangeKind, Option<u32>, u32)> {
    changes.iter().map(|change| (change.kind.expect("a kind"), change.from, change.to)).collect()
}

#[test]
fn percentages_have_steps_of_a_hundredth() {
    for (percent, points) in
        [(0.01, 1), (0.07, 7), (0.29, 29), (1.1, 110), (33.33, 3333), (99.99, 9999), (100.0, 10_000)]
    {
        let share = share(percent);
        assert_eq!(u16::from(share), points);
        assert!((share.percent() - percent).abs() < 1e-9);
    }
    for bad in [0.0, -1.0, 0.001, 0.009, 0.005, 33.333, 100.01, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(Share::of_percent(bad), Err(ShareError), "{bad}");
    }
    assert!(serde_json::from_str::<Share>("0").is_err() && serde_json::from_str::<Share>("10001").is_err());
    assert!(Share::ALL.has(u64::MAX) && Share::ALL.has(0));
    assert!(share(0.01).has(0) && !share(0.01).has(u64::MAX) && !share(99.99).has(u64::MAX));
}

#[test]
fn a_larger_share_only_adds_callers() {
    let mut shares = [0.01, 0.5, 1.0, 9.99, 10.0, 50.0, 99.99, 100.0].map(share).to_vec();
    shares.sort();
    for caller in 0..5000 {
        let bucket = caller_bucket(&acme(), &f(), 1, 2, &format!("caller {caller}"));
        let has: Vec<bool> = shares.iter().map(|share| share.has(bucket)).collect();
        assert!(has.is_sorted(), "caller {caller} leaves when the share grows: {has:?}");
    }
}

#[test]
fn callers_are_spread_evenly_and_anew_for_each_canary() {
    const CALLERS: u32 = 20_000;
    let count = |life: u32, version: u32, percent: f64| {
        let has = |caller: &u32| share(percent).has(caller_bucket(&acme(), &f(), life, version, &caller.to_string()));
        (0..CALLERS).filter(has).count()
    };
    for percent in [1.0, 10.0, 50.0, 90.0] {
        // Five standard deviations of a binomial: the callers are fixed, so that it holds always or never.
        let part = percent / 100.0;
        let (mean, deviation) = (f64::from(CALLERS) * part, (f64::from(CALLERS) * part * (1.0 - part)).sqrt());
        for (life, version) in [(1, 2), (1, 3), (7, 9)] {
            let found = count(life, version, percent);
            assert!((found as f64 - mean).abs() < 5.0 * deviation, "{percent} % of {CALLERS}: {found}");
        }
    }
    // Whoever is first for one canary is not for the next: of a tenth, a tenth is in both.
    let both = (0..CALLERS).filter(|caller| {
        let of = |version| share(10.0).has(caller_bucket(&acme(), &f(), 1, version, &caller.to_string()));
        of(2) && of(3)
    });
    let both = both.count();
    assert!((130..270).contains(&both), "{both} of {CALLERS}, expected 200");
}

#[tokio::test]
async fn a_canary_has_its_callers_and_keeps_them_while_it_grows() {
    let registry = registry(2).await;
    let callers: Vec<String> = (0..200).map(|caller| format!("caller {caller}")).collect();
    let of_canary = async || {
        let mut found = Vec::new();
        for caller in &callers {
            if version_for(&registry, caller).await == 2 {
                found.push(caller.clone());
            }
        }
        found
    };
    assert!(of_canary().await.is_empty());
    let mut before = Vec::new();
    for percent in [5.0, 20.0, 60.0, 100.0] {
        set(&registry, Beside::Canary, 2, percent).await.expect("set");
        let now = of_canary().await;
        assert_eq!(now, of_canary().await, "a caller stays where it is");
        assert!(before.iter().all(|caller| now.contains(caller)), "{percent}");
        assert!(now.len() > before.len(), "{percent}: {}", now.len());
        before = now;
    }
    assert_eq!(before.len(), callers.len());
    registry.end_beside(&acme(), &f(), Beside::Canary, "operator").await.expect("ended");
    assert!(of_canary().await.is_empty());
    assert_eq!(registry.end_beside(&acme(), &f(), Beside::Canary, "operator").await.expect("again"), None);
}

#[tokio::test]
async fn what_becomes_live_is_canary_and_shadow_no_more() {
    let registry = registry(3).await;
    set(&registry, Beside::Canary, 2, 10.0).await.expect("set");
    set(&registry, Beside::Canary, 2, 10.0).await.expect("again changes nothing");
    set(&registry, Beside::Shadow, 2, 100.0).await.expect("set");
    registry.promote(&acme(), &f(), 3, Some(1), "operator").await.expect("promoted");
    let live = registry.live(&acme(), &f()).await.expect("live");
    assert_eq!(live.canary.map(|canary| canary.version), Some(2), "another one was promoted");
    registry.promote(&acme(), &f(), 2, Some(3), "operator").await.expect("promoted");
    let live = registry.live(&acme(), &f()).await.expect("live");
    assert_eq!((live.canary, live.shadow), (None, None));
    let expected = [
        (ChangeKind::Deploy, None, 1),
        (ChangeKind::Deploy, None, 2),
        (ChangeKind::Deploy, None, 3),
        (ChangeKind::CanarySet, None, 2),
        (ChangeKind::ShadowSet, None, 2),
        (ChangeKind::Promote, Some(1), 3),
        (ChangeKind::Rollback, Some(3), 2),
        (ChangeKind::CanaryEnded, Some(2), 2),
        (ChangeKind::ShadowEnded, Some(2), 2),
    ];
    assert_eq!(told(&live.changes), expected);
    assert!(live.changes.iter().all(|change| change.plugin == Some(Digest::of(b"plugin"))));
    assert_eq!(live.changes[3].share.map(Share::percent), Some(10.0));
    assert_eq!(live.history.iter().count(), 3, "rollbacks go by changes of the live version alone");
    assert_eq!(live.history.before(2), Some(3));
}

#[tokio::test]
async fn canaries_do_not_push_out_what_a_rollback_goes_by() {
    let registry = registry(3).await;
    registry.promote(&acme(), &f(), 2, None, "operator").await.expect("promoted");
    for turn in 0..100 {
        set(&registry, Beside::Canary, 3, if turn % 2 == 0 { 1.0 } else { 2.0 }).await.expect("set");
    }
    let live = registry.live(&acme(), &f()).await.expect("live");
    assert_eq!(live.history.before(2), Some(1));
    assert!(live.changes.len() <= 2 * super::super::LIVE_CHANGES_MAX, "{}", live.changes.len());
}

#[tokio::test]
async fn a_canary_that_makes_no_sense_is_refused() {
    let registry = registry(2).await;
    let code = async |version, expect| {
        let refused = registry.set_beside(&acme(), &f(), Beside::Canary, version, Share::ALL, expect, "key").await;
        refused.map_or_else(|error| error.code(), |_| "set")
    };
    assert_eq!(code(1, None).await, "version_is_live");
    assert_eq!(code(3, None).await, "version_not_found");
    assert_eq!(code(0, None).await, "version_not_found");
    assert_eq!(code(2, Some(2)).await, "conflict");
    assert_eq!(code(2, Some(1)).await, "set");
    let other: FunctionName = "other".parse().expect("a name");
    let missing = registry.set_beside(&acme(), &other, Beside::Shadow, 1, Share::ALL, None, "key").await;
    assert_eq!(missing.expect_err("no such function").code(), "function_not_found");
    let stranger: TenantId = "stranger".parse().expect("a name");
    let theirs = registry.end_beside(&stranger, &f(), Beside::Canary, "key").await;
    assert_eq!(theirs.expect_err("not theirs").code(), "function_not_found");
    registry.delete(&acme(), &f()).await.expect("deleted");
    assert_eq!(code(2, None).await, "function_not_found");
    let manifest = Manifest::new(Digest::of(b"plugin"));
    registry.put_version(&acme(), &f(), manifest, "key").await.expect("put");
    let live = registry.live(&acme(), &f()).await.expect("live");
    assert_eq!((live.canary, live.changes.len()), (None, 1), "a successor of the name begins anew");
}

#[tokio::test]
async fn copies_go_to_a_share_of_the_requests_and_not_to_the_version_that_answers() {
    let registry = registry(2).await;
    set(&registry, Beside::Shadow, 2, 25.0).await.expect("set");
    let copies = async || {
        let mut copies = 0;
        for request in 0..2000 {
            let chosen = registry.choose(&acme(), &f(), "caller", &format!("req_{request}")).await.expect("chosen");
            copies += u32::from(chosen.shadow.is_some_and(|shadow| shadow.version == 2));
        }
        copies
    };
    let copied = copies().await;
    assert!((403..597).contains(&copied), "{copied} of 2000, expected 500");
    set(&registry, Beside::Canary, 2, 100.0).await.expect("set");
    assert_eq!(copies().await, 0, "it answers by itself");
}
