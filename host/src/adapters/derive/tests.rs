//! Derivations of tenants: whose parents, what is kept, what is refused. The numerics are tested in `model`.

use std::time::Duration;

use model::DeriveMethod;
use types::Blame;

use super::*;
use crate::adapters::tests::{add, alias, in_memory, over, peft, tenant};
use crate::adapters::{AdapterStoreConfig, Claims};
use crate::store::memory::MemoryStore;

fn recipe(method: DeriveMethod, rank: u32) -> DeriveRecipe {
    DeriveRecipe { rank: Some(rank), ..DeriveRecipe::new(method) }
}

fn named(parents: &[(&str, f64)]) -> Vec<NamedParent> {
    parents.iter().map(|(adapter, weight)| NamedParent { adapter: (*adapter).to_owned(), weight: *weight }).collect()
}

async fn strict(change: impl FnOnce(&mut AdapterStoreConfig)) -> AdapterStore {
    over(Arc::new(MemoryStore::default()), change).await
}

#[tokio::test]
async fn a_derived_adapter_is_like_any_other_and_knows_where_it_comes_from() {
    let adapters = in_memory().await;
    let acme = tenant("acme");
    let one = add(&adapters, &acme, "one", 0.5).await;
    let (config, weights) = peft(0.25);
    let claims = Claims { digest: None, license: "cc-by-nc-4.0".parse().ok() };
    let two = adapters.add_bytes(&acme, &alias("two"), config, weights, claims).await.expect("added");
    assert_eq!((one.license.as_ref(), two.license.as_ref().map(License::as_str)), (None, Some("CC-BY-NC-4.0")));

    let svd = recipe(DeriveMethod::Svd, 3);
    let both = named(&[("one", 1.0), (&two.digest.to_string(), -0.5)]);
    let derived = adapters.derive(&acme, &alias("sum"), svd, &both).await.expect("derived");
    // Every row is the same in both: their sum has rank 1.
    assert_eq!((derived.rank, derived.modules), (1, one.modules));
    assert_eq!(derived.license.as_ref().map(License::as_str), Some("unknown"), "one of them did not say");
    let lineage = derived.lineage.clone().expect("a lineage");
    assert!(lineage.error < 1e-6 && lineage.modules.len() == 1, "{lineage:?}");
    assert_eq!(lineage.recipe, svd);
    let mut expected = [(one.digest, "one", 1.0), (two.digest, "two", -0.5)];
    expected.sort_by_key(|(digest, ..)| *digest);
    let parents: Vec<_> = lineage.parents.iter().map(|one| (one.digest, one.alias.as_str(), one.weight)).collect();
    assert_eq!(parents, expected);

    assert_eq!(adapters.info(&acme, "sum").await.expect("info"), Some(derived.clone()));
    let lease = adapters.lease(&acme, derived.digest).await.expect("lease");
    assert_eq!(lease.adapter().rank(), 1);
    let again = adapters.derive(&acme, &alias("again"), svd, &both).await.expect("derived");
    assert_eq!(again.digest, derived.digest, "the same of the same");
    // It is a parent like any other, and what it inherited is handed on.
    let only = named(&[("two", 1.0)]);
    let halved = adapters.derive(&acme, &alias("two-low"), recipe(DeriveMethod::Svd, 1), &only).await.expect("derived");
    assert_eq!(halved.license.as_ref().map(License::as_str), Some("CC-BY-NC-4.0"));
    // An alias that is there moves, as for an upload.
    let moved = adapters.derive(&acme, &alias("sum"), recipe(DeriveMethod::Svd, 1), &only).await.expect("derived");
    assert_eq!((moved.digest, adapters.list(&acme).await.expect("list").len()), (halved.digest, 5));
}

#[tokio::test]
async fn parents_that_are_not_there_and_not_ones_own_are_one_answer() {
    let adapters = in_memory().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let theirs = add(&adapters, &acme, "caps", 0.5).await;
    let own = add(&adapters, &other, "own", 0.25).await;
    let digest = theirs.digest.to_string();
    let nobodys = Digest::of(b"nobody's").to_string();
    for name in ["caps", "none", "", "../caps", &digest, &nobodys] {
        for weight in [1.0, 0.0] {
            let parents = named(&[("own", 1.0), (name, weight)]);
            let refused = adapters.derive(&other, &alias("new"), recipe(DeriveMethod::Svd, 2), &parents).await;
            let error = refused.expect_err(name);
            assert_eq!((error.code(), error.blame()), ("adapter_not_found", Blame::Caller), "{name} {weight}");
            assert_eq!(error.to_string(), format!("there is no adapter `{name}`"));
        }
    }
    assert_eq!(adapters.list(&other).await.expect("list"), [own]);
}

