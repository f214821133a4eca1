//! Adapters of every kind with something wrong in them, by the generator that the fuzz target uses too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod properties;

use std::collections::BTreeMap;

use generators::{Draw, Sizes, adapter, seeded_bytes};
use model::{AdapterLimits, canonical_adapter};
use properties::hold;

#[test]
fn adapters_of_all_kinds_are_admitted_whole_or_refused() {
    let mut verdicts = BTreeMap::<&str, u32>::new();
    for seed in 0..2000 {
        println!("seed {seed}");
        *verdicts.entry(hold(&seeded_bytes(seed, 80 + seed as usize % 300))).or_default() += 1;
    }
    println!("{verdicts:?}");
    assert!(verdicts.get("admitted").is_some_and(|count| *count > 100), "{verdicts:?}");
    assert!(properties::CODES.iter().all(|code| verdicts.contains_key(code)), "each reason is met: {verdicts:?}");
}

/// The message for a plain adapter's configuration with these weights.
fn rejection(weights: &[u8]) -> String {
    let config = adapter(&mut Draw::new(&[]), &Sizes::TINY).config;
    canonical_adapter(&config, weights, &properties::tiny(), &AdapterLimits::default()).unwrap_err().to_string()
}

fn container(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn of_two_faults_the_same_one_is_told_each_time() {
    let entry =
        |name: &str, at: usize| format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{at},{}]}}"#, at + 4);
    let entries: Vec<String> = ('a'..='h').enumerate().map(|(at, name)| entry(&name.to_string(), 4 * at)).collect();
    let weights = container(&format!("{{{}}}", entries.join(",")), &[0; 32]);
    let told = rejection(&weights);
    assert!(told.contains("`a`"), "{told}");
    assert!((0..50).all(|_| rejection(&weights) == told));
}

#[test]
fn a_rejection_does_not_quote_the_whole_file() {
    let name = "x".repeat(100_000);
    let weights = container(&format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}}}"#), &[0; 8]);
    let told = rejection(&weights);
    assert!(told.len() < 400, "{} bytes", told.len());
}

#[test]
fn a_base_of_a_few_kilobytes_opens() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), generators::base_file(&generators::Sizes::TINY)).unwrap();
    let base = model::Base::open(file.path()).unwrap();
    assert_eq!(base.config(), &properties::tiny());
    let tokens = base.tokenizer().encode("hello, 12 é<|im_end|>").unwrap();
    assert_eq!(base.tokenizer().decode(&tokens), "hello, 12 é");
}
