//! The whole path, on adapters of a tiny base.

mod disk;
mod fetched;
mod loads;

use model::{LoraAdapter, ModelConfig};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{BlobWrite, EmbeddedStore};

fn base() -> ModelConfig {
    ModelConfig {
        layers: 2,
        hidden: 64,
        intermediate: 64,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        vocabulary: 32,
        context_tokens_max: 64,
        rope_theta: 10_000.0,
        rope: model::RopeLayout::Neighbours,
        rope_divisors: Vec::new(),
        rms_epsilon: 1e-5,
        query_key_norm: false,
        tied_output: true,
    }
}

/// A rank-2 adapter on the v projection of both layers; `fill` makes the content.
fn peft(fill: f32) -> (Bytes, Bytes) {
    let config = r#"{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["v_proj"],"bias":"none"}"#;
    let values = |count: usize| fill.to_le_bytes().repeat(count);
    let (a, b) = (values(2 * 64), values(32 * 2));
    let mut tensors = Vec::new();
    for layer in 0..2 {
        let name = |half: &str| format!("base_model.model.model.layers.{layer}.self_attn.v_proj.lora_{half}.weight");
        tensors.push((name("A"), TensorView::new(Dtype::F32, vec![2, 64], &a).expect("a tensor")));
        tensors.push((name("B"), TensorView::new(Dtype::F32, vec![32, 2], &b).expect("a tensor")));
    }
    let weights = safetensors::serialize(tensors, None).expect("a file");
    (Bytes::from_static(config.as_bytes()), weights.into())
}

/// Files without a signature.
fn plain(config: Bytes, weights: Bytes) -> AdapterFiles {
    AdapterFiles { config, weights, signature: None }
}

fn tenant(name: &str) -> TenantId {
    name.parse().expect("a name")
}

fn alias(name: &str) -> AdapterAlias {
    name.parse().expect("a name")
}

async fn over(store: Arc<dyn Store>, change: impl FnOnce(&mut AdapterStoreConfig)) -> AdapterStore {
    let mut config = AdapterStoreConfig::new(Arc::new(base()));
    change(&mut config);
    let revocations = Revocations::open(Arc::clone(&store)).await.expect("revocations");
    AdapterStore::new(Arc::clone(&store), Artifacts::new(store), revocations, config).await.expect("a store")
}

async fn in_memory() -> AdapterStore {
    over(Arc::new(MemoryStore::default()), |_| {}).await
}

async fn add(adapters: &AdapterStore, whose: &TenantId, name: &str, fill: f32) -> AdapterInfo {
    let (config, weights) = peft(fill);
    adapters.add_bytes(whose, &alias(name), plain(config, weights), None).await.expect("added")
}

#[tokio::test]
async fn an_adapter_is_added_listed_leased_and_removed() {
    let adapters = in_memory().await;
    let acme = tenant("acme");
    let added = add(&adapters, &acme, "caps", 0.5).await;
    assert_eq!((added.rank, added.residency), (2, Residency::Storage));
    assert_eq!(added.modules, ModuleSet::EMPTY.with(types::Module::V));
    assert_eq!(add(&adapters, &acme, "caps", 0.5).await, added);
    assert_eq!(adapters.list(&acme).await.expect("list"), std::slice::from_ref(&added));
    assert_eq!(adapters.resolve(&acme, "caps").await.expect("resolve"), Some(added.digest));
    let digest = added.digest.to_string();
    assert_eq!(adapters.info(&acme, &digest).await.expect("info"), Some(added.clone()));
    let names = ["caps".to_owned(), digest.clone(), "none".to_owned()];
    let resolved = adapters.resolve_all(&acme, &names).await.expect("resolve");
    let many: Vec<String> = (0..100).map(|number| format!("none-{number}")).chain(names).collect();
    for resolved in [resolved, adapters.resolve_all(&acme, &many).await.expect("resolve")] {
        assert_eq!((resolved.get("caps"), resolved.get(&digest)), (Some(added.digest), Some(added.digest)));
        assert_eq!((resolved.get("none"), resolved.iter().count()), (None, 2));
    }

    let lease = adapters.lease(&acme, added.digest).await.expect("lease");
    assert_eq!((lease.digest(), lease.adapter().rank(), adapters.leases()), (added.digest, 2, 1));
    let info = adapters.info(&acme, "caps").await.expect("info").expect("there");
    assert_eq!(info.residency, Residency::Memory);

    adapters.remove(&acme, &alias("caps")).await.expect("remove");
    assert_eq!(adapters.lease(&acme, added.digest).await.expect_err("gone").code(), "adapter_not_found");
    assert_eq!(adapters.remove(&acme, &alias("caps")).await.expect_err("gone").code(), "adapter_not_found");
    assert_eq!(lease.adapter().rank(), 2, "the lease is good until it is dropped");
    drop(lease);
    adapters.memory.check_integrity();
    assert_eq!((adapters.leases(), adapters.memory_bytes()), (0, 0));
}

