//! Owners, readers, and everybody else.

use super::*;
use crate::adapters::ReleasePolicy;
use crate::adapters::tests::{add, alias, in_memory, over, peft, plain, tenant};
use crate::store::memory::MemoryStore;

fn license(text: &str) -> License {
    text.parse().expect("an identifier")
}

fn tenants(names: &[&str]) -> Readers {
    Readers::Tenants(names.iter().map(|name| tenant(name)).collect())
}

async fn share(adapters: &AdapterStore, name: &str, readers: Readers) -> Share {
    adapters.share(&tenant("acme"), &alias(name), readers, Some(license("MIT"))).await.expect("shared")
}

async fn take(adapters: &AdapterStore, reader: &str, own: &str, url: &str) -> Result<AdapterInfo, AdapterError> {
    adapters.add_url(&tenant(reader), &alias(own), url, None, None).await
}

#[tokio::test]
async fn a_reader_takes_uses_and_loses_it() {
    let adapters = in_memory().await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let theirs = add(&adapters, &acme, "caps", 0.5).await;
    share(&adapters, "caps", tenants(&["beta"])).await;
    let taken = take(&adapters, "beta", "loud", "tenon://acme/caps").await.expect("taken");
    let from = SharedBy { owner: acme.clone(), name: "caps".to_owned() };
    assert_eq!((taken.digest, &taken.license), (theirs.digest, &Some(license("MIT"))));
    assert_eq!((&taken.shared_by, taken.is_usable), (&Some(from), true));
    let resolved = adapters.resolve_all(&beta, &["loud".to_owned()]).await.expect("resolved");
    assert_eq!(resolved.owners().get(&theirs.digest), Some(&acme));
    let lease = adapters.lease(&beta, theirs.digest).await.expect("a lease");

    adapters.pin(&beta, &alias("loud")).await.expect("pinned");

    adapters.unshare(&acme, &alias("caps")).await.expect("unshared");
    adapters.unpin(&beta, &alias("loud")).await.expect("what may not be used need not stay");
    assert_eq!(adapters.pin(&beta, &alias("loud")).await.expect_err("no more").code(), "adapter_not_found");
    assert_eq!(adapters.memory_stats().pinned_bytes, 0);
    assert_eq!(adapters.resolve(&beta, "loud").await.expect("resolve"), None);
    assert_eq!(adapters.lease(&beta, theirs.digest).await.expect_err("no more").code(), "adapter_not_found");
    let listed = adapters.list(&beta).await.expect("listed");
    assert!(listed.iter().all(|one| !one.is_usable) && listed.len() == 1, "{listed:?}");
    // What began goes on.
    assert_eq!(lease.digest(), theirs.digest);
    adapters.lease_resolved(&resolved, theirs.digest, ReleasePolicy::Lru).await.expect("it began before");

    share(&adapters, "caps", Readers::Everyone).await;
    assert_eq!(adapters.resolve(&beta, "loud").await.expect("resolve"), Some(theirs.digest));
}

#[tokio::test]
async fn who_is_no_reader_learns_nothing() {
    let adapters = in_memory().await;
    let acme = tenant("acme");
    let theirs = add(&adapters, &acme, "caps", 0.5).await;
    add(&adapters, &acme, "other", 0.25).await;
    share(&adapters, "caps", tenants(&["beta"])).await;
    let digest = theirs.digest;
    let urls = [
        "tenon://acme/caps",
        &format!("tenon://acme/{digest}"),
        "tenon://acme/other",
        "tenon://acme/none",
        "tenon://nobody/caps",
        "tenon://acme/",
        "TENON://acme/caps/more",
    ];
    for url in urls {
        let error = take(&adapters, "stranger", "a", url).await.expect_err("not shared");
        assert!(matches!(error, AdapterError::SharedNotFound), "{url}: {error:?}");
    }
    for (reader, name) in [("beta", "other"), ("acme", "caps")] {
        let error = take(&adapters, reader, "a", &format!("tenon://acme/{name}")).await.expect_err("not shared");
        assert!(matches!(error, AdapterError::SharedNotFound), "{reader}: {error:?}");
    }
    for url in ["tenon://", "tenon://acme", "tenon://A B/caps", "tenon:///caps"] {
        let error = take(&adapters, "beta", "a", url).await.expect_err("no such URL");
        assert_eq!(error.code(), "invalid_source", "{url}");
    }
    assert!(adapters.shared_with(&tenant("stranger")).await.expect("list").is_empty());
    assert!(adapters.shared_with(&acme).await.expect("list").is_empty(), "its own are its own");
    let [found] = adapters.shared_with(&tenant("beta")).await.expect("list").try_into().expect("one");
    assert_eq!((found.digest, found.from.name.as_str(), found.license), (digest, "caps", license("MIT")));
    assert!(take(&adapters, "beta", "a", &format!("tenon://acme/{digest}")).await.is_ok(), "by its digest too");
}

