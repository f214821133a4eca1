//! Tests of [`super`]: what is durable when, and what is left after a crash.

use std::collections::HashSet;

use futures::future::join_all;
use types::{Digest, FinishReason};

use super::*;
use crate::receipt::{AdapterPart, Claims, Commitment, Committer, FunctionRef, Kind, Receipt, TokenCounts, verify};

pub(in crate::receipt) struct Bench {
    pub(in crate::receipt) folder: tempfile::TempDir,
    pub(in crate::receipt) db: Arc<StateDatabase>,
}

fn database(path: std::path::PathBuf) -> Arc<StateDatabase> {
    let database = redb::Database::create(&path).expect("made or repaired");
    Arc::new(StateDatabase::new(database, move || redb::Database::open(&path)))
}

impl Bench {
    pub(in crate::receipt) fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let db = database(folder.path().join("db"));
        Self { folder, db }
    }

    pub(in crate::receipt) fn open(&self) -> ReceiptLog {
        let key = ReceiptKey::open(self.folder.path()).expect("key");
        ReceiptLog::open(Arc::clone(&self.db), key, "node-1").expect("log")
    }

    fn check(&self, log: &ReceiptLog, name: &str) -> (Vec<Receipt>, super::super::Verified) {
        let keys = ReceiptKey::open(self.folder.path()).expect("key").public();
        let lines: Vec<_> = log.export(&tenant(name)).expect("export").map(|line| line.expect("line")).collect();
        let receipts = lines.iter().map(|line| Envelope::parse(line.as_bytes()).expect("parse").peek().expect("peek"));
        (receipts.collect(), verify(lines.join("\n").as_bytes(), &keys).expect("an unbroken chain"))
    }
}

pub(in crate::receipt) fn tenant(name: &str) -> TenantId {
    name.parse().expect("tenant")
}

pub(in crate::receipt) fn started(name: &str, request: &str) -> Started {
    let function = FunctionRef { name: "skills".parse().expect("name"), version: 3, plugin: Digest::of(b"plugin") };
    let subject = Subject {
        called_by: None,
        request: request.to_owned(),
        function: Some(function),
        base: Digest::of(b"base"),
        runner: "cpu".to_owned(),
        precision: "f32".to_owned(),
        adapters: vec![AdapterPart {
            adapter: Digest::of(b"adapter"),
            weight: 0.5,
            modules: None,
            output: None,
            layers: None,
            owner: None,
        }],
    };
    Started { tenant: tenant(name), subject }
}

fn finished() -> Final {
    Final { ending: Ending::Finished, ..Final::default() }
}

fn kinds(receipts: &[Receipt]) -> Vec<Kind> {
    receipts.iter().map(|receipt| receipt.kind).collect()
}

#[tokio::test]
async fn a_receipt_from_start_to_finish() {
    let bench = Bench::new();
    let log = bench.open();
    let open = log.start(started("a", "req-1")).await.expect("started");
    let id = open.id().clone();
    let stored = log.get(&tenant("a"), &id).expect("read").expect("there");
    assert_eq!(stored.last, None, "the started record alone is durable");

    let mut answer = Committer::new().expect("random");
    answer.update(b"forty-");
    answer.update(b"two");
    let outcome = Outcome {
        finish: Some(FinishReason::Stop),
        tokens: TokenCounts { prompt: 5, completion: 2 },
        prompt: Some(Commitment::to(b"what is it?").expect("random")),
        answer: Some(answer.commit()),
        claims: Claims::check(vec![("route".into(), "maths".into())]).expect("claims"),
        ..Outcome::default()
    };
    open.finish(Final { ending: Ending::Finished, outcome }).await.expect("finished");

    let last = log.get(&tenant("a"), &id).expect("read").expect("there").last.expect("final");
    let receipt = last.peek().expect("receipt");
    let outcome = receipt.outcome.expect("outcome");
    let salts = log.salts(&tenant("a"), &id).expect("read").expect("owner");
    assert!(outcome.answer.expect("committed").is_to(b"forty-two", &salts.answer.expect("salt")));
    assert!(outcome.prompt.expect("committed").is_to(b"what is it?", &salts.prompt.expect("salt")));
    assert_eq!(outcome.claims.as_slice().len(), 1);
    let (receipts, verified) = bench.check(&log, "a");
    assert_eq!(kinds(&receipts), [Kind::Started, Kind::Finished]);
    assert!(verified.open.is_empty());
}

#[tokio::test]
async fn no_content_and_no_salt_is_in_the_records() {
    let bench = Bench::new();
    let log = bench.open();
    let open = log.start(started("a", "r")).await.expect("started");
    let id = open.id().clone();
    let prompt = Some(Commitment::to(b"SECRET-PROMPT").expect("random"));
    open.finish(Final { ending: Ending::Finished, outcome: Outcome { prompt, ..Outcome::default() } })
        .await
        .expect("ok");
    let salt = log.salts(&tenant("a"), &id).expect("read").expect("owner").prompt.expect("salt");
    let (receipts, _) = bench.check(&log, "a");
    let text = serde_json::to_string(&receipts).expect("json");
    assert!(!text.contains("SECRET"));
    assert!(!text.contains(&Digest::from_bytes(*salt.as_bytes()).to_string()));
}

