//! Those who change things while the host dies, and the account of it: what was acknowledged must be there, the one
//! change that was under way must have happened wholly or not at all. Not here: requests for answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::Method;
use reqwest::blocking::multipart;
use serde_json::{Value, json};
use tests::{Client, adapter_folder, guest};

/// One change and whether it was acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Change {
    what: What,
    /// The answer, if it came whole.
    answer: Option<Value>,
}

#[derive(Clone, Debug)]
enum What {
    /// An alias is set to a variant of an adapter.
    Adapter {
        alias: String,
        variant: usize,
    },
    /// An alias is removed.
    AdapterGone {
        alias: String,
    },
    /// A variant of a plugin.
    Plugin,
    /// A version whose description is this tag.
    Version {
        function: String,
        tag: String,
    },
    /// A version becomes live.
    Promote {
        function: String,
        version: u64,
    },
    Tenant {
        name: String,
    },
    /// A key of this tenant with this label.
    Key {
        tenant: String,
        label: String,
    },
}

/// In the order in which one caller made them; only the last may be without an answer.
pub(super) type Changes = Vec<Change>;

/// Sends; `None` when the connection broke before the whole answer came.
fn send(request: reqwest::blocking::RequestBuilder) -> Option<Value> {
    let response = request.send().ok()?;
    let status = response.status();
    let text = response.text().ok()?;
    assert!(status.is_success(), "{status}: {text}");
    Some(serde_json::from_str(&text).unwrap_or_default())
}