#[tokio::test]
async fn content_is_shared_and_not_a_name() {
    let adapters = in_memory().await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let first = add(&adapters, &acme, "caps", 0.5).await;
    share(&adapters, "caps", Readers::Everyone).await;
    take(&adapters, "beta", "loud", "tenon://acme/caps").await.expect("taken");
    add(&adapters, &acme, "kept", 0.5).await;
    add(&adapters, &acme, "caps", 0.25).await;
    // Another alias has it still: the readers' go on, and the new content is not theirs.
    assert_eq!(adapters.resolve(&beta, "loud").await.expect("resolve"), Some(first.digest));
    assert!(take(&adapters, "beta", "new", "tenon://acme/caps").await.is_err());
    let error = adapters.share_of(&acme, &alias("caps")).await.expect_err("not this content");
    assert_eq!(error.code(), "adapter_not_shared");

    adapters.remove(&acme, &alias("kept")).await.expect("removed");
    assert_eq!(adapters.resolve(&beta, "loud").await.expect("resolve"), None);
    // The share went with it: what comes back is not shared by itself.
    add(&adapters, &acme, "kept", 0.5).await;
    assert_eq!(adapters.resolve(&beta, "loud").await.expect("resolve"), None);
    assert!(adapters.shared_with(&beta).await.expect("list").is_empty());
}

#[tokio::test]
async fn a_share_that_outlived_its_adapter_is_not_believed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let adapters = over(Arc::clone(&store), |_| {}).await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let theirs = add(&adapters, &acme, "caps", 0.5).await;
    let stale = share(&adapters, "caps", Readers::Everyone).await;
    take(&adapters, "beta", "loud", "tenon://acme/caps").await.expect("taken");
    adapters.remove(&acme, &alias("caps")).await.expect("removed");
    // A host that ended before it removed the share.
    adapters.owners.shares.set(&acme, &stale).await.expect("written");
    assert_eq!(adapters.resolve(&beta, "loud").await.expect("resolve"), None);
    assert!(take(&adapters, "beta", "again", "tenon://acme/caps").await.is_err());
    add(&adapters, &acme, "caps", 0.5).await;
    assert_eq!(adapters.resolve(&beta, "loud").await.expect("resolve"), None);
    assert_eq!(store.scan("adapter-shares/").await.expect("scan").len(), 0);
    assert!(adapters.owners.owns(&acme, theirs.digest).await.expect("owned"));
}

#[tokio::test]
async fn a_reader_is_no_owner() {
    let adapters = in_memory().await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    add(&adapters, &acme, "caps", 0.5).await;
    share(&adapters, "caps", tenants(&["beta"])).await;
    take(&adapters, "beta", "loud", "tenon://acme/caps").await.expect("taken");
    let passed_on = adapters.share(&beta, &alias("loud"), Readers::Everyone, None).await;
    assert_eq!(passed_on.expect_err("not its own").code(), "adapter_not_own");
    assert!(take(&adapters, "gamma", "a", "tenon://beta/loud").await.is_err());
    // Whoever has the bytes as its own needs nobody's leave, under whatever other alias.
    let (config, weights) = peft(0.5);
    let own = adapters.add_bytes(&beta, &alias("own"), plain(config, weights), None).await.expect("added");
    adapters.unshare(&acme, &alias("caps")).await.expect("unshared");
    assert_eq!(adapters.resolve(&beta, "loud").await.expect("resolve"), None);
    assert_eq!(adapters.resolve(&beta, &own.digest.to_string()).await.expect("resolve"), Some(own.digest));
    let error = adapters.unshare(&acme, &alias("caps")).await.expect_err("nobody may");
    assert_eq!(error.code(), "adapter_not_shared");
}

