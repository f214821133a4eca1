//! What must be on record after a kill: every receipt final, those of whole answers `finished`, all others `recovered`
//! unless their own end was durable already, in chains that hold. Not here: what the callers asked.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use tests::{Client, run_tenon};

use super::callers::Heard;

/// What is known of a receipt.
#[derive(Debug, Default)]
struct Records {
    started: Option<u64>,
    /// Its kind and its place in the chain.
    last: Option<(String, u64)>,
}

/// The chains of the tenants, each with the key that may read it.
pub(super) struct Chains {
    tenants: Vec<Chain>,
    whole: usize,
    cut_after_the_end: usize,
    cut_in_the_middle: usize,
    recovered: usize,
}

struct Chain {
    key: String,
    read: u64,
    receipts: HashMap<String, Records>,
}

impl Chains {
    pub(super) fn new(keys: impl IntoIterator<Item = String>) -> Self {
        let chain = |key| Chain { key, read: 0, receipts: HashMap::new() };
        Self {
            tenants: keys.into_iter().map(chain).collect(),
            whole: 0,
            cut_after_the_end: 0,
            cut_in_the_middle: 0,
            recovered: 0,
        }
    }

    /// Checks the records that are new since the last kill against what was heard.
    pub(super) fn check(&mut self, client: &Client, heard: &[Heard], data: &Path) {
        let before: usize = self.count("recovered");
        for chain in &mut self.tenants {
            let client = client.with_key(Some(chain.key.clone()));
            chain.read_on(&client);
            for (id, records) in &chain.receipts {
                assert!(records.started.is_some() && records.last.is_some(), "{id}: {records:?}");
            }
            verify_offline(&client, data);
        }
        for (id, one) in heard.iter().filter_map(|one| Some((one.receipt.as_ref()?, one))) {
            let found = self.tenants.iter().find_map(|chain| chain.receipts.get(id));
            let (kind, _) = found.and_then(|records| records.last.as_ref()).unwrap_or_else(|| panic!("{id}: {one:?}"));
            match (kind.as_str(), one.is_whole) {
                ("finished", true) => self.whole += 1,
                // The end is durable before its last bytes leave: a kill in between takes these from the caller.
                ("finished", false) => self.cut_after_the_end += 1,
                ("recovered", false) => self.cut_in_the_middle += usize::from(!one.text.is_empty()),
                _ => panic!("{kind} is not the end of {one:?}"),
            }
        }
        self.recovered += self.count("recovered") - before;
        for kind in ["cancelled", "failed"] {
            assert_eq!(self.count(kind), 0, "nobody hung up and nothing failed, but a receipt is {kind}");
        }
    }

    fn count(&self, kind: &str) -> usize {
        let records = self.tenants.iter().flat_map(|chain| chain.receipts.values());
        records.filter(|one| one.last.as_ref().is_some_and(|(found, _)| found == kind)).count()
    }

    /// Says what was tried, and that it was enough to mean something.
    pub(super) fn report(&self) {
        let Self { whole, cut_after_the_end, cut_in_the_middle, recovered, .. } = self;
        eprintln!(
            "  {whole} whole answers; {recovered} recovered, {cut_in_the_middle} of them in mid-stream; \
             {cut_after_the_end} finished but cut off"
        );
        assert!(*whole > 50 && *recovered > 300, "the kills must fall into the middle of things");
        assert!(*cut_in_the_middle > 20, "and into streams");
    }
}

impl Chain {
    fn read_on(&mut self, client: &Client) {
        loop {
            let page = client.get(&format!("/v1/receipts?after={}&limit=500", self.read)).expect(200).json();
            for record in page["data"].as_array().expect("records") {
                let sequence = record["sequence"].as_u64().expect("a sequence number");
                assert_eq!(sequence, self.read + 1, "no gap");
                self.read = sequence;
                self.note(&record["receipt"], sequence);
            }
            if page["next"].is_null() {
                return;
            }
        }
    }

    fn note(&mut self, receipt: &Value, sequence: u64) {
        let text = |name: &str| receipt[name].as_str().unwrap_or_else(|| panic!("{name}: {receipt}")).to_owned();
        let (id, kind) = (text("id"), text("kind"));
        let records = self.receipts.entry(id.clone()).or_default();
        if kind == "started" {
            assert_eq!(records.started.replace(sequence), None, "{id} was started twice");
        } else {
            assert!(records.started.is_some(), "{id} ended before it was started");
            let before = records.last.replace((kind, sequence));
            assert_eq!(before, None, "{id} ended twice");
        }
    }
}

/// The check that anybody can make, with the export and the public keys alone.
pub(super) fn verify_offline(client: &Client, data: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let export = folder.path().join("export.jsonl");
    let text = client.get("/v1/receipts/export").expect(200).text;
    if text.is_empty() {
        return;
    }
    std::fs::write(&export, &text).expect("written");
    let keys = data.join("receipt.pub");
    let (export, keys) = (export.to_str().expect("a path"), keys.to_str().expect("a path"));
    // Nobody listens there.
    let nowhere = ["--url", "http://127.0.0.1:1", "--key", "none"];
    let arguments = [&["receipt", "verify", "--file", export, "--keys", keys], &nowhere[..]].concat();
    let output = run_tenon(&arguments);
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("; 0 receipts are open"), "{said}{complained}");
}
