//! Adapters out of others, over HTTP and by the command line: what they answer, what they inherit, what is refused.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Answer, Client, PeftAdapter, Server, adapter_folder, completion_ids, shared_server, tenant_key, tenon};

const PROMPT: &str = "What is the ocean?";
/// Between logprobs of two ways to the same sum in f32.
const LOGPROB_TOLERANCE: f64 = 2e-3;

fn derive(client: &Client, alias: &str, body: &Value) -> Answer {
    client.post(&format!("/v1/adapters/{alias}/derive"), body)
}

/// Greedy tokens and the logprob of the first.
fn answer(client: &Client, adapters: &Value) -> (Vec<u32>, f64) {
    let body = json!({"model": "base", "prompt": PROMPT, "adapters": adapters, "max_tokens": 10, "temperature": 0,
        "ignore_eos": true, "return_token_ids": true, "logprobs": 1});
    let value = client.post("/v1/completions", &body).expect(200).json();
    let first = value["choices"][0]["logprobs"]["token_logprobs"][0].as_f64().expect("a logprob");
    (completion_ids(&value), first)
}

fn same(found: &(Vec<u32>, f64), expected: &(Vec<u32>, f64), what: &str) {
    assert_eq!(found.0, expected.0, "{what}");
    assert!((found.1 - expected.1).abs() < LOGPROB_TOLERANCE, "{what}: {} {}", found.1, expected.1);
}

#[test]
fn a_derived_sum_answers_as_the_composition() {
    let Some(server) = shared_server("a_derived_sum_answers_as_the_composition") else { return };
    let client = server.client();
    let entries = [("all-caps", 0.8), ("iso-date", -0.4), ("sentiment-json", 0.5)];
    let named = |key: &str| -> Vec<Value> {
        entries.iter().map(|(name, weight)| json!({key: name, "weight": weight})).collect()
    };
    let composed = answer(&client, &json!(named("name")));
    // 4 + 8 + 8 on q and v.
    for (alias, body, rank) in [
        ("derived-cat", json!({"method": "concatenate", "parents": named("adapter")}), 20),
        ("derived-svd", json!({"method": "svd", "rank": 20, "parents": named("adapter")}), 20),
    ] {
        let derived = derive(&client, alias, &body).expect(201).json();
        assert_eq!(derived["rank"], json!(rank));
        assert!(derived["lineage"]["error"].as_f64().is_some_and(|error| error < 1e-6), "{derived}");
        assert_eq!(client.get(&format!("/v1/adapters/{alias}")).expect(200).json(), derived);
        same(&answer(&client, &json!([{"name": alias}])), &composed, alias);
    }
    let low = json!({"method": "svd", "rank": 2, "parents": named("adapter")});
    let low = derive(&client, "derived-low", &low).expect(201).json();
    let error = low["lineage"]["error"].as_f64().expect("a number");
    assert!(low["rank"] == json!(2) && (0.01..1.0).contains(&error), "{low}");
    let listed = client.get("/v1/adapters").expect(200).json();
    let card = listed["data"].as_array().unwrap().iter().find(|one| one["alias"] == "derived-low").expect("listed");
    assert!(card.get("lineage").is_none() && card["license"] == "unknown", "{card}");
}