#[tokio::test]
async fn a_licence_is_said_once() {
    let adapters = in_memory().await;
    let (acme, caps) = (tenant("acme"), alias("caps"));
    let (config, weights) = peft(0.5);
    let said = |license| adapters.share(&acme, &caps, Readers::Everyone, license);
    adapters.add_bytes(&acme, &caps, plain(config.clone(), weights.clone()), None).await.expect("added");
    assert_eq!(said(None).await.expect_err("none is known").code(), "adapter_license_required");
    assert!(adapters.share_of(&acme, &caps).await.is_err());
    assert_eq!(said(Some(license("MIT"))).await.expect("said").license, license("MIT"));
    let claims = Claims { digest: None, license: Some(license("Apache-2.0")) };
    adapters.add_bytes(&acme, &caps, plain(config, weights), claims.clone()).await.expect("added");
    assert_eq!(said(Some(license("MIT"))).await.expect_err("another").code(), "adapter_license_differs");
    assert_eq!(said(None).await.expect("known").license, license("Apache-2.0"));
    let taken = adapters.add_url(&tenant("beta"), &caps, "tenon://acme/caps", None, claims).await;
    assert_eq!(taken.expect_err("it is its owner's to say").code(), "invalid_source");
    let other = Some(Digest::of(b"another"));
    let taken = adapters.add_url(&tenant("beta"), &caps, "tenon://acme/caps", None, other).await;
    assert_eq!(taken.expect_err("it is another").code(), "digest_mismatch");
    assert!(adapters.list(&tenant("beta")).await.expect("list").is_empty());
    let many = (0..=READERS_MAX).map(|number| tenant(&format!("t{number}"))).collect();
    let error = adapters.share(&acme, &caps, Readers::Tenants(many), None).await.expect_err("too many");
    assert_eq!(error.code(), "limit_exceeded");
}

#[tokio::test]
async fn a_revoked_adapter_is_neither_shared_nor_taken() {
    let adapters = in_memory().await;
    let acme = tenant("acme");
    let theirs = add(&adapters, &acme, "caps", 0.5).await;
    share(&adapters, "caps", Readers::Everyone).await;
    take(&adapters, "beta", "loud", "tenon://acme/caps").await.expect("taken");
    adapters.revocations.add(theirs.digest, "a test", "key").await.expect("revoked");
    assert_eq!(adapters.lease(&tenant("beta"), theirs.digest).await.expect_err("revoked").code(), "revoked");
    assert_eq!(take(&adapters, "gamma", "a", "tenon://acme/caps").await.expect_err("revoked").code(), "revoked");
    let again = adapters.share(&acme, &alias("caps"), Readers::Everyone, None).await;
    assert_eq!(again.expect_err("revoked").code(), "revoked");
}

#[tokio::test]
async fn who_asks_for_signatures_takes_what_is_signed_by_whom_it_trusts() {
    let adapters = in_memory().await;
    let beta = tenant("beta");
    add(&adapters, &tenant("acme"), "caps", 0.5).await;
    share(&adapters, "caps", Readers::Everyone).await;
    adapters.set_signers(&beta, SignaturePolicy::Required, &[], None).await.expect("set");
    let error = take(&adapters, "beta", "loud", "tenon://acme/caps").await.expect_err("unsigned");
    assert_eq!(error.code(), "adapter_signature_required");
    let signed = SignatureState::Signed { key: "f".repeat(64) };
    let error = adapters.check_signed(&beta, &signed).await.expect_err("by nobody it trusts");
    assert_eq!(error.code(), "adapter_signature_untrusted");
    adapters.set_signers(&beta, SignaturePolicy::Optional, &[], None).await.expect("set");
    take(&adapters, "beta", "loud", "tenon://acme/caps").await.expect("taken");
}

#[tokio::test]
async fn an_owners_other_names_are_its_own() {
    let adapters = in_memory().await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let theirs = add(&adapters, &acme, "caps", 0.5).await;
    add(&adapters, &acme, "a-secret-project", 0.5).await;
    share(&adapters, "caps", Readers::Everyone).await;
    let name = async || {
        let [found] = adapters.shared_with(&beta).await.expect("list").try_into().expect("one");
        found.from.name
    };
    assert_eq!(name().await, "caps");
    let error = take(&adapters, "beta", "a", "tenon://acme/a-secret-project").await.expect_err("no name of readers");
    assert!(matches!(error, AdapterError::SharedNotFound), "{error:?}");
    add(&adapters, &acme, "caps", 0.25).await;
    assert_eq!(name().await, theirs.digest.to_string(), "the name means something else by now");
    let taken = take(&adapters, "beta", "a", &format!("tenon://acme/{}", theirs.digest)).await.expect("taken");
    assert_eq!(taken.shared_by.expect("shared").name, theirs.digest.to_string());
}

