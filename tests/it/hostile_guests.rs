//! Every guest of the catalogue, against a real host, beside a neighbour whose answers stay what they are: each ends as it must,
//! and nothing of it is left. Not here: rates, times and hundreds of turns (`cargo xtask bench hostile`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ::hostile::{Act, Class, Guest, Outcome, Seen, Tenant, all};
use serde_json::{Value, json};
use tests::{Client, adapter_folder, deploy_examples, server_with_limits, tenant_key, wait_until_idle};

const RIGHTS: [&str; 4] = ["invoke", "deploy", "adapters", "receipts"];
const CALLERS: usize = 3;
/// What a process may have more of afterwards: threads for blocking work, and connections of the callers that are open.
const THREADS_MORE_MAX: usize = 32;
const FILES_MORE_MAX: usize = 32;

/// Who sends them.
struct Tenants {
    first: Client,
    second: Client,
}

impl Tenants {
    fn new(operator: &Client) -> Self {
        let tenant = |name: &str| operator.with_key(Some(tenant_key(operator, name, &RIGHTS)));
        let tenants = Self { first: tenant("hostile-first"), second: tenant("hostile-second") };
        for name in ["all-caps", "iso-date"] {
            let folder = adapter_folder(name).expect("a committed adapter");
            tenants.first.upload_adapter(name, &folder).expect(201);
        }
        tenants.first.put("/v1/secrets/canary", &json!({"value": "canary-7b1f"})).expect(204);
        tenants
    }

    fn of(&self, guest: &Guest) -> &Client {
        match guest.tenant {
            Tenant::First => &self.first,
            Tenant::Second => &self.second,
        }
    }

    /// The function of a guest; `None` if its component is refused, as it must be.
    fn deploy(&self, guest: &Guest, uploaded: &mut BTreeMap<String, Value>) -> Result<Option<String>, String> {
        let component = guest.source.component()?;
        let client = self.of(guest);
        let source = format!("{:?} {:?}", guest.source, guest.tenant);
        if !uploaded.contains_key(&source) {
            let answer = client.post_bytes("/v1/plugins", component);
            let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
            if matches!(guest.outcome, Outcome::Refused(_)) {
                return guest.judge(Seen { status: answer.status, body: &body }).map(|()| None);
            }
            let digest = body.get("digest").cloned().ok_or_else(|| format!("{}: {}", guest.name, answer.text))?;
            uploaded.insert(source.clone(), digest);
        }
        let mut manifest = guest.manifest.clone();
        manifest["plugin"] = uploaded[&source].clone();
        let name = function(guest);
        let answer = client.put(&format!("/v1/functions/{name}"), &manifest);
        if answer.status != 201 {
            return Err(format!("{}: {}", guest.name, answer.text));
        }
        Ok(Some(name))
    }

    /// One turn.
    fn invoke(&self, guest: &Guest, function: &str) -> Result<(), String> {
        let (client, path) = (self.of(guest), format!("/v1/functions/{function}/invoke"));
        match &guest.act {
            Act::Leave(body, after_ms) => {
                client.hang_up(&path, body, "", Duration::from_millis(*after_ms));
                Ok(())
            }
            Act::Invoke(body) => {
                let answer = client.post(&path, body);
                let body = serde_json::from_str(&answer.text).unwrap_or_default();
                guest.judge(Seen { status: answer.status, body: &body })
            }
            Act::Upload => Ok(()),
        }
    }
}

/// Names of functions have no dots, slashes and the like.
fn function(guest: &Guest) -> String {
    guest.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).collect()
}

fn answers(client: &Client) -> Vec<Value> {
    let ask = |function: &str, body: Value| {
        client.post(&format!("/v1/functions/{function}/invoke"), &body).expect(200).json()["output"].clone()
    };
    let base = json!({"model": "base", "prompt": "The sea is", "max_tokens": 8, "temperature": 0});
    vec![
        ask("skills", json!({"input": "December 7th, 1997"})),
        ask("echo", json!({"input": "What is the capital of France?", "max_tokens": 6})),
        client.post("/v1/completions", &base).expect(200).json()["choices"][0]["text"].clone(),
    ]
}

#[test]
fn every_hostile_guest_ends_as_it_must_and_leaves_nothing() {
    let limits = [
        ("plugin_call_cpu_ms_max", 30_000),
        ("plugin_request_cpu_ms_max", 60_000),
        ("plugin_start_cpu_ms_max", 30_000),
        ("plugin_call_wall_ms_max", 120_000),
    ];
    let Some(server) = server_with_limits("every_hostile_guest_ends_as_it_must_and_leaves_nothing", &limits) else {
        return;
    };
    let client = server.client();
    deploy_examples(&client);
    let expected = answers(&client);
    assert_eq!(expected[0], json!("1997-12-07"));
    let tenants = Tenants::new(&client);
    // One that takes the compiler's whole minute is for the bench.
    let guests: Vec<Guest> = all().into_iter().filter(|guest| !guest.is_long()).collect();
    let (mut uploaded, mut wrong, mut live) = (BTreeMap::new(), Vec::new(), Vec::new());
    for guest in &guests {
        match tenants.deploy(guest, &mut uploaded) {
            Ok(Some(function)) => live.push((guest, function)),
            Ok(None) => {}
            Err(error) => wrong.push(error),
        }
    }
    let before = (server.threads(), server.open_files());
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    // The marks are left before they are looked for.
    let is_looking = |guest: &Guest| guest.name.contains("search") || guest.name.contains("look");
    live.sort_by_key(|(guest, _)| (guest.class == Class::Canaries, is_looking(guest)));
    let failures = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut wrong = Vec::new();
                    while let Some((guest, function)) = live.get(next.fetch_add(1, Ordering::Relaxed)) {
                        wrong.extend(tenants.invoke(guest, function).err());
                    }
                    wrong
                })
            })
            .collect();
        let neighbour = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds == 0 {
                assert_eq!(answers(&client), expected, "whoever else is there");
                rounds += 1;
            }
            rounds
        });
        let failures: Vec<String> = callers
            .into_iter()
            .flat_map(|caller| caller.join().unwrap_or_else(|_| vec!["a caller panicked".into()]))
            .collect();
        done.store(true, Ordering::Relaxed);
        let rounds = neighbour.join().expect("the neighbour is well");
        eprintln!(
            "{} hostile guests, {} of them invoked, beside {rounds} rounds of a neighbour",
            guests.len(),
            live.len()
        );
        failures
    });
    wrong.extend(failures);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), guests.len(), wrong.join("\n"));
    wait_until_idle(&client);
    assert_eq!(answers(&client), expected);
    let after = (server.threads(), server.open_files());
    assert!(after.0 <= before.0 + THREADS_MORE_MAX && after.1 <= before.1 + FILES_MORE_MAX, "{before:?} {after:?}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
    // What one tenant's guests said is in no log of another's.
    let log = |client: &Client, function: &str| client.get(&format!("/v1/functions/{function}/logs"));
    assert!(log(&tenants.first, "canary-bucket").expect(200).text.contains("canary-7b1f"));
    log(&tenants.second, "canary-bucket").expect_not_found();
    assert!(!log(&tenants.second, "canary-look").expect(200).text.contains("canary-7b1f"));
}