#[tokio::test]
async fn another_tenants_receipt_is_not_there() {
    let bench = Bench::new();
    let log = bench.open();
    let id = log.start(started("a", "r")).await.expect("started").id().clone();
    for read in [log.get(&tenant("b"), &id), log.get(&tenant("a"), &ReceiptId::generate())] {
        assert_eq!(read.expect("read"), None);
    }
    assert_eq!(log.salts(&tenant("b"), &id).expect("read"), None);
    assert!(log.list(&tenant("b"), 0, 10).expect("read").is_empty());
    assert_eq!(log.export(&tenant("b")).expect("read").count(), 0);
}

#[tokio::test]
async fn chains_of_tenants_are_apart() {
    let bench = Bench::new();
    let log = bench.open();
    // `a` and `a-b` share a prefix; a range over the first must not reach into the second.
    for name in ["a", "a-b", "a", "b"] {
        log.start(started(name, "r")).await.expect("started").finish(finished()).await.expect("finished");
    }
    for (name, records) in [("a", 4), ("a-b", 2), ("b", 2)] {
        assert_eq!(bench.check(&log, name).1.records, records);
    }
    let page = log.list(&tenant("a"), 1, 2).expect("read");
    assert_eq!(page.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [2, 3]);
    assert!(log.list(&tenant("a"), u64::MAX, 2).expect("read").is_empty());
}

#[tokio::test]
async fn waiting_records_share_a_transaction() {
    let bench = Bench::new();
    let log = bench.open();
    let open = join_all((0..200).map(|i| log.start(started("a", &format!("r{i}"))))).await;
    let after_start = log.counts();
    assert_eq!(after_start.started, 200);
    assert!(after_start.transactions <= 20, "{after_start:?}");
    let done = join_all(open.into_iter().map(|open| open.expect("started").finish(finished()))).await;
    assert!(done.iter().all(Result::is_ok));
    let counts = log.counts();
    assert_eq!(counts.finished, 200);
    assert!(counts.transactions <= 40, "{counts:?}");
    let (receipts, verified) = bench.check(&log, "a");
    assert_eq!((verified.records, verified.open.len()), (400, 0));
    assert_eq!(receipts.iter().map(|receipt| &receipt.id).collect::<HashSet<_>>().len(), 200);
}

#[tokio::test]
async fn a_dropped_receipt_is_cancelled_with_its_draft() {
    let bench = Bench::new();
    let log = bench.open();
    let mut open = log.start(started("a", "r")).await.expect("started");
    open.draft().outcome.tokens.completion = 7;
    drop(open);
    let mut failing = log.start(started("a", "s")).await.expect("started");
    failing.draft().ending = Ending::Failed("plugin_trap".to_owned());
    drop(failing);
    log.close();
    let (receipts, verified) = bench.check(&log, "a");
    assert!(verified.open.is_empty());
    let cancelled = receipts.iter().find(|receipt| receipt.kind == Kind::Cancelled).expect("cancelled");
    assert_eq!(cancelled.outcome.as_ref().expect("outcome").tokens.completion, 7);
    let failed = receipts.iter().find(|receipt| receipt.kind == Kind::Failed).expect("failed");
    assert_eq!(failed.outcome.as_ref().and_then(|outcome| outcome.error.as_deref()), Some("plugin_trap"));
}

#[tokio::test]
async fn giving_up_while_starting_or_finishing_loses_nothing() {
    let bench = Bench::new();
    let log = bench.open();
    {
        let mut start = Box::pin(log.start(started("a", "r")));
        assert!(futures::poll!(start.as_mut()).is_pending());
    }
    let open = log.start(started("a", "s")).await.expect("started");
    {
        let mut finish = Box::pin(open.finish(finished()));
        assert!(futures::poll!(finish.as_mut()).is_pending());
    }
    log.close();
    let (receipts, verified) = bench.check(&log, "a");
    assert!(verified.open.is_empty(), "{:?}", kinds(&receipts));
    assert_eq!(kinds(&receipts).iter().filter(|kind| **kind == Kind::Cancelled).count(), 1);
    assert_eq!(kinds(&receipts).iter().filter(|kind| **kind == Kind::Finished).count(), 1);
}

#[tokio::test]
async fn what_was_open_at_the_end_is_recovered_at_the_start() {
    let bench = Bench::new();
    let log = bench.open();
    let open = join_all((0..3).map(|_| log.start(started("a", "r")))).await;
    let other = log.start(started("b", "r")).await.expect("started");
    log.close();
    drop((open, other));
    drop(log);
    let log = bench.open();
    assert_eq!(log.counts().recovered, 4);
    let (receipts, verified) = bench.check(&log, "a");
    assert_eq!(kinds(&receipts)[3..], [Kind::Recovered; 3]);
    assert!(verified.open.is_empty());
    drop(log);
    assert_eq!(bench.open().counts().recovered, 0, "once is enough");
}