#[tokio::test]
async fn what_another_tenant_has_is_not_there() {
    let adapters = in_memory().await;
    let (acme, other) = (tenant("acme"), tenant("other"));
    let theirs = add(&adapters, &acme, "caps", 0.5).await;
    let _lease = adapters.lease(&acme, theirs.digest).await.expect("lease");
    let answer = |error: AdapterError| (error.code(), error.blame());
    let foreign = answer(adapters.lease(&other, theirs.digest).await.expect_err("not theirs"));
    let nobodys = answer(adapters.lease(&other, Digest::of(b"nobody's")).await.expect_err("nobody's"));
    assert_eq!(foreign, nobodys);
    assert_eq!(adapters.resolve(&other, &theirs.digest.to_string()).await.expect("resolve"), None);
    assert_eq!(adapters.info(&other, "caps").await.expect("info"), None);
    assert!(adapters.list(&other).await.expect("list").is_empty());
    let foreign = answer(adapters.remove(&other, &alias("caps")).await.expect_err("not theirs"));
    assert_eq!(foreign, nobodys);

    // Adding what another tenant has answers like adding what nobody has, and tells nothing of its residency.
    let same = add(&adapters, &other, "caps", 0.5).await;
    let fresh = add(&in_memory().await, &other, "caps", 0.5).await;
    assert_eq!(same, fresh);
    assert_eq!(same.residency, Residency::Storage);
    adapters.remove(&other, &alias("caps")).await.expect("remove");
    assert!(adapters.lease(&acme, theirs.digest).await.is_ok());
    assert!(adapters.lease(&other, theirs.digest).await.is_err());
}

