//! Tests of [`super`]: every way in which a chain can break, found and named.

use std::sync::OnceLock;

use proptest::prelude::*;
use types::{Composition, CompositionPart, LayerRange, ModuleSet, Sampling};

use super::*;
use crate::receipt::log::tests::{Bench, started, tenant};
use crate::receipt::{AdapterUse, Ending, Final, Outcome, ReceiptKey, SamplingRecord};

/// A chain of 5 receipts that overlap, all final but one; 9 records.
struct Chain {
    lines: Vec<String>,
    keys: PublicKeys,
}

fn chain() -> &'static Chain {
    static CHAIN: OnceLock<Chain> = OnceLock::new();
    CHAIN.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(make_chain())
    })
}

async fn make_chain() -> Chain {
    let bench = Bench::new();
    let log = bench.open();
    let mut open = Vec::new();
    for request in ["r1", "r2", "r3", "r4", "r5"] {
        open.push(log.start(started("a", request)).await.expect("started"));
    }
    let kept = open.pop();
    for receipt in open {
        let adapter = Digest::of(receipt.id().as_str().as_bytes());
        let layers = LayerRange { first: 1, end: 5 };
        let part = CompositionPart { adapter, weight: 0.1, modules: ModuleSet::ALL, layers, output: None };
        let parts = Composition::new([part]);
        let outcome = Outcome {
            composition: parts.parts().iter().map(|part| AdapterUse::new(part, 12)).collect(),
            sampling: Some(SamplingRecord::new(&Sampling::default(), u64::MAX)),
            ..Outcome::default()
        };
        receipt.finish(Final { ending: Ending::Finished, outcome }).await.expect("finished");
    }
    let lines = log.export(&tenant("a")).expect("export").map(|line| line.expect("line")).collect();
    log.close();
    drop(kept);
    Chain { lines, keys: ReceiptKey::open(bench.folder.path()).expect("key").public() }
}

fn check(lines: &[&str]) -> Result<Verified, Break> {
    verify(lines.join("\n").as_bytes(), &chain().keys)
}

fn all() -> Vec<&'static str> {
    chain().lines.iter().map(String::as_str).collect()
}