#[tokio::test]
async fn what_cannot_be_derived_leaves_nothing() {
    let adapters = strict(|config| config.aliases_per_tenant_max = 2).await;
    let acme = tenant("acme");
    let kept = [add(&adapters, &acme, "a", 0.5).await, add(&adapters, &acme, "b", 0.25).await];
    let refused = async |name: &str, recipe: DeriveRecipe, parents: &[(&str, f64)]| {
        let derived = adapters.derive(&acme, &alias(name), recipe, &named(parents)).await;
        derived.expect_err("refused").code().to_owned()
    };
    let svd = recipe(DeriveMethod::Svd, 2);
    assert_eq!(refused("c", svd, &[("a", 1.0)]).await, "limit_exceeded", "no room for another alias");
    assert_eq!(refused("a", svd, &[("b", 1.0), ("a", 1.0)]).await, "invalid_request", "it would lose its name");
    assert_eq!(refused("b", svd, &[]).await, "invalid_request");
    assert_eq!(refused("b", svd, &[("a", f64::NAN)]).await, "invalid_request");
    assert_eq!(refused("b", svd, &[("a", 1e30)]).await, "invalid_request");
    assert_eq!(refused("b", recipe(DeriveMethod::Svd, 0), &[("a", 1.0)]).await, "invalid_request");
    let digest = kept[0].digest.to_string();
    assert_eq!(refused("b", svd, &[("a", 1.0), (&digest, 1.0)]).await, "invalid_request", "twice the same");
    assert_eq!(adapters.list(&acme).await.expect("list"), kept);

    let small = strict(|config| config.derive_limits.parent_bytes_max = 100).await;
    add(&small, &acme, "a", 0.5).await;
    let error = small.derive(&acme, &alias("b"), svd, &named(&[("a", 1.0)])).await.expect_err("too much at once");
    assert_eq!(error.code(), "limit_exceeded");
}

#[tokio::test]
async fn a_derivation_ends_in_time() {
    let adapters = strict(|config| config.derive_time_max = Duration::ZERO).await;
    let acme = tenant("acme");
    let one = add(&adapters, &acme, "one", 0.5).await;
    let svd = recipe(DeriveMethod::Svd, 2);
    let error = adapters.derive(&acme, &alias("new"), svd, &named(&[("one", 1.0)])).await.expect_err("no time");
    assert_eq!((error.code(), error.blame()), ("deadline_exceeded", Blame::Capacity));
    assert_eq!(adapters.list(&acme).await.expect("list"), [one]);
}

#[tokio::test]
async fn work_that_nobody_waits_for_or_a_closing_host_ends() {
    let adapters = in_memory().await;
    let acme = tenant("acme");
    add(&adapters, &acme, "one", 0.5).await;
    let recipe = ValidRecipe::check(recipe(DeriveMethod::Svd, 2), &[1.0], &adapters.limits, &adapters.derive_limits);
    let recipe = recipe.expect("a recipe");
    let parents = adapters.parents(&acme, &alias("new"), &named(&[("one", 1.0)])).await.expect("parents");
    let bytes = adapters.artifacts.get(ArtifactKind::Adapter, parents[0].digest).await.expect("bytes");
    let work = |left: &Left| adapters.work(recipe, &parents, vec![bytes.clone()], left);
    let stopped = |done: Result<DerivedAdapter, AdapterError>| done.expect_err("stopped").code().to_owned();
    let here = Left::default();
    assert_eq!(work(&here)().expect("derived").adapter.rank, 1);
    let gone = {
        let left = Left::default();
        work(&left)
    };
    assert_eq!(stopped(gone()), "deadline_exceeded");
    adapters.close().await;
    assert_eq!(stopped(work(&here)()), "deadline_exceeded");
    let late = adapters.derive(&acme, &alias("late"), *recipe.stated(), &named(&[("one", 1.0)])).await;
    assert_eq!(late.expect_err("closed").code(), "internal");
}
