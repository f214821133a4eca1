//! Derivations of tenants: whose parents, what is kept, what is refused. The numerics are tested in `model`.

use std::time::Duration;

use model::{AdapterKind, DeriveMethod};
use types::Blame;

use super::*;
use crate::adapters::signature::tests::signed;
use crate::adapters::tests::{add, alias, base, in_memory, over, peft, plain, tenant};
use crate::adapters::{AdapterFiles, AdapterStoreConfig, Claims, SignerKey};
use crate::artifacts::Artifacts;
use crate::revocation::Revocations;
use crate::store::Store;
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
    let two = adapters.add_bytes(&acme, &alias("two"), plain(config, weights), claims).await.expect("added");
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

    // The report is what an upload of the same content would get.
    let report = derived.report.clone().expect("a report");
    assert_eq!((report.kind, report.base_is_named, report.warnings.len()), (AdapterKind::Lora, false, 0));
    assert_eq!(report.modules.iter().map(|module| module.layers.len()).sum::<usize>(), 2);
    // Two of s·BA, with s = 2 and the rows and columns all of one value: 2 · 2 · fill² · √(64 · 32), the second halved.
    let norm = 4.0 * (0.25 - 0.5 * 0.0625) * 2048_f64.sqrt();
    for module in &report.modules {
        for found in module.frobenius_norms.iter().chain(&module.spectral_norms) {
            assert!((found / norm - 1.0).abs() < 1e-3, "{found}, not {norm}");
        }
    }
    assert_eq!(derived.signature, SignatureState::Unsigned);
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

    let small = strict(|config| config.derive.limits.parent_bytes_max = 100).await;
    add(&small, &acme, "a", 0.5).await;
    let error = small.derive(&acme, &alias("b"), svd, &named(&[("a", 1.0)])).await.expect_err("too much at once");
    assert_eq!(error.code(), "limit_exceeded");
}

#[tokio::test]
async fn a_derivation_ends_in_time() {
    let adapters = strict(|config| config.derive.time_max = Duration::ZERO).await;
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
    let limits = DeriveLimits::default();
    let recipe = ValidRecipe::check(recipe(DeriveMethod::Svd, 2), &[1.0], &adapters.limits, &limits);
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

#[tokio::test]
async fn norms_of_the_result_are_held_to_the_operators_limits() {
    // Of one parent 2 · 2 · 0.25 · √2048 = 45.25 in each layer.
    let adapters = strict(|config| config.limits.norms.frobenius_max = Some(50.0)).await;
    let acme = tenant("acme");
    let one = add(&adapters, &acme, "one", 0.5).await;
    let recipe = recipe(DeriveMethod::Svd, 2);
    let derive = async |weight| adapters.derive(&acme, &alias("new"), recipe, &named(&[("one", weight)])).await;
    let error = derive(1.2).await.expect_err("54.3");
    assert_eq!((error.code(), error.blame()), ("adapter_norm_too_large", Blame::Caller));
    assert!(error.to_string().contains("adapter_frobenius_norm_max"), "{error}");
    assert_eq!(adapters.list(&acme).await.expect("list"), [one]);
    derive(1.1).await.expect("49.8");
}

/// A store, and what revokes its adapters.
async fn revocable() -> (AdapterStore, Revocations) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let revocations = Revocations::open(Arc::clone(&store)).await.expect("revocations");
    let artifacts = Artifacts::new(Arc::clone(&store));
    let config = AdapterStoreConfig::new(Arc::new(base()));
    let adapters = AdapterStore::new(store, artifacts, revocations.clone(), config).await.expect("a store");
    (adapters, revocations)
}

#[tokio::test]
async fn what_was_revoked_is_neither_parent_nor_result() {
    let (adapters, revocations) = revocable().await;
    let acme = tenant("acme");
    let good = add(&adapters, &acme, "good", 0.5).await;
    let bad = add(&adapters, &acme, "bad", 0.25).await;
    let derive = async |weights: [f64; 2]| {
        let parents = named(&[("good", weights[0]), ("bad", weights[1])]);
        adapters.derive(&acme, &alias("new"), recipe(DeriveMethod::Svd, 2), &parents).await
    };
    let made = derive([1.0, 1.0]).await.expect("derived");
    revocations.add(bad.digest, "it leaks", "key").await.expect("revoked");
    for weights in [[1.0, 1.0], [1.0, 0.0]] {
        let error = derive(weights).await.expect_err("a revoked parent");
        assert_eq!((error.code(), error.blame()), ("revoked", Blame::Caller), "{weights:?}");
        assert!(error.to_string().contains("it leaks"), "{error}");
    }
    // What was made of it before is other content, and says of what.
    let kept = adapters.info(&acme, "new").await.expect("info").expect("still there");
    assert!(
        kept.revoked.is_none() && kept.lineage.expect("a lineage").parents.iter().any(|one| one.digest == bad.digest)
    );
    adapters.lease(&acme, made.digest).await.expect("a lease");
    // A concatenation of one with weight 1 is the same content again.
    let copy = async |name: &str| {
        let concatenate = DeriveRecipe::new(DeriveMethod::Concatenate);
        adapters.derive(&acme, &alias(name), concatenate, &named(&[("good", 1.0)])).await
    };
    assert_eq!(copy("copy").await.expect("derived").digest, good.digest);
    // A result that was revoked, of a parent that was not.
    let half = async |name: &str| {
        adapters.derive(&acme, &alias(name), recipe(DeriveMethod::Svd, 1), &named(&[("good", 0.5)])).await
    };
    let halved = half("half").await.expect("derived");
    revocations.add(halved.digest, "", "key").await.expect("revoked");
    assert_eq!(half("half-again").await.expect_err("a revoked result").code(), "revoked");
    assert_eq!(adapters.info(&acme, "half-again").await.expect("info"), None);
}