#[tokio::test]
async fn what_is_not_licensed_is_not_shared_by_a_detour() {
    let adapters = in_memory().await;
    let acme = tenant("acme");
    add(&adapters, &acme, "caps", 0.5).await;
    let parents = [crate::adapters::NamedParent { adapter: "caps".to_owned(), weight: 0.5 }];
    let recipe = model::DeriveRecipe {
        method: model::DeriveMethod::Concatenate,
        rank: None,
        density: None,
        majority_sign: None,
        seed: None,
        error_max: None,
    };
    let derived = adapters.derive(&acme, &alias("half"), recipe, &parents).await.expect("derived");
    assert_eq!(derived.license, Some(license("unknown")));
    for said in [None, Some(license("MIT")), Some(license("unknown"))] {
        let error = adapters.share(&acme, &alias("half"), Readers::Everyone, said).await.expect_err("unknown");
        assert_eq!(error.code(), "adapter_license_required");
    }
    let said = Some(license("unknown"));
    let error = adapters.share(&acme, &alias("caps"), Readers::Everyone, said).await.expect_err("no licence");
    assert_eq!(error.code(), "adapter_license_required");
}

#[tokio::test]
async fn many_names_are_looked_up_as_few_are() {
    let adapters = in_memory().await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    let (one, two) = (add(&adapters, &acme, "one", 0.5).await, add(&adapters, &acme, "two", 0.25).await);
    share(&adapters, "one", Readers::Everyone).await;
    share(&adapters, "two", Readers::Everyone).await;
    for name in ["one", "two"] {
        take(&adapters, "beta", name, &format!("tenon://acme/{name}")).await.expect("taken");
    }
    // Its own copy of the second: nobody else's to withdraw, or to be named for it.
    add(&adapters, &beta, "own", 0.25).await;
    let few = ["one", "two", "own", &one.digest.to_string(), &two.digest.to_string(), "none"].map(str::to_owned);
    let many: Vec<String> = few.iter().cloned().chain((0..20).map(|number| format!("none-{number}"))).collect();
    let found = async |names: &[String]| {
        let resolved = adapters.resolve_all(&beta, names).await.expect("resolved");
        let mut found: Vec<_> = resolved.iter().map(|(name, digest)| (name.to_owned(), digest)).collect();
        found.sort();
        (found, resolved.owners().clone())
    };
    let (names, owners) = found(&few).await;
    assert_eq!((names.len(), owners), (5, [(one.digest, acme.clone())].into()));
    assert_eq!(found(&few).await, found(&many).await);
    adapters.unshare(&acme, &alias("one")).await.expect("unshared");
    adapters.unshare(&acme, &alias("two")).await.expect("unshared");
    let (names, owners) = found(&few).await;
    let left: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((left.contains(&"own"), left.len(), owners.len()), (true, 2, 0), "{left:?}");
    assert_eq!(found(&few).await, found(&many).await);
}

#[tokio::test]
async fn an_alias_that_was_withdrawn_is_not_overwritten() {
    let adapters = in_memory().await;
    let (acme, beta) = (tenant("acme"), tenant("beta"));
    add(&adapters, &acme, "caps", 0.5).await;
    share(&adapters, "caps", Readers::Everyone).await;
    let url = "tenon://acme/caps";
    let of_source = adapters.alias_of_source(url).expect("a name");
    for name in [alias("loud"), of_source.clone()] {
        assert!(adapters.add_url_once(&beta, &name, url, None).await.expect("taken"), "{name}");
        assert!(!adapters.add_url_once(&beta, &name, url, None).await.expect("there"), "{name}");
    }
    adapters.unshare(&acme, &alias("caps")).await.expect("unshared");
    assert!(!adapters.add_url_once(&beta, &alias("loud"), url, None).await.expect("there"));
    let error = adapters.add_url_once(&beta, &of_source, url, None).await.expect_err("asked again");
    assert!(matches!(error, AdapterError::SharedNotFound), "{error:?}");
    share(&adapters, "caps", Readers::Everyone).await;
    assert!(adapters.resolve(&beta, "loud").await.expect("resolve").is_some(), "it comes back");
}
