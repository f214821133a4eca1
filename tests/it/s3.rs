//! Adapters from a real S3 server, with faults on the way: an add either works rightly or fails with its declared code, nothing half
//! done stays, and whoever uses what was admitted before notices nothing. Not here: each fault alone, against a server that a
//! test tells what to do (`adapters/source/tests.rs` of the host).

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{
    Asked, Client, Fault, FaultProxy, Options, PeftAdapter, S3Server, Server, base, run_tenon, tenant_key,
    wait_until_idle,
};

const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// A host that fetches through a proxy from an S3 server. `None` where one of them is not there.
struct Place {
    s3: S3Server,
    proxy: FaultProxy,
    server: Server,
}

impl Place {
    fn open(test: &str) -> Option<Self> {
        let s3 = S3Server::start(test)?;
        let proxy = FaultProxy::start(s3.port());
        let folder = tempfile::tempdir().expect("a folder");
        let (file, port) = (folder.path().join("tenon.toml"), proxy.port());
        let text = format!(
            "[adapter_sources]\nhosts = ['http://localhost:{port}']\nprivate_networks = ['127.0.0.0/8', '::1/128']\n\
             s3_endpoint = 'http://localhost:{port}'\nattempts_max = 4\nretry_wait_ms = 20\nstall_ms_max = 700\n\
             total_ms_max = 4000\n"
        );
        std::fs::write(&file, text).expect("written");
        let arguments = vec!["--config".into(), file.to_str().expect("UTF-8").into()];
        let server = Server::start(test, Options { arguments, ..Options::default() })?;
        let (id, secret) = S3Server::READER;
        let keys = json!({"access_key_id": id, "secret_access_key": secret});
        server.client().put("/v1/secrets/bucket", &keys).expect(204);
        Some(Self { s3, proxy, server })
    }

    /// Puts an adapter into the bucket; its digest.
    fn keep(&self, name: &str, seed: u64) -> String {
        let (config, weights) = files(seed);
        self.s3.put(&format!("adapters/{name}/{}", FILES[0]), &config);
        self.s3.put(&format!("adapters/{name}/{}", FILES[1]), &weights);
        // What it is called is found out without the host, which must not have anything of it yet.
        let folder = tempfile::tempdir().expect("a folder");
        for (file, bytes) in FILES.into_iter().zip([config, weights]) {
            std::fs::write(folder.path().join(file), bytes).expect("written");
        }
        let (folder, base) = (folder.path().to_str().expect("UTF-8"), base().expect("the server has one"));
        let base = base.to_str().expect("UTF-8");
        let output = run_tenon(&["adapter", "inspect", "--file", folder, "--base", base, "--json"]);
        digest(&serde_json::from_slice(&output.stdout).expect("JSON"))
    }
}

fn files(seed: u64) -> (Vec<u8>, Vec<u8>) {
    let adapter = PeftAdapter::tiny(seed);
    (adapter.config_file(), adapter.weights_file())
}

fn digest(adapter: &Value) -> String {
    adapter["digest"].as_str().unwrap_or_else(|| panic!("no digest: {adapter}")).to_owned()
}

fn source(name: &str) -> Value {
    json!({"source": format!("s3://adapters/{name}"), "secret": "bucket"})
}

#[test]
fn a_bucket_is_read_with_the_keys_of_a_tenant_s_secret() {
    let Some(place) = Place::open("a_bucket_is_read_with_the_keys_of_a_tenant_s_secret") else { return };
    let client = place.server.client();
    let expected = place.keep("one", 1);
    let put = |body: Value| client.put("/v1/adapters/one", &body);
    put(json!({"source": "s3://adapters/one"})).expect_error(422, "source_denied");
    let wrong = json!({"access_key_id": S3Server::READER.0, "secret_access_key": "loud-secret"});
    client.put("/v1/secrets/wrong", &wrong).expect(204);
    put(json!({"source": "s3://adapters/one", "secret": "wrong"})).expect_error(422, "source_denied");
    put(source("none")).expect_error(422, "source_not_found");
    client.get("/v1/adapters/one").expect_not_found();
    assert_eq!(digest(&put(source("one")).expect(201).json()), expected);
    let completion = json!({"model": "one", "prompt": "One two", "max_tokens": 2, "temperature": 0});
    client.post("/v1/completions", &completion).expect(200);
    // The right of one tenant is none of another's.
    let stranger = client.with_key(Some(tenant_key(&client, "stranger-s3", &["adapters"])));
    stranger.put("/v1/adapters/one", &source("one")).expect_error(404, "secret_not_found");
    let log = place.server.log();
    assert!(!log.contains(S3Server::READER.1) && !log.contains("loud-secret"), "{log}");
}