/// The file as it is when `start` and `finish` return, without any closing: what a power cut would leave.
#[tokio::test]
async fn what_was_answered_is_in_the_file() {
    let bench = Bench::new();
    let log = bench.open();
    let running = log.start(started("a", "r")).await.expect("started");
    log.start(started("a", "s")).await.expect("started").finish(finished()).await.expect("finished");
    std::fs::copy(bench.folder.path().join("db"), bench.folder.path().join("copy")).expect("copied");
    drop(running);
    let db = database(bench.folder.path().join("copy"));
    let log = ReceiptLog::open(db, ReceiptKey::open(bench.folder.path()).expect("key"), "node-1").expect("log");
    let (receipts, verified) = bench.check(&log, "a");
    assert_eq!(kinds(&receipts), [Kind::Started, Kind::Started, Kind::Finished, Kind::Recovered]);
    assert!(verified.open.is_empty());
}

#[tokio::test]
async fn a_code_that_a_plugin_chose_is_cut() {
    let bench = Bench::new();
    let log = bench.open();
    let open = log.start(started("a", "r")).await.expect("started");
    let ending = Ending::Failed("ä".repeat(1 << 20));
    open.finish(Final { ending, ..Final::default() }).await.expect("finished");
    let (receipts, _) = bench.check(&log, "a");
    assert_eq!(receipts[1].outcome.as_ref().and_then(|o| o.error.as_ref()).map(|code| code.chars().count()), Some(96));
}

#[tokio::test]
async fn a_second_final_record_is_refused() {
    let bench = Bench::new();
    let log = bench.open();
    let open = log.start(started("a", "r")).await.expect("started");
    let (id, about) = (open.id().clone(), Arc::clone(&open.started));
    open.finish(finished()).await.expect("finished");
    for (id, code) in [(id, "AlreadyFinal"), (ReceiptId::generate(), "NeverStarted")] {
        let again = OpenReceipt {
            id,
            started: Arc::clone(&about),
            draft: Final::default(),
            place: log.place().ok(),
            ended: log.ended.clone(),
        };
        let error = again.finish(finished()).await.expect_err("refused");
        assert!(format!("{error:?}").starts_with(code), "{error:?}");
    }
    assert_eq!(bench.check(&log, "a").1.records, 2);
}

#[tokio::test]
async fn too_many_open_receipts_are_turned_away_and_places_come_back() {
    let bench = Bench::new();
    let key = ReceiptKey::generate().expect("key");
    let log = ReceiptLog::open_with(Arc::clone(&bench.db), key, "node".to_owned(), 2).expect("log");
    let mut open = Vec::new();
    let error = loop {
        match log.start(started("a", "r")).await {
            Ok(receipt) => open.push(receipt),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), "overloaded");
    assert!((2..=3).contains(&open.len()), "{}", open.len());
    for receipt in open {
        receipt.finish(finished()).await.expect("an open receipt always has its place");
    }
    log.start(started("a", "r")).await.expect("there is room again");
}

#[tokio::test]
async fn one_bad_record_does_not_spoil_the_others() {
    let bench = Bench::new();
    let log = bench.open();
    let bad = log.start(started("a", "r")).await.expect("started");
    let good = log.start(started("a", "s")).await.expect("started");
    let part = crate::receipt::AdapterUse {
        adapter: Digest::of(b"x"),
        weight: f32::NAN,
        modules: None,
        output: None,
        layers: None,
        owner: None,
        tokens_active: 0,
    };
    let outcome = Outcome { composition: vec![part], ..Outcome::default() };
    let nan = Final { ending: Ending::Finished, outcome };
    let (bad, good) = tokio::join!(bad.finish(nan), good.finish(finished()));
    assert!(matches!(bad, Err(ReceiptError::Encode(_))), "{bad:?}");
    good.expect("not affected");
    let long = log.start(started("a", &"x".repeat(129))).await.expect_err("too long");
    assert_eq!((long.code(), long.blame()), ("limit_exceeded", types::Blame::Caller));
    log.check().await.expect("all is well");
    let (receipts, verified) = bench.check(&log, "a");
    assert!(verified.open.is_empty(), "{verified:?}");
    assert_eq!(receipts.iter().filter(|one| one.kind == Kind::Recovered).count(), 1, "what could not be ended");
}

#[tokio::test]
async fn a_closed_log_refuses() {
    let bench = Bench::new();
    let log = bench.open();
    let open = log.start(started("a", "r")).await.expect("started");
    log.close();
    log.close();
    assert_eq!(log.start(started("a", "s")).await.expect_err("closed").code(), "shutting_down");
    assert_eq!(open.finish(finished()).await.expect_err("closed").code(), "shutting_down");
}
