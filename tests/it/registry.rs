//! Components through OCI registries: what `tenon push` writes is read by another client and what another one wrote by `tenon pull`;
//! functions of what was pulled, by the command line and by the host itself; signatures beside an artefact. Not here: registries that
//! lie (`oci/tests.rs` of the host).

use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};
use tests::{Client, Distribution, MemoryRegistry, Options, Server, guest, shared_server, tenant_key, tenon};

/// `tenon` where nobody logged in to any registry.
fn command(arguments: &[&str]) -> Command {
    let mut command = tenon();
    command.args(arguments).env("DOCKER_CONFIG", "there-is-no-such-folder").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("tenon starts")
}

/// What it printed as JSON.
fn printed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn refused(output: &Output, code: &str) -> String {
    let error: Value = serde_json::from_slice(&output.stderr).expect("an error in JSON");
    assert_eq!((output.status.code(), error["error"]["code"].as_str()), (Some(1), Some(code)), "{error}");
    error["error"]["message"].as_str().expect("a message").to_owned()
}

/// A component in a file.
fn component(folder: &Path, name: &str) -> (String, Vec<u8>) {
    let (file, bytes) = (folder.join(format!("{name}.wasm")), guest(name));
    std::fs::write(&file, &bytes).expect("written");
    (file.to_str().expect("UTF-8").to_owned(), bytes)
}

/// A key, and the bundles that it signs, as `cosign sign-blob` writes them.
struct Signer(KeyPair);

impl Signer {
    fn new() -> Self {
        Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key"))
    }

    fn pem(&self) -> String {
        let der = STANDARD.encode(self.0.subject_public_key_info());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        let signature = STANDARD.encode(self.0.sign(bytes).expect("a signature"));
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": ""}},
            "messageSignature": {"signature": signature},
        })
        .to_string()
        .into_bytes()
    }
}

/// Asks of a tenant's plugins that one of these signed them.
fn demand(operator: &Client, tenant: &str, plugins: &str, keys: &[&Signer]) -> Value {
    let keys: Vec<String> = keys.iter().map(|signer| signer.pem()).collect();
    let body = json!({"policy": "none", "plugins": plugins, "keys": keys});
    operator.put(&format!("/v1/tenants/{tenant}/signers"), &body).expect(200).json()
}

#[test]
fn push_and_pull_speak_json() {
    let registry = MemoryRegistry::start();
    let folder = tempfile::tempdir().expect("a folder");
    let (file, bytes) = component(folder.path(), "echo");
    let reference = format!("{}/acme/echo:1.0", registry.address());
    let note = "org.opencontainers.image.source=https://example.org/echo";
    let push = ["push", &file, &reference, "--plain-http", "--annotation", note, "--json"];
    let pushed = printed(&run(&push));
    assert_eq!((&pushed["uploaded"], &pushed["bytes"]), (&json!(true), &json!(bytes.len())));
    let again = printed(&run(&push));
    assert_eq!((&again["uploaded"], &again["digest"]), (&json!(false), &pushed["digest"]), "the same is the same");
    let output = folder.path().join("pulled.wasm");
    let output = output.to_str().expect("UTF-8");
    let pulled = printed(&run(&["pull", &reference, "--plain-http", "-o", output, "--json"]));
    assert_eq!((&pulled["digest"], &pulled["signatures"]), (&pushed["digest"], &json!([])));
    assert!(pulled["exports"][0].as_str().is_some_and(|name| name.starts_with("tenon:plugin/hooks@")), "{pulled}");
    assert_eq!(std::fs::read(output).expect("written"), bytes);
    // Without a name, under the repository's, and nothing is written over.
    let pull =
        || command(&["pull", &reference, "--plain-http", "--json"]).current_dir(folder.path()).output().expect("runs");
    assert!(refused(&pull(), "file_exists").contains("--output"));
    std::fs::remove_file(&file).expect("removed");
    assert_eq!(printed(&pull())["component"], "echo.wasm");
    assert_eq!(std::fs::read(&file).expect("written"), bytes);

    for (arguments, code) in [
        (vec!["pull", "echo:1"], "invalid_reference"),
        (vec!["pull", "registry.example/acme/echo:1", "--plain-http"], "registry_not_loopback"),
        (vec!["push", "nowhere.wasm", &reference], "file_unreadable"),
        (vec!["push", &file, &reference, "--annotation", "nothing"], "invalid_request"),
    ] {
        let typed: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        refused(&run(&typed), code);
    }
    let other = format!("{}/acme/echo:2.0", registry.address());
    assert!(
        refused(&run(&["pull", &other, "--plain-http", "-o", output, "--json"]), "source_not_found").contains("tag")
    );
    let plain = run(&["pull", &reference, "-o", output, "--json"]);
    assert!(refused(&plain, "source_unavailable").contains("--plain-http"));
    let core = folder.path().join("core.wasm");
    std::fs::write(&core, b"\0asm\x01\0\0\0").expect("written");
    refused(&run(&["push", core.to_str().expect("UTF-8"), &reference, "--plain-http", "--json"]), "plugin_invalid");
}