#[tokio::test]
async fn an_alias_moves_and_leases_keep_their_generation() {
    let adapters = in_memory().await;
    let acme = tenant("acme");
    let old = add(&adapters, &acme, "caps", 0.5).await;
    let lease = adapters.lease(&acme, old.digest).await.expect("lease");
    let began = adapters.resolve_all(&acme, &["caps".to_owned()]).await.expect("resolve");
    let new = add(&adapters, &acme, "caps", 0.25).await;
    assert_ne!(old.digest, new.digest);
    assert_eq!(adapters.resolve(&acme, "caps").await.expect("resolve"), Some(new.digest));
    assert_eq!(adapters.lease(&acme, old.digest).await.expect_err("no longer owned").code(), "adapter_not_found");
    assert_eq!(lease.digest(), old.digest);
    // A request that began before the move goes on with what it resolved, and with nothing else.
    assert_eq!(
        adapters.lease_resolved(&began, old.digest, ReleasePolicy::Lru).await.expect("began before").digest(),
        old.digest
    );
    assert!(adapters.lease_resolved(&began, new.digest, ReleasePolicy::Lru).await.is_err());
    assert_eq!(adapters.lease(&acme, new.digest).await.expect("lease").digest(), new.digest);
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_leaves_nothing() {
    let adapters = over(Arc::new(MemoryStore::default()), |config| config.aliases_per_tenant_max = 1).await;
    let acme = tenant("acme");
    let caps = alias("caps");
    let (config, weights) = peft(0.5);
    let wrong = Some(Digest::of(b"something else"));
    let error =
        adapters.add_bytes(&acme, &caps, plain(config.clone(), weights.clone()), wrong).await.expect_err("mismatch");
    assert_eq!(error.code(), "digest_mismatch");
    let garbage = Bytes::from_static(b"garbage");
    let error =
        adapters.add_bytes(&acme, &caps, plain(config.clone(), garbage.clone()), None).await.expect_err("garbage");
    assert!(matches!(error, AdapterError::Rejected(_)), "{error:?}");
    let error = adapters.add_bytes(&acme, &caps, plain(garbage, weights.clone()), None).await.expect_err("garbage");
    assert!(matches!(error, AdapterError::Rejected(_)), "{error:?}");
    let (_, not_finite) = peft(f32::NAN);
    let error = adapters.add_bytes(&acme, &caps, plain(config.clone(), not_finite), None).await.expect_err("NaN");
    assert_eq!(error.code(), "adapter_not_finite");
    assert!(adapters.list(&acme).await.expect("list").is_empty());

    let added = add(&adapters, &acme, "caps", 0.5).await;
    let right = Some(added.digest);
    adapters.add_bytes(&acme, &caps, plain(config.clone(), weights.clone()), right).await.expect("as asked");
    let error =
        adapters.add_bytes(&acme, &alias("more"), plain(config, weights), None).await.expect_err("one is allowed");
    assert_eq!(error.code(), "limit_exceeded");
}

#[tokio::test]
async fn folders_are_added_from_below_the_root_alone() {
    let outer = tempfile::tempdir().expect("a folder");
    let root = outer.path().join("root");
    let (config, weights) = peft(0.5);
    for folder in [root.join("caps"), outer.path().join("secret")] {
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("adapter_config.json"), &config).expect("a file");
        std::fs::write(folder.join("adapter_model.safetensors"), &weights).expect("a file");
    }
    std::os::unix::fs::symlink(outer.path().join("secret"), root.join("escape")).expect("a link");
    let acme = tenant("acme");
    let url = |path: &str| format!("file://{}/{path}", root.display());

    let without = in_memory().await;
    let error = without.add_url(&acme, &alias("caps"), &url("caps"), None, None).await.expect_err("no root");
    assert_eq!(error.code(), "adapters_root_not_configured");

    let with = over(Arc::new(MemoryStore::default()), |config| config.adapters_root = Some(root.clone())).await;
    let added = with.add_url(&acme, &alias("caps"), &url("caps"), None, None).await.expect("added");
    assert_eq!(added, add(&without, &acme, "caps", 0.5).await);
    for (path, code) in [("escape", "source_not_found"), ("none", "source_not_found"), ("../secret", "invalid_source")]
    {
        let error = with.add_url(&acme, &alias("x"), &url(path), None, None).await.expect_err(path);
        assert_eq!(error.code(), code, "{path}");
    }
    assert_eq!(with.list(&acme).await.expect("list"), [added]);
}

#[tokio::test]
async fn a_restart_keeps_adapters_and_a_rotten_one_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = || async { over(Arc::new(EmbeddedStore::open(folder.path()).await.expect("open")), |_| {}).await };
    let acme = tenant("acme");
    let adapters = open().await;
    let added = add(&adapters, &acme, "caps", 0.5).await;
    drop(adapters);
    let adapters = open().await;
    assert_eq!(adapters.list(&acme).await.expect("list"), std::slice::from_ref(&added));
    drop(adapters.lease(&acme, added.digest).await.expect("lease"));
    drop(adapters);

    let store = Arc::new(EmbeddedStore::open(folder.path()).await.expect("open"));
    let text = added.digest.to_string();
    let name = format!("adapter/{}/{text}", &text[..2]);
    store.put_blob(&name, Bytes::from_static(b"rot"), BlobWrite::Replace).await.expect("rot");
    let adapters = over(store, |_| {}).await;
    let error = adapters.lease(&acme, added.digest).await.expect_err("rotten");
    assert_eq!(error.code(), "artifact_corrupt");
    add(&adapters, &acme, "caps", 0.5).await;
    assert!(adapters.lease(&acme, added.digest).await.is_ok(), "a failure is not kept");
}

