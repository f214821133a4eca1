//! Every limit that a manifest may have: met by a guest through the manifest of its function alone, and named in the answer or in the
//! function's log. Not here: what each counts (the sandbox's own tests), and the host's own limits.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use ::hostile::{Encoding, wat_component};
use serde_json::{Value, json};
use tests::{Client, Options, Server, adapter_folder, deploy_component, guest};

/// What leaves time to an unoptimised host on a machine that has others to serve.
const WIDE: &str = "[plugin_http]\nprivate_networks = ['127.0.0.0/8']\n\
    [limits]\nplugin_call_wall_ms_max = 60000\nplugin_call_cpu_ms_max = 30000\nplugin_request_cpu_ms_max = 60000\n";

/// A limit and its value, the guest that meets it, what else its manifest has, and what it is asked.
struct Case {
    limit: &'static str,
    value: u64,
    guest: &'static str,
    more: Value,
    asked: Value,
}

fn case(limit: &'static str, value: u64, guest: &'static str, asked: &str) -> Case {
    Case { limit, value, guest, more: json!({}), asked: json!({"input": asked, "max_tokens": 8}) }
}

impl Case {
    fn with(mut self, member: &str, value: Value) -> Self {
        self.more[member] = value;
        self
    }

    /// Without the caller's own number of tokens, which would lower the plan's.
    fn unbounded(mut self) -> Self {
        self.asked = json!({"input": self.asked["input"]});
        self
    }
}

#[rustfmt::skip]
fn cases(web: &str) -> Vec<Case> {
    let chat = "Tell me all about the sea, and of the rivers that feed it, and of the rain.";
    let kv = || json!({"kv": [{"bucket": "b"}]});
    let http = || json!({"http": [web]});
    let generations = || json!({"generations": true});
    let every = |action: &str| json!({"*": action, "ignore-eos": "yes"});
    let post = format!("post {web}/ x1000");
    let get = format!("get {web}/");
    let twice = format!("2*get {web}/");
    let header = format!("header {web}/ a x5000");
    vec![
        case("memory_bytes_max", 4 << 20, "grow", ""),
        case("table_elements_max", 5000, "wat:table-grows-and-traps", ""),
        case("handles_max", 8, "imports", "kv-hold b 50").with("grants", kv()),
        case("call_cpu_ms_max", 7, "spin", ""),
        case("request_cpu_ms_max", 5, "spin", ""),
        case("call_wall_ms_max", 200, "wat:waits", ""),
        case("start_cpu_ms_max", 5, "wat:start-loop", ""),
        case("log_bytes_max", 100, "flood-log", "long"),
        case("log_lines_max", 3, "flood-log", "empty"),
        case("host_calls_max", 20, "host-call-flood", "clock"),
        case("request_host_calls_max", 20, "host-call-flood", "clock"),
        case("transfer_bytes_max", 10_000, "imports", "count x100000"),
        case("random_bytes_max", 3, "wasi-peek", "lent"),
        case("actions_max", 1, "actions", chat).with("config", every("emit:a|emit:b")),
        case("kv_writes_max", 1, "imports", "2*kv-set b k v").with("grants", kv()),
        case("http_requests_max", 1, "imports", &twice).with("grants", http()),
        case("http_request_bytes_max", 10, "imports", &post).with("grants", http()),
        case("http_response_bytes_max", 10, "imports", &get).with("grants", http()),
        case("http_headers_bytes_max", 1000, "imports", &header).with("grants", http()),
        case("tokenizer_bytes_max", 2, "imports", "count hello"),
        case("tool_calls_max", 1, "imports", "2*tools facts"),
        case("function_calls_max", 0, "agent-probe", "call other x").with("grants", json!({"calls": ["other"]})),
        case("sessions_max", 1, "agent-probe", "open a x\nfork a b").with("grants", generations()),
        case("generations_max", 1, "agent-probe", "open a x\nrepeat 2 gen a 1").with("grants", generations()),
        case("generated_tokens_max", 2, "agent-probe", "open a x\ngen a 3").with("grants", generations()),
        case("session_tokens_max", 3, "agent-probe", "open a hello, my old friend\ngen a 1").with("grants", generations()),
        case("run_cpu_ms_max", 5, "agent-probe", "spin").with("grants", generations()),
        case("run_wall_ms_max", 5, "agent-probe", "spin").with("grants", generations()),
        case("output_tokens_max", 3, "bad-plan", "budget").unbounded(),
        case("deadline_ms_max", 1000, "bad-plan", "deadline").with("adapters", json!(["all-caps"])).unbounded(),
        case("composition_entries_max", 1, "blend", chat).with("adapters", json!(["all-caps", "iso-date"]))
            .with("config", json!({"first": "all-caps", "second": "iso-date", "system": "Answer."})),
        case("held_bytes_max", 4, "actions", chat).with("config", every("hold")),
        case("answer_bytes_max", 10, "actions", chat).with("config", every("emit:a long text")),
        case("kv_blocks_max", 1, "echo", chat),
        case("cold_bytes_max", 1000, "skill-router", "December 7th, 1997").with("adapters", json!(["iso-date"])),
    ]
}

