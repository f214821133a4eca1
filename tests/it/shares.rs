//! Adapters that one tenant shares with another, over HTTP: who may use them, what everybody else sees, and what receipts say of
//! whose they are.

use serde_json::{Value, json};
use tests::{Client, adapter_folder, deploy_plugin, shared_server, tenant_key};

const ALL: [&str; 4] = ["invoke", "deploy", "adapters", "receipts"];

fn tenant(operator: &Client, name: &str) -> Client {
    operator.with_key(Some(tenant_key(operator, name, &ALL)))
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "What is the ocean?"}], "max_tokens": 6,
        "temperature": 0})
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("text")
}

#[test]
fn a_reader_uses_what_is_shared_until_it_is_not() {
    let Some(server) = shared_server("a_reader_uses_what_is_shared_until_it_is_not") else { return };
    let operator = server.client();
    let (owner, reader) = (tenant(&operator, "share-owner"), tenant(&operator, "share-reader"));
    let folder = adapter_folder("all-caps").expect("a committed adapter");
    let digest = owner.upload_adapter("caps", &folder).expect(201).json()["digest"].clone();
    let expected = owner.post("/v1/chat/completions", &chat("caps")).expect(200).json();

    let readers = json!({"tenants": ["share-reader", "nobody-by-this-name"], "license": "Apache-2.0"});
    let shared = owner.put("/v1/adapters/caps/readers", &readers).expect(200).json();
    assert_eq!((&shared["digest"], &shared["source"]), (&digest, &json!("tenon://share-owner/caps")));
    assert_eq!(owner.get("/v1/adapters/caps/readers").expect(200).json(), shared);
    let listed = reader.get("/v1/shared-adapters").expect(200).json();
    let found = listed["data"].as_array().unwrap().iter().find(|one| one["owner"] == "share-owner").expect("it");
    assert_eq!((&found["digest"], &found["license"]), (&digest, &json!("Apache-2.0")));

    // Not before it is taken: a name of the owner's is no name of the reader's.
    reader.post("/v1/chat/completions", &chat("caps")).expect_error(404, "model_not_found");
    let taken = reader.put("/v1/adapters/loud", &json!({"source": found["source"]})).expect(201).json();
    let from = json!({"owner": "share-owner", "name": "caps", "usable": true});
    assert_eq!((&taken["digest"], &taken["license"], &taken["shared_by"]), (&digest, &json!("Apache-2.0"), &from));
    let answer = reader.post("/v1/chat/completions", &chat("loud")).expect(200);
    assert_eq!(text(&answer.json()), text(&expected));
    let receipt = reader.get(&format!("/v1/receipts/{}", answer.receipt.expect("a receipt"))).expect(200).json();
    for place in ["/receipt/subject/adapters/0", "/receipt/outcome/composition/0"] {
        let part = receipt.pointer(place).unwrap_or_else(|| panic!("{place}: {receipt:#}"));
        assert_eq!((&part["adapter"], &part["owner"]), (&digest, &json!("share-owner")), "{place}");
    }
    // A function of the reader's may use it.
    deploy_plugin(&reader, "shouts", "echo", &json!({"adapters": ["loud"]}));
    // The owner's own receipts name no owner, and tell nothing of the reader.
    let export = owner.get("/v1/receipts/export").expect(200).text;
    assert!(!export.contains("share-reader") && !export.contains("\"owner\""), "{export}");

    let shout = json!({"input": "hello", "max_tokens": 2});
    reader.post("/v1/functions/shouts/invoke", &shout).expect(200);
    owner.delete("/v1/adapters/caps/readers").expect(204);
    reader.post("/v1/functions/shouts/invoke", &shout).expect(200);
    let half = json!({"method": "concatenate", "parents": [{"adapter": "loud", "weight": 0.5}]});
    reader.post("/v1/adapters/half/derive", &half).expect_error(404, "adapter_not_found");
    owner.get("/v1/adapters/caps/readers").expect_error(404, "adapter_not_shared");
    reader.post("/v1/chat/completions", &chat("loud")).expect_error(404, "model_not_found");
    assert_eq!(reader.get("/v1/adapters/loud").expect(200).json()["shared_by"]["usable"], false);
    let models = reader.get("/v1/models").expect(200).text;
    assert!(!models.contains("loud"), "{models}");
    owner.post("/v1/chat/completions", &chat("caps")).expect(200);
    reader.delete("/v1/adapters/loud").expect(204);
}

#[test]
fn who_may_not_read_it_is_told_what_is_told_of_nothing() {
    let Some(server) = shared_server("who_may_not_read_it_is_told_what_is_told_of_nothing") else { return };
    let operator = server.client();
    let (owner, stranger) = (tenant(&operator, "share-host"), tenant(&operator, "share-stranger"));
    let folder = adapter_folder("iso-date").expect("a committed adapter");
    owner.upload_adapter("dates", &folder).expect(201);
    owner.put("/v1/adapters/dates/readers", &json!({"tenants": ["somebody"], "license": "MIT"})).expect(200);
    let take = |source: &str| stranger.put("/v1/adapters/mine", &json!({"source": source}));
    let known = take("tenon://share-host/dates").expect_error(422, "source_not_found");
    let unknown = take("tenon://no-such-tenant/dates").expect_error(422, "source_not_found");
    assert_eq!(known.json()["error"]["message"], unknown.json()["error"]["message"]);
    take("tenon://share-host").expect_error(422, "invalid_source");
    let with_secret = json!({"source": "tenon://share-host/dates", "secret": "none"});
    stranger.put("/v1/adapters/mine", &with_secret).expect_error(404, "secret_not_found");
    stranger.get("/v1/adapters/dates/readers").expect_not_found();
    stranger.delete("/v1/adapters/dates/readers").expect_not_found();
    let everyone = json!({"everyone": true, "license": "MIT"});
    stranger.put("/v1/adapters/dates/readers", &everyone).expect_not_found();
    for body in [
        json!({}),
        json!({"everyone": false}),
        json!({"tenants": []}),
        json!({"everyone": true, "tenants": ["a"]}),
        json!({"tenants": ["A B"]}),
        json!({"everyone": true, "license": "two words"}),
        json!({"everyone": true, "readers": []}),
    ] {
        owner.put("/v1/adapters/dates/readers", &body).expect_error(400, "invalid_request");
    }
    let unsaid = owner.upload_adapter("unsaid", &adapter_folder("all-caps").expect("a committed adapter")).expect(201);
    assert!(unsaid.json()["license"].is_null());
    let readers = json!({"everyone": true});
    owner.put("/v1/adapters/unsaid/readers", &readers).expect_error(422, "adapter_license_required");
}