#[test]
fn an_untouched_chain_is_right() {
    let verified = check(&all()).expect("right");
    assert_eq!((verified.records, verified.open.len()), (9, 1));
    assert_eq!(verified.head.expect("head").sequence, 9);
    assert_eq!(verify(b"", &chain().keys), Ok(Verified::default()));
    let ended = all().join("\n") + "\n";
    assert!(verify(ended.as_bytes(), &chain().keys).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_altered_byte_is_found_where_it_is(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut export = all().join("\n").into_bytes();
        let at = at.index(export.len());
        export[at] ^= flip;
        let line = export[..at].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        let found = verify(&export, &chain().keys).expect_err("altered");
        prop_assert_eq!(found.record, line);
    }

    #[test]
    fn noise_is_never_a_chain(noise in proptest::collection::vec(any::<u8>(), 1..300)) {
        let found = verify(&noise, &chain().keys);
        prop_assert!(found.is_err() || noise == b"\n");
    }
}

/// Every byte of one record, every bit: slower to say, nothing left to chance.
#[test]
fn every_bit_of_a_record_counts() {
    let lines = all();
    for (at, bit) in (0..lines[6].len()).flat_map(|at| [0, 1, 5].map(|bit| (at, bit))) {
        let mut line = lines[6].as_bytes().to_vec();
        line[at] ^= 1 << bit;
        let mut export = lines[..6].join("\n").into_bytes();
        export.push(b'\n');
        export.extend_from_slice(&line);
        let found = verify(&export, &chain().keys).expect_err("altered");
        assert_eq!(found.record, 7, "byte {at} bit {bit}: {found}");
    }
}

#[test]
fn removed_swapped_repeated_and_inserted_records_are_found() {
    for at in 0..8 {
        let mut removed = all();
        removed.remove(at);
        let found = check(&removed).expect_err("removed");
        assert_eq!(found.record, at as u64 + 1, "{found}");
        assert!(found.id.is_some(), "{found}");

        let mut swapped = all();
        swapped.swap(at, at + 1);
        assert_eq!(check(&swapped).expect_err("swapped").record, at as u64 + 1);

        let mut repeated = all();
        repeated.insert(at, repeated[at]);
        let fault = Fault::Sequence { expected: at as u64 + 2, found: at as u64 + 1 };
        let found = check(&repeated).expect_err("repeated");
        assert_eq!((found.record, found.fault), (at as u64 + 2, fault));
    }
    let mut emptied = all();
    emptied.insert(4, "");
    assert_eq!(check(&emptied).expect_err("an empty line").record, 5);
}

#[test]
fn a_cut_tail_shows_as_open_receipts() {
    for kept in 0..=9 {
        let verified = check(&all()[..kept]).expect("a prefix is a chain");
        assert_eq!(verified.open.len(), kept.min(5).saturating_sub(kept.saturating_sub(5)), "{kept}");
        assert_eq!(verified.head.map_or(0, |head| head.sequence), kept as u64);
    }
}

#[test]
fn another_key_is_found() {
    let other = ReceiptKey::generate().expect("key");
    let found = verify(all().join("\n").as_bytes(), &other.public()).expect_err("another key");
    assert!(matches!((found.record, &found.fault), (1, Fault::UnknownKey(_))), "{found}");
}

/// Records that the right key signed, but that no host writes: a stolen key, or a bug.
fn resealed(change: impl Fn(usize, &mut Receipt)) -> Break {
    let key = ReceiptKey::generate().expect("key");
    let mut previous = Receipt::GENESIS;
    let mut lines = Vec::new();
    for (index, line) in all().into_iter().enumerate() {
        let mut receipt = Envelope::parse(line.as_bytes()).expect("envelope").peek().expect("receipt");
        receipt.previous = previous;
        change(index, &mut receipt);
        let (envelope, digest) = Envelope::seal(&receipt, &key).expect("sealed");
        previous = digest;
        lines.push(envelope.to_line());
    }
    verify(lines.join("\n").as_bytes(), &key.public()).expect_err("no host writes that")
}

#[test]
fn signed_records_are_still_checked() {
    let first = Envelope::parse(all()[0].as_bytes()).expect("envelope").peek().expect("receipt").id;
    let at = |record: usize, change: fn(&mut Receipt)| {
        let found = resealed(|index, receipt| {
            if index == record {
                change(receipt)
            }
        });
        assert_eq!(found.record, record as u64 + 1, "{found}");
        found.fault
    };
    assert_eq!(at(3, |receipt| receipt.tenant = tenant("b")), Fault::Tenant("b".to_owned()));
    assert_eq!(at(3, |receipt| receipt.previous = Digest::of(b"x")), Fault::Previous);
    assert_eq!(at(0, |receipt| receipt.previous = Digest::of(b"x")), Fault::Previous);
    assert_eq!(at(3, |receipt| receipt.kind = Kind::Finished), Fault::Inconsistent);
    assert_eq!(at(7, |receipt| receipt.kind = Kind::Failed), Fault::Inconsistent);
    assert_eq!(at(7, |receipt| receipt.outcome = None), Fault::Inconsistent);
    assert_eq!(at(7, |receipt| receipt.subject.request = "other".to_owned()), Fault::OtherSubject);
    assert_eq!(at(7, |receipt| receipt.id = ReceiptId::generate()), Fault::NeverStarted);
    let twice = resealed(|index, receipt| {
        if index == 6 {
            receipt.id = first.clone()
        }
    });
    assert!(matches!(twice.fault, Fault::FinalTwice), "{twice}");
    let twice = resealed(|index, receipt| {
        if index == 2 {
            receipt.id = first.clone()
        }
    });
    assert_eq!((twice.record, twice.fault), (3, Fault::StartedTwice));
}

#[test]
fn a_signed_payload_with_an_unknown_field_is_refused() {
    use base64::Engine as _;
    let key = ReceiptKey::generate().expect("key");
    let mut envelope = Envelope::parse(all()[0].as_bytes()).expect("envelope");
    let mut body = base64::engine::general_purpose::STANDARD.decode(&envelope.payload).expect("base64");
    body.pop();
    body.extend_from_slice(b",\"x\":1}");
    envelope.payload = base64::engine::general_purpose::STANDARD.encode(&body);
    let sig = key.sign(&crate::receipt::pae(&envelope.payload_type, &body));
    envelope.signatures[0].keyid = key.id().to_owned();
    envelope.signatures[0].sig = base64::engine::general_purpose::STANDARD.encode(sig);
    let found = verify(envelope.to_line().as_bytes(), &key.public()).expect_err("unknown field");
    assert!(matches!(found.fault, Fault::NotAReceipt(_)), "{found}");
}

#[test]
fn a_record_that_is_too_long_is_not_read() {
    let line = vec![b'{'; crate::receipt::RECORD_BYTES_MAX + 1];
    assert_eq!(verify(&line, &chain().keys).expect_err("too long").fault, Fault::TooLong);
}