/// Answers every request with some text.
fn web_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let url = format!("http://127.0.0.1:{}", listener.local_addr().expect("an address").port());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut read = [0; 16 << 10];
            let _request = stream.read(&mut read);
            let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\ntwenty bytes, indeed");
        }
    });
    url
}

fn wide(test: &str) -> Option<Server> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenon.toml");
    std::fs::write(&file, WIDE).expect("written");
    let server = Server::start(
        test,
        Options { arguments: vec!["--config".into(), file.display().to_string()], ..Options::default() },
    )?;
    for name in ["all-caps", "iso-date"] {
        server.client().upload_adapter(name, &adapter_folder(name).expect("a committed adapter")).expect(201);
    }
    Some(server)
}

/// What the caller and the function's log are told.
fn told(client: &Client, case: &Case, function: &str, limits: Value) -> String {
    let component = match case.guest.strip_prefix("wat:") {
        Some(name) => wat_component(name, Encoding::Utf8).expect("a component"),
        None => guest(case.guest),
    };
    let mut manifest = case.more.clone();
    manifest["limits"] = limits;
    deploy_component(client, function, component, &manifest);
    let answer = client.post(&format!("/v1/functions/{function}/invoke"), &case.asked);
    assert!([200, 502].contains(&answer.status), "{}: {} {}", case.limit, answer.status, answer.text);
    // The output of some guests is what they asked for and the error that they got.
    let log = client.get(&format!("/v1/functions/{function}/logs")).expect(200).text;
    format!("{}\n{log}", answer.text)
}

#[test]
fn each_limit_of_a_manifest_is_met_and_named() {
    let Some(server) = wide("each_limit_of_a_manifest_is_met_and_named") else { return };
    let client = server.client();
    let cases = cases(&web_server());
    for case in &cases {
        let function = case.limit.replace('_', "-");
        let said = told(&client, case, &function, json!({case.limit: case.value}));
        assert!(said.contains(case.limit), "{}: {said}", case.limit);
    }
    // The documentation lists all of them, and nothing else that ends so, in one paragraph.
    let docs = std::fs::read_to_string(tests::repository().join("docs/plugins.md")).expect("the docs");
    let part =
        docs.split("A manifest narrows, in").nth(1).and_then(|rest| rest.split("What a plugin runs into").next());
    let words = part.expect("the paragraph").split('`').filter(|word| word.ends_with("_max"));
    let tested: BTreeSet<&str> = cases.iter().map(|case| case.limit).collect();
    assert_eq!(tested, words.collect::<BTreeSet<_>>(), "every limit has its case");
}

