//! Signed adapters as tenants and operators see them: the policy, the keys, what an upload and a folder must bring. Not here:
//! each way in which a bundle can be wrong (`adapters/signature/tests.rs` of the host).

use std::path::PathBuf;

use serde_json::{Value, json};
use tests::{Client, Options, Server, repository, run_tenon, tenant_key};

const FILES: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "model.sig"];

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures/signatures")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The first so many of the three files.
fn files(count: usize) -> Vec<(String, Vec<u8>)> {
    FILES.into_iter().take(count).map(|name| (name.to_owned(), file(&format!("adapter/{name}")))).collect()
}

fn policy(operator: &Client, tenant: &str, policy: &str, keys: &[&str]) -> Value {
    let keys: Vec<String> = keys.iter().map(|name| String::from_utf8(file(name)).expect("PEM")).collect();
    operator.put(&format!("/v1/tenants/{tenant}/signers"), &json!({"policy": policy, "keys": keys})).expect(200).json()
}

#[test]
fn a_tenant_s_adapters_must_be_signed_by_whom_it_trusts() {
    let root = tempfile::tempdir().expect("a folder");
    let arguments = vec!["--adapters-root".into(), root.path().to_str().expect("UTF-8").into()];
    let test = "a_tenant_s_adapters_must_be_signed_by_whom_it_trusts";
    let Some(server) = Server::start(test, Options { arguments, ..Options::default() }) else { return };
    let operator = server.client();
    let client = operator.with_key(Some(tenant_key(&operator, "signed", &["adapters"])));
    let path = "/v1/tenants/signed/signers";
    assert_eq!(
        operator.get(path).expect(200).json(),
        json!({"tenant": "signed", "policy": "none", "plugins": "none", "keys": [], "revision": 0})
    );

    // Nobody asks for it yet: a signature is kept quiet about, not believed.
    let state = |answer: &Value| answer["signature"]["state"].as_str().unwrap_or_default().to_owned();
    assert_eq!(state(&client.upload_files("one", files(2)).expect(201).json()), "unsigned");
    assert_eq!(state(&client.upload_files("one", files(3)).expect(201).json()), "unchecked");

    let set = policy(&operator, "signed", "required", &["other.pub", "signer.pub"]);
    let signer = set["keys"][1]["id"].as_str().expect("an identifier").to_owned();
    client.upload_files("two", files(2)).expect_error(422, "adapter_signature_required");
    let signed = client.upload_files("two", files(3)).expect(201).json();
    assert_eq!(signed["signature"], json!({"state": "signed", "key": signer}));
    let shown = client.get("/v1/adapters/two").expect(200).json();
    assert_eq!((&shown["signature"], &shown["digest"]), (&signed["signature"], &signed["digest"]));
    let mut changed = files(3);
    *changed[1].1.last_mut().expect("weights") ^= 1;
    client.upload_files("two", changed).expect_error(422, "adapter_signature_invalid");
    let mut large = files(3);
    large[2].1 = vec![b' '; (256 << 10) + 1];
    client.upload_files("two", large).expect_error(413, "body_too_large");

    // From a folder: model.sig lies in it.
    for name in FILES {
        std::fs::write(root.path().join(name), file(&format!("adapter/{name}"))).expect("a file");
    }
    let source = json!({"source": format!("file://{}", root.path().display())});
    let found = client.put("/v1/adapters/three", &source).expect(201).json();
    assert_eq!((&found["signature"], &found["digest"]), (&signed["signature"], &signed["digest"]));
    std::fs::remove_file(root.path().join("model.sig")).expect("removed");
    client.put("/v1/adapters/three", &source).expect_error(422, "adapter_signature_required");

    // What is made of signed adapters alone is let in; it is signed by nobody, and says by whom its parents were.
    let half = |parent: &str| json!({"method": "concatenate", "parents": [{"adapter": parent, "weight": 0.5}]});
    client.post("/v1/adapters/half/derive", &half("one")).expect_error(422, "adapter_signature_required");
    let derived = client.post("/v1/adapters/half/derive", &half("two")).expect(201).json();
    assert_eq!(state(&derived), "unsigned");
    assert_eq!(derived["lineage"]["parents"][0]["signers"], json!([signer]));

    let untrusted = policy(&operator, "signed", "optional", &["other.pub"]);
    assert_eq!(untrusted["revision"], 2);
    client.upload_files("four", files(3)).expect_error(422, "adapter_signature_untrusted");
    assert_eq!(state(&client.upload_files("four", files(2)).expect(201).json()), "unsigned");

    // The command line sends model.sig along, and sets the policy.
    let connection = ["--url", server.url(), "--key", &server.key()].map(str::to_owned);
    let tenon = |arguments: &[&str]| {
        let all: Vec<&str> = arguments.iter().copied().chain(connection.iter().map(String::as_str)).collect();
        run_tenon(&all)
    };
    let (key, folder) = (fixtures().join("signer.pub"), fixtures().join("adapter"));
    let (key, folder) = (key.to_str().expect("UTF-8"), folder.to_str().expect("UTF-8"));
    let typed = ["tenant", "signers", "dev", "--policy", "required", "--signer-key", key, "--expect", "0"];
    let output = tenon(&typed);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(&signer));
    assert!(!tenon(&typed).status.success(), "the revision is 1 by now");
    assert!(tenon(&["adapter", "add", "five", folder]).status.success());
    let inspected = tenon(&["adapter", "inspect", "five"]);
    let inspected = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(inspected.contains("signature.key") && inspected.contains(&signer), "{inspected}");
    assert!(inspected.contains("spectral_norms") && inspected.contains("frobenius_norms"), "{inspected}");
}

#[test]
fn only_operators_say_who_may_sign() {
    let Some(server) = tests::shared_server("only_operators_say_who_may_sign") else { return };
    let operator = server.client();
    let key = tenant_key(&operator, "signers", &["invoke", "deploy", "adapters", "receipts"]);
    let client = operator.with_key(Some(key));
    let path = "/v1/tenants/signers/signers";
    client.get(path).expect_error(403, "forbidden");
    client.put(path, &json!({"policy": "none"})).expect_error(403, "forbidden");
    operator.get("/v1/tenants/nobody/signers").expect_error(404, "not_found");
    operator.put("/v1/tenants/nobody/signers", &json!({"policy": "none"})).expect_error(404, "not_found");
    for (body, code) in [
        (json!({"policy": "sometimes"}), "invalid_request"),
        (json!({"policy": "required", "keys": ["no PEM"]}), "invalid_public_key"),
        (json!({"policy": "required", "key": []}), "invalid_request"),
        (json!({}), "invalid_request"),
    ] {
        operator.put(path, &body).expect_error(400, code);
    }
    operator.put(path, &json!({"policy": "none", "expect": 3})).expect_error(409, "conflict");
    assert_eq!(operator.get(path).expect(200).json()["revision"], 0);
}