/// A weight for each module or layer is an entry for each: of the same adapter, with other selections.
#[test]
fn weights_by_module_and_by_layer_are_entries_of_one_adapter() {
    let Some(server) = shared_server("weights_by_module_and_by_layer_are_entries_of_one_adapter") else { return };
    let client = server.client();
    let whole = answer(&client, &json!([{"name": "all-caps", "weight": 0.9}]));
    let base = answer(&client, &json!([]));
    assert!((whole.1 - base.1).abs() > 10.0 * LOGPROB_TOLERANCE, "the adapter shows: {} {}", whole.1, base.1);
    let entry = |weight: f64, modules: Value, layers: Value| json!({"name": "all-caps", "weight": weight, "modules": modules, "layers": layers});
    // Parts that cover it once are the adapter, however it is cut.
    let cut = json!([
        entry(0.9, json!(["q_proj"]), json!([0, 10])),
        entry(0.9, json!(["q_proj"]), json!([10, 30])),
        entry(0.9, json!(["v_proj", "down_proj"]), Value::Null),
    ]);
    same(&answer(&client, &cut), &whole, "cut");
    // A negative weight takes away what another entry gave, and zero gives nothing.
    let taken = json!([
        entry(0.9, Value::Null, Value::Null),
        entry(-0.9, json!(["q_proj", "v_proj"]), json!([0, 30])),
        entry(0.0, json!(["q_proj"]), Value::Null),
    ]);
    same(&answer(&client, &taken), &base, "taken away");
    // Weights by module and layer: the same as a derived adapter of each part would be, so two orders agree.
    let varied = [
        entry(1.5, json!(["v_proj"]), json!([0, 15])),
        entry(-0.5, json!(["v_proj"]), json!([15, 30])),
        entry(0.3, json!(["q_proj"]), Value::Null),
    ];
    let turned: Vec<&Value> = varied.iter().rev().collect();
    let there = answer(&client, &json!(varied));
    assert_eq!(there, answer(&client, &json!(turned)), "order");
    assert!((there.1 - whole.1).abs() > LOGPROB_TOLERANCE);
    let body = |adapters: Value| json!({"model": "base", "prompt": PROMPT, "max_tokens": 1, "adapters": adapters});
    let refused = |adapters: Value, code: &str| {
        client.post("/v1/completions", &body(adapters)).expect_error(400, code);
    };
    refused(json!([entry(1.0, json!(["lm_head"]), Value::Null)]), "invalid_request");
    refused(json!([entry(1.0, json!([]), Value::Null)]), "invalid_plan");
    refused(json!([entry(1.0, Value::Null, json!([5, 5]))]), "invalid_plan");
    refused(json!([entry(1.0, Value::Null, json!([0, 31]))]), "invalid_plan");
    refused(json!([entry(1.0, Value::Null, json!([0, -1]))]), "invalid_request");
    refused(json!([entry(17.0, Value::Null, Value::Null)]), "limit_exceeded");
    refused(json!(vec![entry(0.1, Value::Null, Value::Null); 9]), "limit_exceeded");
}

#[test]
fn a_licence_is_kept_and_the_strictest_is_inherited() {
    let Some(server) = shared_server("a_licence_is_kept_and_the_strictest_is_inherited") else { return };
    let client = server.client();
    let upload = |alias: &str, seed: u64, license: &str| {
        let adapter = PeftAdapter::tiny(seed);
        let mut files = vec![
            ("adapter_config.json".to_owned(), adapter.config_file()),
            ("adapter_model.safetensors".to_owned(), adapter.weights_file()),
        ];
        if !license.is_empty() {
            files.push(("license".to_owned(), license.as_bytes().to_vec()));
        }
        client.upload_files(alias, files)
    };
    let stated = upload("lic-a", 1, "apache-2.0").expect(201).json();
    assert_eq!(stated["license"], json!("Apache-2.0"));
    assert_eq!(upload("lic-b", 2, "CC-BY-NC-4.0").expect(201).json()["license"], json!("CC-BY-NC-4.0"));
    assert!(upload("lic-none", 3, "").expect(201).json().get("license").is_none());
    upload("lic-bad", 4, "MIT OR Apache-2.0").expect_error(400, "invalid_request");
    client.get("/v1/adapters/lic-bad").expect_not_found();
    let parents = |names: &[&str]| names.iter().map(|name| json!({"adapter": name})).collect::<Vec<_>>();
    let made = |names: &[&str]| {
        let body = json!({"method": "dare_ties", "density": 0.5, "seed": 4, "rank": 4, "parents": parents(names)});
        derive(&client, "lic-derived", &body).expect(201).json()
    };
    let derived = made(&["lic-a", "lic-b"]);
    assert_eq!(derived["license"], json!("CC-BY-NC-4.0"));
    let lineage = &derived["lineage"];
    assert_eq!((&lineage["method"], &lineage["seed"]), (&json!("dare_ties"), &json!(4)));
    assert_eq!(lineage["majority_sign"], json!("total"), "what was left to a default is said");
    assert_eq!(lineage["parents"].as_array().map(Vec::len), Some(2));
    assert!(lineage["parents"][0]["license"].is_string() && lineage["parents"][0]["weight"] == json!(1.0));
    assert_eq!(lineage["modules"].as_array().map(Vec::len), Some(2), "q and v");
    assert_eq!(made(&["lic-a", "lic-none"])["license"], json!("unknown"));
    let again = made(&["lic-b", "lic-a"]);
    assert_eq!(again["digest"], derived["digest"], "the same parents, seed and weights");
}

