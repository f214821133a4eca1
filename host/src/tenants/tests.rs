//! Keys that work, keys that do not, and what is at rest.

use super::*;
use crate::store::EmbeddedStore;
use crate::store::memory::MemoryStore;

async fn tenants() -> (Tenants, TenantId) {
    let tenants = Tenants::new(Arc::new(MemoryStore::default()));
    let tenant: TenantId = "acme".parse().expect("a name");
    tenants.create_tenant(&tenant).await.expect("create");
    (tenants, tenant)
}

#[tokio::test]
async fn a_key_says_whose_it_is() {
    let (tenants, tenant) = tenants().await;
    let rights = Rights::NONE.with(Right::Invoke);
    let key = tenants.create_key(&tenant, rights, "laptop").await.expect("create");
    assert_eq!(key.text.len(), KEY_TEXT_BYTES);
    assert!(!format!("{key:?}").contains(key.text.as_str()));
    let principal = tenants.authenticate(&key.text).await.expect("authenticate").expect("known");
    assert_eq!(principal, Principal { tenant: tenant.clone(), key_id: key.id.clone(), rights });
    assert!(principal.rights.has(Right::Invoke) && !principal.rights.has(Right::Admin));
    let listed = tenants.list_keys(Some(&tenant)).await.expect("list");
    assert_eq!(listed.iter().map(|key| (&key.id, key.label.as_str())).collect::<Vec<_>>(), [(&key.id, "laptop")]);
    assert_eq!(tenants.list_tenants().await.expect("list"), [tenant]);
}

#[tokio::test]
async fn wrong_keys_all_get_the_same_answer() {
    let (tenants, tenant) = tenants().await;
    let key = tenants.create_key(&tenant, Rights::ALL, "").await.expect("create");
    let other = tenants.create_key(&tenant, Rights::ALL, "").await.expect("create");
    let (id, secret) = parse_key(&key.text).expect("a key");
    let flipped = if secret.starts_with('0') { secret.replacen('0', "1", 1) } else { format!("0{}", &secret[1..]) };
    let unknown_id = "0".repeat(26);
    for wrong in [
        String::new(),
        "tk_".to_owned(),
        format!("tk_{id}_"),
        format!("tk_{id}_{flipped}"),
        format!("tk_{}_{secret}", other.id),
        format!("tk_{unknown_id}_{secret}"),
        key.text.to_uppercase(),
        format!("{} ", *key.text),
        format!("tk_{}_{secret}", "../../../../../../../../ab"),
        "ä".repeat(47),
    ] {
        assert_eq!(tenants.authenticate(&wrong).await.expect("no failure"), None, "{wrong}");
    }
    assert!(tenants.authenticate(&key.text).await.expect("authenticate").is_some());
}

#[tokio::test]
async fn a_revoked_key_is_dead_at_once() {
    let (tenants, tenant) = tenants().await;
    let stranger: TenantId = "stranger".parse().expect("a name");
    let key = tenants.create_key(&tenant, Rights::ALL, "").await.expect("create");
    let error = tenants.revoke_key(Some(&stranger), &key.id).await.expect_err("not theirs");
    assert_eq!(error.code(), "key_not_found");
    assert!(tenants.authenticate(&key.text).await.expect("authenticate").is_some());
    tenants.revoke_key(Some(&tenant), &key.id).await.expect("revoke");
    assert_eq!(tenants.authenticate(&key.text).await.expect("authenticate"), None);
    tenants.revoke_key(None, &key.id).await.expect("again is no error");
    let listed = tenants.list_keys(None).await.expect("list");
    assert!(listed.iter().all(|key| key.revoked_unix_ms.is_some()));
}

#[tokio::test]
async fn the_secret_is_not_at_rest_and_a_restart_keeps_the_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let tenant: TenantId = "acme".parse().expect("a name");
    let open = || async { Tenants::new(Arc::new(EmbeddedStore::open(folder.path()).await.expect("open"))) };
    let tenants = open().await;
    tenants.create_tenant(&tenant).await.expect("create");
    let key = tenants.create_key(&tenant, Rights::ALL, "").await.expect("create");
    drop(tenants);
    let state = std::fs::read(folder.path().join("state.redb")).expect("the file");
    let (_, secret) = parse_key(&key.text).expect("a key");
    assert!(!state.windows(16).any(|window| window == &secret.as_bytes()[..16]));
    let tenants = open().await;
    assert!(tenants.authenticate(&key.text).await.expect("authenticate").is_some());
    assert_eq!(tenants.create_tenant(&tenant).await.expect_err("there").code(), "tenant_exists");
}

#[tokio::test]
async fn a_key_needs_its_tenant() {
    let (tenants, _) = tenants().await;
    let nobody = "nobody".parse().expect("a name");
    let error = tenants.create_key(&nobody, Rights::ALL, "").await.expect_err("no tenant");
    assert_eq!(error.code(), "tenant_not_found");
    let error = tenants.create_key(&nobody, Rights::ALL, &"x".repeat(201)).await.expect_err("a long label");
    assert_eq!(error.code(), "limit_exceeded");
}
