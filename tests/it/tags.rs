//! Adapters that a function is granted by a tag or by their owner: what is granted, what is not, and what is no more when the tag or the
//! share is taken away. The sessions of an agent, the plans of a policy and the catalogue go by the same rule. On the tiny base.

use serde_json::{Value, json};
use tests::{Client, Options, Server, deploy_plugin, repository, tenant_key};

fn started() -> Server {
    let arguments = vec!["--precision".to_owned(), "f32".to_owned()];
    let options = Options { arguments, ..Options::default() };
    Server::start_on(&repository().join("tests/fixtures/bases/llama.gguf"), options)
}

fn upload(client: &Client, alias: &str) {
    client.upload_adapter(alias, &repository().join("tests/fixtures/bases/llama-adapter")).expect(201);
}

fn tag(client: &Client, alias: &str, tags: &[&str]) -> Value {
    client.put(&format!("/v1/adapters/{alias}/tags"), &json!({"tags": tags})).expect(200).json()
}

/// Whether an agent may open a session with this adapter, and a policy plan with it.
fn may_use(client: &Client, adapter: &str) -> bool {
    let invoke = |function: &str, input: Value| {
        client.post(&format!("/v1/functions/{function}/invoke"), &json!({"input": input, "max_tokens": 2}))
    };
    let said = invoke("probe", json!(format!("adapted a {adapter} hello\ngen a 2"))).expect(200).json();
    let said = said["output"].as_str().unwrap().to_owned();
    let is_denied = said.contains("denied: there is no adapter");
    let weights = json!({"text": "hello", "first": adapter});
    let planned = invoke("blend", weights);
    assert_eq!(planned.status == 200, !is_denied, "{said}: {}", planned.text);
    !is_denied
}

fn deploy(client: &Client, adapter: &str, grants: &Value) {
    let mut grants = grants.clone();
    grants["generations"] = json!(true);
    deploy_plugin(client, "probe", "agent-probe", &json!({"grants": grants}));
    // It plans with what its configuration names.
    let config = json!({"first": adapter, "second": adapter});
    deploy_plugin(client, "blend", "blend", &json!({"grants": grants, "config": config}));
}

#[test]
fn a_tag_grants_until_it_is_taken_away() {
    let server = started();
    let client = server.client();
    ["one", "two", "three"].iter().for_each(|alias| upload(&client, alias));
    assert_eq!(tag(&client, "one", &["dates", "small"])["tags"], json!(["dates", "small"]));
    tag(&client, "two", &["other"]);
    for (adapter, granted) in [("one", true), ("two", false), ("three", false), ("nobody", false)] {
        deploy(&client, adapter, &json!({"adapter_tags": ["dates", "none"]}));
        assert_eq!(may_use(&client, adapter), granted, "{adapter}");
    }
    deploy(&client, "one", &json!({"adapter_tags": ["dates"]}));
    assert!(may_use(&client, "one"));
    // The tag is the alias's: other content under the name is granted too, and nothing is once the tag is gone.
    upload(&client, "one");
    assert_eq!(client.get("/v1/adapters/one").expect(200).json()["tags"], json!(["dates", "small"]));
    assert!(may_use(&client, "one"));
    tag(&client, "one", &["small"]);
    assert!(!may_use(&client, "one"));
    tag(&client, "one", &["dates"]);
    assert!(may_use(&client, "one"), "and again");
    client.delete("/v1/adapters/one").expect(204);
    upload(&client, "one");
    assert!(!may_use(&client, "one"), "a removed alias takes its tags along");
    deploy(&client, "one", &json!({}));
    assert!(!may_use(&client, "one"), "nothing is granted by default");
    for bad in [json!(["A b"]), json!([""]), json!((0..17).map(|number| format!("t{number}")).collect::<Vec<_>>())] {
        let status = client.put("/v1/adapters/two/tags", &json!({"tags": bad})).status;
        assert!((400..500).contains(&status), "{status} {bad}");
    }
    client.put("/v1/adapters/nobody/tags", &json!({"tags": ["a"]})).expect_not_found();
    let stranger = client.with_key(Some(tenant_key(&client, "tag-stranger", &["adapters"])));
    stranger.put("/v1/adapters/two/tags", &json!({"tags": ["a"]})).expect_not_found();
    let bad = json!({"plugin": client.upload_plugin(tests::guest("echo")), "grants": {"adapter_tags": ["*"]}});
    client.put("/v1/functions/bad-tag", &bad).expect_error(400, "invalid_manifest");
}

#[test]
fn an_owner_grants_what_it_shares_and_no_more() {
    let server = started();
    let operator = server.client();
    let of = |name: &str| operator.with_key(Some(tenant_key(&operator, name, &["adapters", "deploy", "invoke"])));
    let (owner, other, reader) = (of("tag-owner"), of("tag-other"), of("tag-reader"));
    for (tenant, alias) in [(&owner, "theirs"), (&other, "others")] {
        upload(tenant, alias);
        let readers = json!({"tenants": ["tag-reader"], "license": "MIT"});
        tenant.put(&format!("/v1/adapters/{alias}/readers"), &readers).expect(200);
    }
    reader.put("/v1/adapters/lent", &json!({"source": "tenon://tag-owner/theirs"})).expect(201);
    deploy(&reader, "lent", &json!({"adapter_owners": ["tag-owner"]}));
    assert!(may_use(&reader, "lent"));
    deploy(&reader, "lent", &json!({"adapter_owners": ["tag-other"]}));
    assert!(!may_use(&reader, "lent"), "another one's");
    deploy(&reader, "lent", &json!({"adapter_owners": ["tag-owner"]}));
    owner.delete("/v1/adapters/theirs/readers").expect(204);
    assert!(!may_use(&reader, "lent"), "it is shared no more");
}
