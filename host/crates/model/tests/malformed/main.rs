//! Adapters of every kind with something wrong in them, by the generator that the fuzz target uses too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod properties;

use std::collections::BTreeMap;

use generators::seeded_bytes;
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

#[test]
fn a_base_of_a_few_kilobytes_opens() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), generators::base_file(&generators::Sizes::TINY)).unwrap();
    let base = model::Base::open(file.path()).unwrap();
    assert_eq!(base.config(), &properties::tiny());
    let tokens = base.tokenizer().encode("hello, 12 é<|im_end|>").unwrap();
    assert_eq!(base.tokenizer().decode(&tokens), "hello, 12 é");
}