/// An answer may switch its composition: what is loaded for all of them together is bounded.
#[test]
fn cold_bytes_are_summed_over_switches() {
    let Some(server) = wide("cold_bytes_are_summed_over_switches") else { return };
    let client = server.client();
    let config = json!({"first": "all-caps", "second": "iso-date", "after": "2"});
    let relay = |limit: u64| {
        let manifest =
            json!({"adapters": ["all-caps", "iso-date"], "config": config, "limits": {"cold_bytes_max": limit}});
        deploy_component(&client, "relay", guest("relay"), &manifest);
        let body = json!({"input": "The months and the days, one after the other:", "max_tokens": 8});
        client.post("/v1/functions/relay/invoke", &body)
    };
    let bytes_of = |refused: &str| -> u64 {
        let number = refused.split("in bytes, is ").nth(1).and_then(|rest| rest.split(',').next());
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number: {refused}"))
    };
    let first = relay(1).expect_error(502, "limit_exceeded");
    assert!(first.text.contains("cold_bytes_max of 1"), "{}", first.text);
    let first = bytes_of(&first.text);
    // Enough for either and not for both.
    let both = relay(first + 1).expect_error(502, "limit_exceeded");
    assert!(both.text.contains(&format!("cold_bytes_max of {}", first + 1)), "{}", both.text);
    let both = bytes_of(&both.text);
    assert!(both > first + 1 && first > 0, "{first} and then {both}");
    // What the first turn loaded is there: only the second one is cold now.
    relay(both - first).expect(200);
}

/// What a plugin says that it will need is loaded, and counts in what may be loaded.
#[test]
fn hints_load_and_count_as_cold_bytes() {
    let Some(server) = wide("hints_load_and_count_as_cold_bytes") else { return };
    let client = server.client();
    let resident = || client.metric("tenon_adapters_resident{tier=\"memory\"}");
    let until_resident = |count: f64| {
        let started = Instant::now();
        while resident() != Some(count) {
            assert!(started.elapsed() < Duration::from_secs(60), "{:?} adapters are there and not {count}", resident());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    // By the import.
    let hint = |limits: Value, said: &str| {
        let manifest = json!({"adapters": ["all-caps"], "limits": limits});
        deploy_component(&client, "hints", guest("imports"), &manifest);
        client.post("/v1/functions/hints/invoke", &json!({"input": said})).expect(200).text
    };
    let refused = hint(json!({"cold_bytes_max": 1000}), "prefetch all-caps");
    assert!(refused.contains("cold_bytes_max of 1000"), "{refused}");
    let refused = hint(json!({}), "prefetch all-caps iso-date");
    assert!(refused.contains("error") && refused.contains("iso-date"), "it was not granted that one: {refused}");
    assert_eq!(resident(), Some(0.0), "what is refused is not begun");
    let hinted = hint(json!({}), "prefetch all-caps");
    assert!(hinted.contains("hinted") && !hinted.contains("error"), "{hinted}");
    until_resident(1.0);
    let hinted = hint(json!({"cold_bytes_max": 0}), "prefetch all-caps");
    assert!(hinted.contains("hinted"), "what is there costs nothing: {hinted}");
    // By the plan.
    let plan = |limit: u64| {
        let config = json!({"prefetch": "iso-date"});
        let manifest = json!({"adapters": ["iso-date"], "config": config, "limits": {"cold_bytes_max": limit}});
        deploy_component(&client, "plans", guest("decide"), &manifest);
        client.post("/v1/functions/plans/invoke", &json!({"input": "Good morning", "max_tokens": 2}))
    };
    let refused = plan(1000).expect_error(502, "limit_exceeded");
    assert!(refused.text.contains("cold_bytes_max of 1000"), "{}", refused.text);
    assert_eq!(resident(), Some(1.0), "what is refused is not begun");
    let answer = plan(1 << 30).expect(200);
    assert!(!answer.text.contains("\"name\":\"iso-date\""), "a hint composes nothing: {}", answer.text);
    until_resident(2.0);
    plan(0).expect(200);
}