/// Makes changes until one is not acknowledged.
fn make(client: &Client, changes: impl Iterator<Item = What>) -> Changes {
    let mut made = Vec::new();
    let (mut digest, mut latest) = (None, 0);
    for mut what in changes {
        if let What::Promote { version, .. } = &mut what {
            *version = latest;
        }
        let answer = apply(client, &what, made.len(), digest.as_deref());
        if let (What::Plugin, Some(answer)) = (&what, &answer) {
            digest = answer["digest"].as_str().map(str::to_owned);
        }
        if let (What::Version { .. }, Some(answer)) = (&what, &answer) {
            latest = answer["version"].as_u64().expect("a version");
        }
        let is_last = answer.is_none();
        made.push(Change { what, answer });
        if is_last {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    made
}

fn apply(client: &Client, what: &What, step: usize, plugin: Option<&str>) -> Option<Value> {
    let json_to = |method, path: &str, body: Value| {
        send(client.request(method, path).header("content-type", "application/json").body(body.to_string()))
    };
    match what {
        What::Adapter { alias, variant } => send(upload(client, alias, *variant)),
        What::AdapterGone { alias } => send(client.request(Method::DELETE, &format!("/v1/adapters/{alias}"))),
        What::Plugin => {
            let unique = format!("{step} {:?}", std::time::SystemTime::now());
            send(client.request(Method::POST, "/v1/plugins").body(plugin_variant(&unique)))
        }
        What::Version { function, tag } => {
            let manifest = json!({"plugin": plugin.expect("a plugin came first"), "description": tag});
            json_to(Method::PUT, &format!("/v1/functions/{function}"), manifest)
        }
        What::Promote { function, version } => {
            json_to(Method::POST, &format!("/v1/functions/{function}/promote"), json!({"version": version}))
        }
        What::Tenant { name } => json_to(Method::POST, "/v1/tenants", json!({"name": name})),
        What::Key { tenant, label } => {
            json_to(Method::POST, "/v1/keys", json!({"tenant": tenant, "rights": ["invoke"], "label": label}))
        }
    }
}

/// The example adapter with another scale: other content, and so another digest.
fn upload(client: &Client, alias: &str, variant: usize) -> reqwest::blocking::RequestBuilder {
    let folder = adapter_folder("all-caps").expect("a fixture");
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut config: Value = serde_json::from_slice(&read("adapter_config.json")).expect("JSON");
    config["lora_alpha"] = json!(1.0 + variant as f64 / 64.0);
    let part = |bytes: Vec<u8>, name: &str| multipart::Part::bytes(bytes).file_name(name.to_owned());
    let form = multipart::Form::new()
        .part("adapter_config.json", part(config.to_string().into_bytes(), "adapter_config.json"))
        .part("adapter_model.safetensors", part(read("adapter_model.safetensors"), "adapter_model.safetensors"));
    client.request(Method::PUT, &format!("/v1/adapters/{alias}")).multipart(form)
}

/// A component that does the same under another digest: one more custom section, which nobody reads.
fn plugin_variant(text: &str) -> Vec<u8> {
    let mut component = guest("echo");
    let name = b"variant";
    let length = u8::try_from(1 + name.len() + text.len()).expect("short");
    assert!(length < 128, "one byte of LEB128");
    component.extend([0, length, u8::try_from(name.len()).expect("short")]);
    component.extend(name);
    component.extend(text.as_bytes());
    component
}

/// Four aliases that are set, moved and removed.
pub(super) fn change_adapters(client: &Client, round: usize) -> Changes {
    let steps = (0..1000).map(|step: usize| {
        let alias = format!("a{}", step % 4);
        if step % 8 == 7 { What::AdapterGone { alias } } else { What::Adapter { alias, variant: round * 1000 + step } }
    });
    make(client, steps)
}

/// Plugins, versions, promotions, tenants and keys.
pub(super) fn change_functions(client: &Client, round: usize) -> Changes {
    let steps = (0..1000).map(|step: usize| {
        let (turn, function) = (step / 7, format!("f{}", step / 7 % 3));
        let tenant = format!("t{round}-{turn}");
        match step % 7 {
            0 => What::Plugin,
            1 | 2 => What::Version { function, tag: format!("{round}/{step}") },
            // The version that was acknowledged last is filled in.
            3 => What::Promote { function, version: 0 },
            4 => What::Version { function, tag: format!("{round}/{step}") },
            5 => What::Tenant { name: tenant },
            _ => What::Key { tenant, label: format!("{round}/{step}") },
        }
    });
    make(client, steps)
}

/// What must be there.
pub(super) struct Ledger {
    adapters: BTreeMap<String, String>,
    functions: BTreeMap<String, Function>,
    tenants: BTreeSet<String>,
    /// Label to the key's text; empty if the host died before it told us.
    keys: BTreeMap<String, String>,
    /// What was new at the last look.
    fresh: BTreeSet<String>,
}

#[derive(Debug, Default, PartialEq)]
struct Function {
    /// Version to description.
    versions: BTreeMap<u64, String>,
    live: u64,
}

impl Ledger {
    /// What is there before the first kill.
    pub(super) fn of_examples(client: &Client) -> Self {
        let found = Self::read(client);
        assert!(found.adapters.len() >= 3 && found.functions.len() >= 3 && found.tenants.len() >= 2);
        found
    }

    /// What the host says is there.
    fn read(client: &Client) -> Self {
        let list = |path: &str| client.get(path).expect(200).json()["data"].as_array().expect("a list").clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let adapters = list("/v1/adapters").iter().map(|one| (text(&one["alias"]), text(&one["digest"]))).collect();
        let mut functions = BTreeMap::new();
        for one in list("/v1/functions") {
            let name = text(&one["name"]);
            let versions = list(&format!("/v1/functions/{name}/versions"));
            let versions =
                versions.iter().map(|one| (one["version"].as_u64().expect("a number"), text(&one["description"])));
            functions
                .insert(name, Function { versions: versions.collect(), live: one["live"].as_u64().expect("a number") });
        }
        let tenants = list("/v1/tenants");
        let keys = tenants.iter().flat_map(|tenant| tenant["keys"].as_array().expect("keys"));
        let keys = keys.map(|key| text(&key["label"])).filter(|label| label.contains('/'));
        let keys = keys.map(|label| (label, String::new())).collect();
        Self {
            adapters,
            functions,
            tenants: tenants.iter().map(|one| text(&one["name"])).collect(),
            keys,
            fresh: BTreeSet::new(),
        }
    }

    /// Enters what was acknowledged, compares with what is there, and learns what became of the rest.
    pub(super) fn settle(&mut self, client: &Client, changes: Vec<Changes>) {
        let mut open = Vec::new();
        for change in changes.into_iter().flatten() {
            match &change.answer {
                Some(answer) => self.enter(&change.what, answer),
                None => open.push(change.what),
            }
        }
        let mut found = Self::read(client);
        for what in &open {
            self.settle_open(what, &found, client);
        }
        assert_eq!(self.adapters, found.adapters, "adapters; under way: {open:?}");
        assert_eq!(self.functions, found.functions, "functions; under way: {open:?}");
        assert_eq!(self.tenants, found.tenants, "tenants; under way: {open:?}");
        let labels: Vec<_> = self.keys.keys().collect();
        assert_eq!(labels, found.keys.keys().collect::<Vec<_>>(), "keys; under way: {open:?}");
        // What was changed is used now, the rest at the end.
        found.adapters.retain(|alias, _| self.fresh.contains(alias));
        found.functions.retain(|name, _| self.fresh.contains(name));
        found.keys = std::mem::take(&mut self.keys);
        found.use_all(client);
        self.keys = found.keys;
        self.fresh.clear();
    }

    fn enter(&mut self, what: &What, answer: &Value) {
        match what {
            What::Adapter { alias, .. } => {
                self.fresh.insert(alias.clone());
                self.adapters.insert(alias.clone(), answer["digest"].as_str().expect("a digest").to_owned());
            }
            What::AdapterGone { alias } => drop(self.adapters.remove(alias)),
            What::Plugin => {}
            What::Version { function, tag } => {
                self.fresh.insert(function.clone());
                let version = answer["version"].as_u64().expect("a version");
                let found = self.functions.entry(function.clone()).or_default();
                assert_eq!(found.versions.insert(version, tag.clone()), None, "a number is used once");
                if found.live == 0 {
                    found.live = version;
                }
            }
            What::Promote { function, version } => {
                self.functions.get_mut(function).expect("it was put before").live = *version;
            }
            What::Tenant { name } => drop(self.tenants.insert(name.clone())),
            What::Key { label, .. } => {
                self.keys.insert(label.clone(), answer["key"].as_str().expect("a key").to_owned());
            }
        }
    }

    /// A change without an answer: it happened, or it did not.
    fn settle_open(&mut self, what: &What, found: &Self, client: &Client) {
        match what {
            What::Adapter { alias, variant } => {
                let there = found.adapters.get(alias);
                if there != self.adapters.get(alias) {
                    // The same once more under a name that goes again: it must have been this content.
                    let answer = send(upload(client, "probe", *variant)).expect("an answer");
                    assert_eq!(answer["digest"].as_str(), there.map(String::as_str), "{what:?}");
                    send(client.request(Method::DELETE, "/v1/adapters/probe")).expect("an answer");
                    self.fresh.insert(alias.clone());
                    self.adapters.insert(alias.clone(), there.expect("it is there").clone());
                }
            }
            What::AdapterGone { alias } if !found.adapters.contains_key(alias) => drop(self.adapters.remove(alias)),
            What::Version { function, tag } => {
                let versions = found.functions.get(function).map(|found| &found.versions);
                let number = versions.and_then(|all| all.iter().find(|(_, found)| *found == tag)).map(|(one, _)| *one);
                if let Some(version) = number {
                    self.enter(what, &json!({"version": version}));
                }
            }
            What::Promote { function, version }
                if found.functions.get(function).is_some_and(|found| found.live == *version) =>
            {
                self.enter(what, &Value::Null);
            }
            What::Tenant { name } if found.tenants.contains(name) => drop(self.tenants.insert(name.clone())),
            What::Key { label, .. } if found.keys.contains_key(label) => {
                self.keys.insert(label.clone(), String::new());
            }
            _ => {}
        }
    }

    /// Everything that is listed works: each key that was told, each adapter and each function answers.
    pub(super) fn use_all(&self, client: &Client) {
        for key in self.keys.values().rev().filter(|key| !key.is_empty()).take(5) {
            client.with_key(Some(key.clone())).get("/v1/models").expect(200);
        }
        std::thread::scope(|scope| {
            for alias in self.adapters.keys() {
                let body = json!({"model": alias, "prompt": "a", "max_tokens": 1, "temperature": 0});
                scope.spawn(move || client.post("/v1/completions", &body).expect(200));
            }
            for function in self.functions.keys() {
                let body = json!({"input": "December 7th, 1997", "max_tokens": 1});
                scope.spawn(move || client.post(&format!("/v1/functions/{function}/invoke"), &body).expect(200));
            }
        });
    }
}