#[test]
fn another_client_reads_what_was_pushed_and_the_other_way_round() {
    let test = "another_client_reads_what_was_pushed_and_the_other_way_round";
    let Some(registry) = Distribution::start(test, false) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (file, bytes) = component(folder.path(), "echo");
    let reference = format!("{}/acme/echo:1.0", registry.address());
    let pushed = printed(&run(&["push", &file, &reference, "--plain-http", "--json"]));
    let read = registry.oras(folder.path(), &["pull", &reference, "out"]);
    let layer = &read["manifest"]["layers"][0];
    assert_eq!((&layer["mediaType"], &layer["digest"]), (&json!("application/wasm"), &pushed["component_sha256"]));
    assert_eq!(read["manifest"]["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    let pulled = folder.path().join(read["files"][0].as_str().expect("a file"));
    assert_eq!(std::fs::read(pulled).expect("pulled"), bytes);

    // It has no referrers API: a signature is found by the tag that stands for it.
    let bundle = folder.path().join("echo.json");
    std::fs::write(&bundle, Signer::new().sign(&bytes)).expect("written");
    let bundle = bundle.to_str().expect("UTF-8");
    for _ in 0..2 {
        printed(&run(&["push", &file, &reference, "--plain-http", "--signature", bundle, "--json"]));
    }
    let beside = folder.path().join("beside.wasm");
    let pull = ["pull", &reference, "--plain-http", "--json", "-o", beside.to_str().expect("UTF-8")];
    let pulled = printed(&run(&pull));
    let signatures = pulled["signatures"].as_array().expect("a list");
    assert_eq!(signatures.len(), 1, "the same one twice is one");
    let found = std::fs::read(signatures[0].as_str().expect("a file")).expect("written");
    assert_eq!(found, std::fs::read(bundle).expect("there"));

    let (_, blend) = component(folder.path(), "blend");
    let config = json!({
        "created": "2026-01-01T00:00:00Z", "author": "somebody", "architecture": "wasm", "os": "wasip2",
        "layerDigests": [], "component": {"exports": ["a:b/c"], "imports": [], "target": null},
    });
    let theirs = format!("{}/acme/blend:1", registry.address());
    let out = folder.path().join("out.wasm");
    let pull = |digests: Value| {
        let mut config = config.clone();
        config["layerDigests"] = digests;
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let kept = registry.oras(folder.path(), &["push", "blend.wasm", "config.json", &theirs]);
        assert_eq!(kept["status"], 201);
        run(&["pull", &theirs, "--plain-http", "-o", out.to_str().expect("UTF-8"), "--json"])
    };
    // A config of no layer is not this component's.
    assert!(refused(&pull(json!([])), "source_not_plugin").contains("another layer"));
    let other = format!("{}/acme/other:1", registry.address());
    let (blend_file, _) = component(folder.path(), "blend");
    let layer = printed(&run(&["push", &blend_file, &other, "--plain-http", "--json"]))["component_sha256"].clone();
    assert_eq!(printed(&pull(json!([layer])))["exports"], json!(["a:b/c"]));
    assert_eq!(std::fs::read(&out).expect("written"), blend);
}

#[test]
fn a_private_registry_is_asked_with_what_was_given() {
    let Some(registry) = Distribution::start("a_private_registry_is_asked_with_what_was_given", true) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (file, _) = component(folder.path(), "echo");
    let reference = format!("{}/acme/echo:1.0", registry.address());
    let (username, password) = Distribution::LOGIN;
    let push = ["push", &file, &reference, "--plain-http", "--json"];
    assert!(refused(&run(&push), "source_denied").contains("--password-stdin"));
    let with = |password: &str| {
        let input = folder.path().join("password");
        std::fs::write(&input, format!("{password}\n")).expect("written");
        let mut command = command(&push);
        command.args(["--username", username, "--password-stdin"]).stdin(std::fs::File::open(input).expect("a file"));
        command.output().expect("tenon starts")
    };
    assert!(refused(&with("wrong"), "source_denied").contains("check them"));
    refused(&with(""), "invalid_credentials");
    printed(&with(password));
    // What `docker login` would have kept.
    let auth = STANDARD.encode(format!("{username}:{password}"));
    let config = json!({"auths": {registry.address(): {"auth": auth}}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    let output = folder.path().join("out.wasm");
    let pull = ["pull", &reference, "--plain-http", "--json", "-o", output.to_str().expect("UTF-8")];
    refused(&run(&pull), "source_denied");
    printed(&command(&pull).env("DOCKER_CONFIG", folder.path()).output().expect("tenon starts"));
    let missing = format!("{}/acme/echo:2.0", registry.address());
    let missing = ["pull", &missing, "--plain-http", "--json", "-o", "never.wasm"];
    refused(&command(&missing).env("DOCKER_CONFIG", folder.path()).output().expect("tenon starts"), "source_not_found");
}

#[test]
fn a_function_is_deployed_from_a_registry() {
    let Some(server) = shared_server("a_function_is_deployed_from_a_registry") else { return };
    let registry = MemoryRegistry::start();
    let folder = tempfile::tempdir().expect("a folder");
    let (file, bytes) = component(folder.path(), "echo");
    let reference = format!("{}/acme/echo:1.0", registry.address());
    let pushed = printed(&run(&["push", &file, &reference, "--plain-http", "--json"]));
    let tenon = |arguments: &[&str]| {
        let mut command = command(arguments);
        command.env("TENON_URL", server.url()).env("TENON_KEY_FILE", server.data().join("dev.key"));
        command.output().expect("tenon starts")
    };
    let source = format!("oci://{reference}");
    let deployed = printed(&tenon(&["deploy", "from-registry", "--plugin", &source, "--plain-http", "--json"]));
    assert_eq!(deployed["plugin"], json!(server.client().upload_plugin(bytes)));
    let answer = tenon(&["invoke", "from-registry", "hello", "--max-tokens", "2", "--json"]);
    assert_eq!(printed(&answer)["finish_reason"], "length");
    // By its digest just that is meant, and nothing else is taken for it.
    let exact = format!("{source}@{}", pushed["digest"].as_str().expect("a digest"));
    let exact = tenon(&["deploy", "from-registry", "--plugin", &exact, "--plain-http", "--json"]);
    refused(&exact, "source_not_found");
    let other = format!("{source}@sha256:{}", "0".repeat(64));
    refused(&tenon(&["deploy", "from-registry", "--plugin", &other, "--plain-http", "--json"]), "source_not_found");
    // The host itself asks nobody, unless its operator says so.
    let client = server.client();
    client.post("/v1/plugins", &json!({"source": source})).expect_error(422, "source_not_allowed");
    client.post("/v1/plugins", &json!({"source": "oci://nothing"})).expect_error(422, "invalid_reference");
    client.post("/v1/plugins", &json!({"source": "https://example.org/a.wasm"})).expect_error(400, "invalid_request");
    client.post("/v1/plugins", &json!({"source": source, "secret": "s"})).expect_error(400, "invalid_request");
}

#[test]
fn signatures_come_along_by_the_command_line() {
    let Some(server) = shared_server("signatures_come_along_by_the_command_line") else { return };
    let (operator, registry) = (server.client(), MemoryRegistry::start());
    let folder = tempfile::tempdir().expect("a folder");
    let (file, bytes) = component(folder.path(), "echo");
    let (signer, stranger) = (Signer::new(), Signer::new());
    let kept = |name: &str, bundle: Vec<u8>| {
        let file = folder.path().join(name);
        std::fs::write(&file, bundle).expect("written");
        file.to_str().expect("UTF-8").to_owned()
    };
    let (good, bad) = (kept("good.json", signer.sign(&bytes)), kept("bad.json", stranger.sign(&bytes)));
    let key = tenant_key(&operator, "signed-by-command", &["deploy"]);
    let pem = kept("signer.pub", signer.pem().into_bytes());
    let tenon = |arguments: &[&str], key: &str| {
        let all: Vec<&str> = arguments.iter().copied().chain(["--key", key, "--json"]).collect();
        command(&all).env("TENON_URL", server.url()).output().expect("tenon starts")
    };
    let policy =
        ["tenant", "signers", "signed-by-command", "--policy", "none", "--plugins", "required", "--signer-key", &pem];
    assert_eq!(printed(&tenon(&policy, &server.key()))["plugins"], "required");
    let deploy = |more: &[&str]| {
        let typed: Vec<&str> = ["deploy", "signed"].iter().chain(more).copied().collect();
        tenon(&typed, &key)
    };
    refused(&deploy(&["--plugin", &file]), "plugin_signature_required");
    refused(&deploy(&["--plugin", &file, "--signature", &bad]), "plugin_signature_untrusted");
    refused(&deploy(&["--plugin", &file, "--signature", &pem]), "plugin_signature_invalid");
    // In a registry it lies beside the component, a stranger's too.
    let reference = format!("{}/acme/echo:1.0", registry.address());
    let (source, push) = (format!("oci://{reference}"), ["push", &file, &reference, "--plain-http", "--json"]);
    printed(&run(&push));
    refused(&deploy(&["--plugin", &source, "--plain-http"]), "plugin_signature_required");
    for bundle in [&bad, &good] {
        let signed: Vec<&str> = push.iter().copied().chain(["--signature", bundle]).collect();
        printed(&run(&signed));
    }
    assert_eq!(printed(&deploy(&["--plugin", &source, "--plain-http"]))["version"], 1);
    assert_eq!(printed(&deploy(&["--plugin", &file, "--signature", &good]))["version"], 2);
}

/// A host that may ask this registry.
fn host_with(test: &str, registry: &str, networks: &str) -> Option<Server> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenon.toml");
    let text = format!("[plugin_sources]\nhosts = ['http://{registry}']\nprivate_networks = [{networks}]\n");
    std::fs::write(&file, text).expect("written");
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    Server::start(test, Options { arguments, ..Options::default() })
}

#[test]
fn a_host_pulls_by_itself_what_its_operator_lets_it() {
    let test = "a_host_pulls_by_itself_what_its_operator_lets_it";
    let registry = MemoryRegistry::start();
    let Some(server) = host_with(test, &registry.address(), "'127.0.0.0/8'") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (file, bytes) = component(folder.path(), "echo");
    let signer = Signer::new();
    let bundle = folder.path().join("echo.sigstore.json");
    std::fs::write(&bundle, signer.sign(&bytes)).expect("written");
    let reference = format!("{}/acme/echo:1.0", registry.address());
    let bundle = bundle.to_str().expect("UTF-8");
    let pushed = printed(&run(&["push", &file, &reference, "--plain-http", "--signature", bundle, "--json"]));
    assert!(!registry.manifests().iter().any(|path| path.contains("/manifests/sha256-")), "by the referrers API alone");
    let operator = server.client();
    let client = operator.with_key(Some(tenant_key(&operator, "pulls", &["deploy"])));
    let source = json!({"source": format!("oci://{reference}")});
    let taken = client.post("/v1/plugins", &source).expect(201).json();
    let digest = operator.upload_plugin(bytes);
    assert_eq!((&taken["digest"], &taken["signature"]["state"]), (&json!(digest), &json!("unchecked")));
    assert_eq!(taken["source"], json!(format!("oci://{}", pushed["reference"].as_str().expect("a reference"))));
    client.put("/v1/functions/pulled", &json!({"plugin": digest})).expect(201);

    // The signature came along: the host finds it by itself.
    let set = demand(&operator, "pulls", "required", &[&signer]);
    let taken = client.post("/v1/plugins", &source).expect(201).json();
    assert_eq!(taken["signature"], json!({"state": "signed", "key": set["keys"][0]["id"]}));
    demand(&operator, "pulls", "required", &[&Signer::new()]);
    client.post("/v1/plugins", &source).expect_error(422, "plugin_signature_untrusted");
    let missing = json!({"source": format!("oci://{}/acme/echo:2", registry.address())});
    client.post("/v1/plugins", &missing).expect_error(422, "source_not_found");
    let elsewhere = json!({"source": "oci://127.0.0.1:1/acme/echo:1"});
    client.post("/v1/plugins", &elsewhere).expect_error(422, "source_not_allowed");
    drop(registry);
    client.post("/v1/plugins", &source).expect_error(503, "source_unavailable");
}

#[test]
fn a_tenant_s_plugins_must_be_signed_by_whom_it_trusts() {
    let Some(server) = shared_server("a_tenant_s_plugins_must_be_signed_by_whom_it_trusts") else { return };
    let operator = server.client();
    let client = operator.with_key(Some(tenant_key(&operator, "signed-plugins", &["deploy"])));
    let (bytes, other) = (guest("first-sentence"), guest("relay"));
    let (signer, stranger) = (Signer::new(), Signer::new());
    let state = |answer: &Value| answer["signature"]["state"].as_str().unwrap_or_default().to_owned();

    // Nobody asks: what is unsigned is taken, and a signature is not believed.
    let unsigned = client.post_bytes("/v1/plugins", bytes.clone()).expect(201).json();
    assert_eq!(state(&unsigned), "unsigned");
    let sent = client.upload_signed_plugin(bytes.clone(), &[stranger.sign(&bytes)]).expect(201).json();
    assert_eq!((state(&sent), &sent["digest"]), ("unchecked".to_owned(), &unsigned["digest"]));
    let manifest = json!({"plugin": unsigned["digest"]});
    client.put("/v1/functions/signed-one", &manifest).expect(201);

    // From now on it is asked for, of what was uploaded before too; what is live stays.
    let set = demand(&operator, "signed-plugins", "required", &[&signer]);
    assert_eq!((&set["plugins"], &set["policy"]), (&json!("required"), &json!("none")));
    client.put("/v1/functions/signed-one", &manifest).expect_error(422, "plugin_signature_required");
    client.get("/v1/functions/signed-one").expect(200);
    for (signatures, code) in [
        (vec![], "plugin_signature_required"),
        (vec![stranger.sign(&other)], "plugin_signature_untrusted"),
        (vec![signer.sign(&bytes)], "plugin_signature_untrusted"),
        (vec![signer.sign(&other)[..80].to_vec()], "plugin_signature_invalid"),
        (vec![b"{}".to_vec()], "plugin_signature_invalid"),
        (vec![signer.sign(&bytes); 9], "plugin_signature_invalid"),
    ] {
        client.upload_signed_plugin(other.clone(), &signatures).expect_error(422, code);
    }
    client.post_bytes("/v1/plugins", other.clone()).expect_error(422, "plugin_signature_required");
    let large = vec![b' '; (256 << 10) + 1];
    client.upload_signed_plugin(other.clone(), &[large]).expect_error(413, "body_too_large");
    // Nothing of it was kept: to deploy it is to deploy what is not there.
    let digest = operator.upload_plugin(other.clone());
    client.put("/v1/functions/signed-two", &json!({"plugin": digest})).expect_error(404, "plugin_not_found");

    // One that holds is enough, and is remembered.
    let both = [stranger.sign(&other), signer.sign(&other)];
    let taken = client.upload_signed_plugin(other.clone(), &both).expect(201).json();
    assert_eq!(taken["signature"], json!({"state": "signed", "key": set["keys"][0]["id"]}));
    client.put("/v1/functions/signed-two", &json!({"plugin": digest})).expect(201);
    // The signer is not trusted any more.
    demand(&operator, "signed-plugins", "required", &[&stranger]);
    let again = client.put("/v1/functions/signed-two", &json!({"plugin": digest}));
    again.expect_error(422, "plugin_signature_required");
    client.upload_signed_plugin(other.clone(), &both[1..]).expect_error(422, "plugin_signature_untrusted");
    client.upload_signed_plugin(other, &both).expect(201);
    client.put("/v1/functions/signed-two", &json!({"plugin": digest})).expect(201);

    // Whoever changes the keys for adapters alone does not change what plugins need.
    let path = "/v1/tenants/signed-plugins/signers";
    let kept = operator.put(path, &json!({"policy": "optional", "keys": [signer.pem()]})).expect(200).json();
    assert_eq!((&kept["policy"], &kept["plugins"]), (&json!("optional"), &json!("required")));
    // Parts that nobody knows are no signatures.
    let form = reqwest::blocking::multipart::Form::new().text("component", "x");
    let answer = client.request(reqwest::Method::POST, "/v1/plugins").multipart(form).send().expect("an answer");
    assert_eq!(answer.status(), 400);
}