#[test]
fn hostile_derivations_are_refused_with_their_reason() {
    let Some(server) = shared_server("hostile_derivations_are_refused_with_their_reason") else { return };
    let client = server.client();
    let one = json!([{"adapter": "all-caps"}]);
    let bad = |body: &Value, param: Option<&str>| {
        let answer = derive(&client, "hostile", body);
        let found = answer.expect_error(400, "invalid_request").json();
        if let Some(param) = param {
            assert_eq!(found["error"]["param"], json!(param), "{body}");
        }
    };
    bad(&json!({"method": "svd", "rank": 4, "parents": []}), Some("parents"));
    bad(&json!({"method": "svd", "rank": 4, "parents": vec![json!({"adapter": "all-caps"}); 1000]}), Some("parents"));
    bad(
        &json!({"method": "svd", "rank": 4, "parents": [{"adapter": "all-caps"}, {"adapter": "all-caps"}]}),
        Some("parents"),
    );
    bad(&json!({"method": "svd", "rank": 4, "parents": [{"adapter": "all-caps", "weight": 1e30}]}), Some("parents"));
    bad(&json!({"method": "svd", "rank": 4, "parents": [{"adapter": "all-caps", "weight": 0}]}), Some("parents"));
    bad(
        &json!({"method": "svd", "rank": 4, "parents": [{"adapter": "hostile"}, {"adapter": "all-caps", "weight": "x"}]}),
        None,
    );
    bad(&json!({"method": "svd", "rank": 0, "parents": one}), Some("rank"));
    bad(&json!({"method": "svd", "rank": 257, "parents": one}), Some("rank"));
    bad(&json!({"method": "svd", "rank": -1, "parents": one}), None);
    bad(&json!({"method": "svd", "rank": u64::MAX, "parents": one}), None);
    bad(&json!({"method": "svd", "parents": one}), Some("rank"));
    bad(&json!({"method": "concatenate", "rank": 4, "parents": one}), Some("rank"));
    bad(&json!({"method": "ties", "rank": 4, "parents": one}), Some("density"));
    for density in [0.0, -1.0, 1.5] {
        bad(&json!({"method": "ties", "rank": 4, "density": density, "parents": one}), Some("density"));
    }
    bad(&json!({"method": "ties", "rank": 4, "density": 0.5, "majority_sign": "loud", "parents": one}), None);
    bad(&json!({"method": "svd", "rank": 4, "seed": 1, "parents": one}), Some("seed"));
    bad(&json!({"method": "slerp", "parents": one}), None);
    bad(&json!({"method": "svd", "rank": 4, "parents": one, "extra": 1}), None);
    bad(&json!([]), None);
    for (body, code) in [
        (r#"{"method": "svd", "rank": 4, "parents": [{"adapter": "all-caps", "weight": NaN}]}"#, "invalid_json"),
        (r#"{"method": "svd", "rank": 4, "parents": [{"adapter": "all-caps", "weight": 1e999}]}"#, "invalid_json"),
        ("", "invalid_json"),
    ] {
        let answer = client.post_bytes("/v1/adapters/hostile/derive", body.as_bytes().to_vec());
        answer.expect_error(400, code);
    }
    let svd = json!({"method": "svd", "rank": 4, "parents": one});
    derive(&client, "no%2Fslashes", &svd).expect_error(400, "invalid_request");
    derive(&client, "all-caps", &svd).expect_error(400, "invalid_request");
    let unknown = json!({"method": "svd", "rank": 4, "parents": [{"adapter": "nobody"}]});
    derive(&client, "hostile", &unknown).expect_error(404, "adapter_not_found");
    let loses = json!({"method": "svd", "rank": 1, "error_max": 0.001, "parents": one});
    derive(&client, "hostile", &loses).expect_error(422, "derivation_loses_too_much");
    client.get("/v1/adapters/hostile").expect_not_found();
}

#[test]
fn revoked_and_activated_adapters_are_no_parents() {
    let Some(server) = shared_server("revoked_and_activated_adapters_are_no_parents") else { return };
    let client = server.client();
    let upload = |alias: &str, adapter: &PeftAdapter| {
        let answer = client.upload_adapter_bytes(alias, adapter.config_file(), adapter.weights_file());
        answer.expect(201).json()["digest"].as_str().expect("a digest").to_owned()
    };
    let digest = upload("derive-revoked", &PeftAdapter::tiny(7301));
    client.put(&format!("/v1/revocations/{digest}"), &json!({"reason": "it leaks"})).expect(201);
    let mut activated = PeftAdapter::tiny(7302);
    activated.set("alora_invocation_tokens", json!([1, 2]));
    upload("derive-activated", &activated);
    for (name, status, code) in [
        ("derive-revoked", 410, "revoked"),
        (digest.as_str(), 410, "revoked"),
        ("derive-activated", 422, "adapter_unsupported"),
    ] {
        for (method, rank) in [("concatenate", Value::Null), ("svd", json!(4))] {
            let parents = json!([{"adapter": "all-caps"}, {"adapter": name, "weight": -0.5}]);
            let body = json!({"method": method, "rank": rank, "parents": parents});
            derive(&client, "derive-refused", &body).expect_error(status, code);
        }
    }
    client.get("/v1/adapters/derive-refused").expect_not_found();
}

/// Those of one tenant take their turns: what is asked for last is done when the others have come to their ends.
#[test]
fn a_derivation_ends_with_its_caller() {
    let Some(server) = shared_server("a_derivation_ends_with_its_caller") else { return };
    let operator = server.client();
    let client = operator.with_key(Some(tenant_key(&operator, "hangs-up", &["adapters"])));
    for name in ["all-caps", "iso-date"] {
        let _ = client.upload_adapter(name, &adapter_folder(name).expect("a committed adapter")).expect(201);
    }
    let parents = json!([{"adapter": "all-caps"}, {"adapter": "iso-date"}]);
    // Seconds of work: the decomposition of sixty dense matrices.
    let ties = json!({"method": "ties", "density": 0.5, "rank": 16, "parents": parents});
    for _ in 0..3 {
        client.hang_up("/v1/adapters/left/derive", &ties, "", Duration::from_millis(200));
    }
    derive(&client, "stayed", &json!({"method": "concatenate", "parents": parents})).expect(201);
    client.get("/v1/adapters/left").expect_not_found();
    derive(&client, "left", &ties).expect(201);
}

#[test]
fn another_tenants_adapter_is_no_parent() {
    let Some(server) = shared_server("another_tenants_adapter_is_no_parent") else { return };
    let owner = server.client();
    let key = tenant_key(&owner, "stranger-derive", &["adapters"]);
    let stranger = owner.with_key(Some(key));
    let digest = owner.get("/v1/adapters/iso-date").expect(200).json()["digest"].as_str().expect("text").to_owned();
    let told = |name: &str| {
        let body = json!({"method": "svd", "rank": 4, "parents": [{"adapter": name, "weight": 0.5}]});
        derive(&stranger, "stolen", &body).expect_error(404, "adapter_not_found").text.replace(name, "NAME")
    };
    let nobodys = "0".repeat(64);
    assert_eq!((told("iso-date"), told(&digest)), (told("nobody"), told(&nobodys)), "not there and not yours are one");
    stranger.get("/v1/adapters/stolen").expect_not_found();
    let without = owner.with_key(Some(tenant_key(&owner, "stranger-derive-2", &["invoke"])));
    derive(&without, "x", &json!({})).expect_error(403, "forbidden");
}

#[test]
fn the_command_line_derives_and_shows_where_it_comes_from() {
    let Some(server) = shared_server("the_command_line_derives_and_shows_where_it_comes_from") else { return };
    let run = |arguments: &[&str]| run(server, arguments);
    let folder = adapter_folder("all-caps").expect("a committed adapter");
    let added =
        run(&["adapter", "add", "cli-caps", folder.to_str().unwrap(), "--license", "MIT", "--json"]).expect("added");
    assert!(added.contains(r#""license": "MIT""#), "{added}");
    let small = ["adapter", "derive", "cli-derived", "--method", "ties", "--density", "0.5", "--rank", "8"];
    let small = [&small[..], &["--parent", "cli-caps=0.5", "--parent", "sentiment-json=-0.25"]].concat();
    let said = run(&small).expect("derived");
    assert!(said.contains("cli-derived") && said.contains("rank 8") && said.contains("lost"), "{said}");
    let shown = run(&["adapter", "inspect", "cli-derived"]).expect("shown");
    for text in ["lineage.method", "ties", "lineage.parents", "cli-caps", "MIT", "license", "unknown", "worst_layer"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    let refused = run(&["adapter", "derive", "x", "--method", "svd", "--parent", "cli-caps"]).expect_err("no rank");
    assert!(refused.contains("rank"), "{refused}");
    for wrong in
        [&["--method", "slerp", "--parent", "a"][..], &["--method", "svd"], &["--method", "svd", "--parent", "a=x"]]
    {
        assert!(run(&[&["adapter", "derive", "x"], wrong].concat()).is_err(), "{wrong:?}");
    }
    for alias in ["cli-caps", "cli-derived"] {
        run(&["adapter", "remove", alias]).expect("removed");
    }
}

/// What it printed, or what it said was wrong.
fn run(server: &Server, arguments: &[&str]) -> Result<String, String> {
    let mut command = tenon();
    command.args(arguments).env("TENON_URL", server.url()).env("TENON_KEY_FILE", server.data().join("dev.key"));
    let output = command.output().expect("tenon starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