/// What comes of an add while something goes wrong.
enum Expected {
    Works,
    Fails(u16, &'static str),
}
use Expected::{Fails, Works};

/// A name, what goes wrong, and what must come of it.
type Case = (&'static str, fn(&Asked) -> Fault, Expected);

fn is_weights(asked: &Asked) -> bool {
    asked.path.ends_with(FILES[1])
}

/// Of the file's second half: its tensors, not its header.
const IN_TENSORS: usize = 20_000;

const CASES: [Case; 13] = [
    ("nothing", |_| Fault::None, Works),
    ("a burst of errors", |asked| if asked.before < 3 { Fault::Status(503) } else { Fault::None }, Works),
    (
        "errors of all kinds",
        |asked| [500, 502, 504].get(asked.before).map_or(Fault::None, |s| Fault::Status(*s)),
        Works,
    ),
    ("errors for ever", |_| Fault::Status(500), Fails(503, "source_unavailable")),
    ("hung up at first", |asked| if asked.before == 0 { Fault::HangUp } else { Fault::None }, Works),
    ("hung up for ever", |_| Fault::HangUp, Fails(503, "source_unavailable")),
    ("cut once", |asked| if asked.before == 0 { Fault::Cut(77) } else { Fault::None }, Works),
    ("cut each time", |_| Fault::Cut(20), Fails(503, "source_unavailable")),
    ("slow, and in time", |_| Fault::Slow(16_000, Duration::from_millis(50)), Works),
    ("too slow in all", |_| Fault::Slow(20, Duration::from_millis(100)), Fails(503, "source_timeout")),
    (
        "nothing more for too long",
        |asked| if is_weights(asked) { Fault::Slow(1000, Duration::from_millis(1500)) } else { Fault::None },
        Fails(503, "source_unavailable"),
    ),
    (
        "a wrong byte",
        |asked| if is_weights(asked) { Fault::Wrong(IN_TENSORS) } else { Fault::None },
        Fails(422, "digest_mismatch"),
    ),
    (
        "vanished in the middle",
        |asked| match (is_weights(asked), asked.before) {
            (true, 0) => Fault::Cut(5000),
            (true, _) => Fault::Status(404),
            _ => Fault::None,
        },
        Fails(422, "source_not_found"),
    ),
];

#[test]
fn faults_before_a_bucket_are_mended_or_told_and_leave_nothing() {
    let test = "faults_before_a_bucket_are_mended_or_told_and_leave_nothing";
    let Some(place) = Place::open(test) else { return };
    let client = place.server.client();
    let kept = place.keep("kept", 2);
    assert_eq!(digest(&client.put("/v1/adapters/kept", &source("kept")).expect(201).json()), kept);
    let golden = answer(&client);
    let (is_over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(answer(&client), golden, "what was admitted is untouched");
                answers.fetch_add(1, Ordering::Relaxed);
            }
        });
        // However the cases end, the user does too.
        let cases = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (number, case) in CASES.iter().enumerate() {
                try_case(&place, &client, number, case, &kept);
            }
            vanished(&place, &client);
        }));
        is_over.store(true, Ordering::Relaxed);
        user.join().expect("no wrong answer");
        cases.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let answers = answers.into_inner();
    assert!(answers >= CASES.len(), "{answers} answers");
    wait_until_idle(&client);
}

fn try_case(place: &Place, client: &Client, number: usize, (name, fault, expected): &Case, kept: &str) {
    println!("{name}");
    let digest_of = place.keep(&format!("case-{number}"), 100 + number as u64);
    let mut body = source(&format!("case-{number}"));
    body["digest"] = json!(digest_of);
    let blobs = blobs(place.server.data());
    // A new alias, and one that names something already.
    for alias in [format!("case-{number}"), "kept".to_owned()] {
        place.proxy.set(*fault);
        let answer = client.put(&format!("/v1/adapters/{alias}"), &body);
        match expected {
            Works => assert_eq!(digest(&answer.expect(201).json()), digest_of, "{name}"),
            Fails(status, code) => {
                let is_capacity = *status == 503;
                let answer = answer.expect_error(*status, code);
                assert!(!answer.text.contains(S3Server::READER.1), "{name}: {}", answer.text);
                assert!(!is_capacity || answer.text.contains("case-"), "it names the source: {}", answer.text);
            }
        }
        assert!(!place.proxy.asked().is_empty(), "{name}: it was asked for");
        if matches!(expected, Works) {
            // What worked need not work twice, and would move the alias that is in use.
            break;
        }
    }
    if let Fails(..) = expected {
        client.get(&format!("/v1/adapters/case-{number}")).expect_not_found();
        assert_eq!(self::blobs(place.server.data()), blobs, "{name}: nothing half done stays");
    }
    if *name == "cut once" {
        assert!(place.proxy.asked().iter().any(|asked| asked.is_range), "it went on where it was cut");
    }
    assert_eq!(digest(&client.get("/v1/adapters/kept").expect(200).json()), kept, "{name}");
}

/// An object goes away, and comes back.
fn vanished(place: &Place, client: &Client) {
    place.proxy.set(|_| Fault::None);
    let expected = place.keep("gone", 500);
    let weights = format!("adapters/gone/{}", FILES[1]);
    place.s3.remove(&weights);
    client.put("/v1/adapters/gone", &source("gone")).expect_error(422, "source_not_found");
    client.get("/v1/adapters/gone").expect_not_found();
    place.s3.put(&weights, &files(500).1);
    assert_eq!(digest(&client.put("/v1/adapters/gone", &source("gone")).expect(201).json()), expected);
    // And what was admitted does not need it any more.
    place.s3.remove(&weights);
    let completion = json!({"model": "gone", "prompt": "One two", "max_tokens": 2, "temperature": 0});
    client.post("/v1/completions", &completion).expect(200);
}

/// What `kept` answers, with its log-probabilities.
fn answer(client: &Client) -> Value {
    let body = json!({"model": "kept", "prompt": "The harbour lay quiet", "max_tokens": 4, "temperature": 0,
        "logprobs": 1});
    let choice = client.post("/v1/completions", &body).expect(200).json()["choices"][0].clone();
    json!([choice["text"], choice["logprobs"]])
}

/// Names of the adapters' files in the store, unfinished ones too.
fn blobs(data: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![data.join("blobs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found.sort();
    found
}