#[tokio::test]
async fn memory_is_bounded_and_loads_are_shared() {
    let one = {
        let adapters = in_memory().await;
        let acme = tenant("acme");
        let added = add(&adapters, &acme, "caps", 0.5).await;
        adapters.lease(&acme, added.digest).await.expect("lease").adapter().memory_bytes() as u64
    };
    let adapters = over(Arc::new(MemoryStore::default()), |config| config.host_bytes_max = 2 * one).await;
    let acme = tenant("acme");
    let mut leases = Vec::new();
    for (name, fill) in [("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4)] {
        let added = add(&adapters, &acme, name, fill).await;
        leases.push(adapters.lease(&acme, added.digest).await.expect("lease"));
    }
    adapters.memory.check_integrity();
    assert_eq!((adapters.leases(), adapters.memory_bytes()), (4, 4 * one), "what is on lease stays");
    assert!(leases.iter().all(|lease| lease.adapter().rank() == 2));
    drop(leases);
    adapters.memory.check_integrity();
    assert_eq!((adapters.leases(), adapters.memory_bytes()), (0, 2 * one));
    assert_eq!(adapters.memory_stats().evictions, Evictions { budget: 2, ..Evictions::default() });

    let added = add(&adapters, &acme, "e", 0.5).await;
    let (first, second) = tokio::join!(adapters.lease(&acme, added.digest), adapters.lease(&acme, added.digest));
    let adapter =
        |lease: Result<AdapterLease, AdapterError>| -> Arc<LoraAdapter> { Arc::clone(lease.expect("lease").adapter()) };
    assert!(Arc::ptr_eq(&adapter(first), &adapter(second)), "one load for both");
}

#[tokio::test]
async fn what_was_revoked_is_neither_lent_nor_added_whoever_has_it() {
    let adapters = in_memory().await;
    let (one, two) = (tenant("one"), tenant("two"));
    let bad = add(&adapters, &one, "bad", 0.5).await;
    add(&adapters, &two, "same", 0.5).await;
    let good = add(&adapters, &one, "good", 0.25).await;
    for whose in [&one, &two] {
        adapters.lease(whose, bad.digest).await.expect("a lease");
    }
    adapters.lease(&one, good.digest).await.expect("a lease");
    adapters.memory.check_integrity();
    let resolved = adapters.resolve_all(&one, &["bad".to_owned()]).await.expect("resolved");
    let before = adapters.memory_bytes();

    adapters.revocations.add(bad.digest, "it leaks", "key").await.expect("revoked");
    adapters.evict(bad.digest).await.expect("evicted");
    adapters.memory.check_integrity();
    assert_eq!(adapters.memory_bytes() * 3, before, "both tenants' copies are out, the other adapter is not");
    for whose in [&one, &two] {
        assert_eq!(adapters.lease(whose, bad.digest).await.expect_err("revoked").code(), "revoked");
    }
    let error = adapters
        .lease_resolved(&resolved, bad.digest, ReleasePolicy::Lru)
        .await
        .expect_err("revoked since it was resolved");
    assert!(error.to_string().contains("it leaks"), "{error}");
    adapters.lease(&one, good.digest).await.expect("a lease");
    let (config, weights) = peft(0.5);
    let again = adapters.add_bytes(&one, &alias("other-name"), plain(config, weights), None).await;
    assert_eq!(again.expect_err("revoked").code(), "revoked");
    let shown = adapters.info(&one, "bad").await.expect("read").expect("still named");
    assert_eq!(shown.revoked.map(|revocation| revocation.reason).as_deref(), Some("it leaks"));
    // Who never had it learns nothing.
    let stranger = adapters.lease(&tenant("three"), bad.digest).await.expect_err("not there");
    assert_eq!(stranger.code(), "adapter_not_found");
}

#[tokio::test]
async fn a_tenant_asks_for_signatures_and_they_are_the_last_step() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/signatures");
    let pem = std::fs::read_to_string(folder.join("signer.pub")).expect("a committed key");
    let key = SignerKey::from_pem(&pem).expect("a key");
    let bundle = Bytes::from(std::fs::read(folder.join("adapter/model.sig")).expect("a committed bundle"));
    let adapters = in_memory().await;
    let (acme, other, caps) = (tenant("acme"), tenant("other"), alias("caps"));
    let (config, weights) = peft(0.5);
    assert_eq!(add(&adapters, &acme, "caps", 0.5).await.signature, SignatureState::Unsigned);
    let keys = std::slice::from_ref(&key);
    let set = adapters.set_signers(&acme, SignaturePolicy::Required, keys, Some(0)).await.expect("the first");
    assert_eq!((set.revision, set.keys.as_slice()), (1, keys));
    assert_eq!(adapters.signers(&acme).await.expect("read"), set);
    let late = adapters.set_signers(&acme, SignaturePolicy::None, &[], Some(0)).await.expect_err("late");
    assert_eq!(late.code(), "conflict");
    let many = vec![key.clone(); SIGNER_KEYS_MAX + 1];
    let many = adapters.set_signers(&acme, SignaturePolicy::None, &many, None).await.expect_err("many");
    assert_eq!(many.code(), "limit_exceeded");

    let told = async |config: &Bytes, weights: &Bytes, signature: Option<&Bytes>| {
        let files = AdapterFiles { config: config.clone(), weights: weights.clone(), signature: signature.cloned() };
        adapters.add_bytes(&acme, &caps, files, None).await.expect_err("refused").code()
    };
    assert_eq!(told(&config, &weights, None).await, "adapter_signature_required");
    // A sound bundle, of other files.
    assert_eq!(told(&config, &weights, Some(&bundle)).await, "adapter_signature_invalid");
    // Of two faults the earlier: values, norms, and then only the signature.
    let (_, not_finite) = peft(f32::NAN);
    assert_eq!(told(&config, &not_finite, None).await, "adapter_not_finite");
    let strict = over(Arc::new(MemoryStore::default()), |config| config.limits.norms.frobenius_max = Some(1e-9)).await;
    strict.set_signers(&acme, SignaturePolicy::Required, keys, None).await.expect("set");
    let error = strict.add_bytes(&acme, &caps, plain(config.clone(), weights.clone()), None).await.expect_err("both");
    assert_eq!(error.code(), "adapter_norm_too_large");
    assert!(adapters.info(&acme, "caps").await.expect("info").is_some(), "what was admitted before stays");
    // Neither the other tenant's business, nor its key.
    assert_eq!(add(&adapters, &other, "caps", 0.5).await.signature, SignatureState::Unsigned);
    assert_eq!(adapters.signers(&other).await.expect("read"), Signers::default());

    adapters.set_signers(&acme, SignaturePolicy::Optional, keys, Some(1)).await.expect("set");
    assert_eq!(add(&adapters, &acme, "caps", 0.5).await.signature, SignatureState::Unsigned);
    assert_eq!(told(&config, &weights, Some(&Bytes::from_static(b"{}"))).await, "adapter_signature_invalid");
    adapters.set_signers(&acme, SignaturePolicy::None, &[], None).await.expect("set");
    let files = AdapterFiles { config, weights, signature: Some(Bytes::from_static(b"{}")) };
    let added = adapters.add_bytes(&acme, &caps, files, None).await.expect("not looked at");
    assert_eq!(added.signature, SignatureState::Unchecked);
}