#[tokio::test]
async fn what_is_revoked_while_it_is_derived_from_gives_nothing() {
    let (adapters, revocations) = revocable().await;
    let acme = tenant("acme");
    let one = add(&adapters, &acme, "one", 0.5).await;
    // Whoever derives has passed every check before, and waits here.
    let permit = adapters.derivations.work.permit().await.expect("the only one");
    let parents = named(&[("one", 0.5)]);
    let new = alias("new");
    let derive = adapters.derive(&acme, &new, recipe(DeriveMethod::Svd, 1), &parents);
    let revoke = async {
        while adapters.derivations.lines.lock().expect("the lines").is_empty() {
            tokio::task::yield_now().await;
        }
        revocations.add(one.digest, "", "key").await.expect("revoked");
        drop(permit);
    };
    let (derived, ()) = tokio::join!(derive, revoke);
    assert_eq!(derived.expect_err("revoked").code(), "revoked");
    assert_eq!(adapters.info(&acme, "new").await.expect("info"), None);
}

#[tokio::test]
async fn where_adapters_must_be_signed_only_signed_ones_are_parents() {
    let adapters = in_memory().await;
    let acme = tenant("acme");
    let add_signed = async |name: &str, fill: f32, expected_keys: &[SignerKey]| {
        let (config, weights) = peft(fill);
        let (key, bundle) = signed(&config, &weights);
        let keys: Vec<SignerKey> = expected_keys.iter().cloned().chain([key]).collect();
        adapters.set_signers(&acme, SignaturePolicy::Required, &keys, None).await.expect("set");
        let files = AdapterFiles { config, weights, signature: Some(bundle.into()) };
        adapters.add_bytes(&acme, &alias(name), files, None).await.expect("signed");
        keys
    };
    add(&adapters, &acme, "plain", 0.125).await;
    let keys = add_signed("one", 0.5, &[]).await;
    let keys = add_signed("two", 0.25, &keys).await;
    let derive = async |name: &str, parents: &[(&str, f64)]| {
        adapters.derive(&acme, &alias(name), recipe(DeriveMethod::Svd, 2), &named(parents)).await
    };
    let told = async |parents: &[(&str, f64)]| {
        let error = derive("refused", parents).await.expect_err("refused");
        assert_eq!((error.code(), error.blame()), ("adapter_signature_required", Blame::Caller));
        error.to_string()
    };
    assert!(told(&[("one", 1.0), ("plain", 1.0)]).await.contains("`plain`"));
    // What has no weight is no part of the result.
    let sum = derive("sum", &[("one", 1.0), ("two", -0.5), ("plain", 0.0)]).await.expect("of signed ones");
    // Nobody has signed these bytes; the lineage says by whom the others were.
    assert_eq!(sum.signature, SignatureState::Unsigned);
    let mut signers: Vec<_> =
        sum.lineage.expect("a lineage").parents.into_iter().map(|one| (one.alias, one.signers)).collect();
    signers.sort();
    let id = |at: usize| vec![keys[at].id().to_owned()];
    assert_eq!(signers, [("one".to_owned(), id(0)), ("two".to_owned(), id(1))]);
    // What is made of signed ones alone may be made into another.
    let again = derive("again", &[("sum", 0.5)]).await.expect("of what was signed");
    let mut both = [id(0), id(1)].concat();
    both.sort();
    assert_eq!(again.lineage.expect("a lineage").parents[0].signers, both);
    // A key that is trusted no more.
    adapters.set_signers(&acme, SignaturePolicy::Required, &keys[..1], None).await.expect("set");
    assert!(told(&[("two", 1.0)]).await.contains("`two`"));
    assert!(told(&[("sum", 1.0)]).await.contains("`sum`"));
    derive("one-half", &[("one", 0.5)]).await.expect("its key is still there");
    // Where it is not required, unsigned ones do, and nothing of theirs counts as signed later.
    adapters.set_signers(&acme, SignaturePolicy::Optional, &keys, None).await.expect("set");
    let mixed = derive("mixed", &[("one", 1.0), ("plain", 1.0)]).await.expect("optional");
    assert_eq!(mixed.signature, SignatureState::Unsigned);
    adapters.set_signers(&acme, SignaturePolicy::Required, &keys, None).await.expect("set");
    assert!(told(&[("mixed", 1.0)]).await.contains("`mixed`"));
}

#[tokio::test]
async fn a_tenants_derivations_wait_for_each_other_and_not_for_ever() {
    let derivations = Derivations::new(DeriveConfig { derivations_per_tenant_max: 2, ..DeriveConfig::default() });
    let (acme, other) = (tenant("acme"), tenant("other"));
    let [first, second] = [(); 2].map(|()| derivations.place(&acme).expect("a place"));
    let full = derivations.place(&acme).expect_err("a third");
    assert_eq!((full.code(), full.blame()), ("queue_full", Blame::Capacity));
    let turn = first.turn().await.expect("nobody before it");
    let waits = tokio::time::timeout(Duration::from_millis(20), second.turn()).await.is_err();
    assert!(waits, "one at a time");
    drop(derivations.place(&other).expect("a line of its own").turn().await.expect("nobody before it"));
    drop(turn);
    drop(first);
    drop(second.turn().await.expect("its turn"));
    let third = derivations.place(&acme).expect("room again");
    drop((second, third));
    assert!(derivations.lines.lock().expect("the lines").is_empty(), "nothing is left of who left");
}
