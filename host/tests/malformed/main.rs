//! Requests that clients would not send, asked of a whole host within this process, and bundles of signatures with something
//! wrong in them, by the generators that the fuzz targets use too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod properties;
mod signatures;

use std::collections::BTreeMap;
use std::path::Path;

use generators::seeded_bytes;
use properties::Host;

#[test]
fn every_request_gets_an_answer_or_an_error_of_ours() {
    let mut host = Host::open(Path::new(env!("CARGO_BIN_EXE_tenon")));
    let mut statuses = BTreeMap::<u16, u32>::new();
    for seed in 0..2000 {
        println!("seed {seed}");
        for status in host.hold(&seeded_bytes(seed, 100 + seed as usize % 500)) {
            *statuses.entry(status).or_default() += 1;
        }
    }
    println!("{statuses:?}");
    for status in [200, 201, 400, 401, 404, 405, 422] {
        assert!(statuses.contains_key(&status), "{status} is met: {statuses:?}");
    }
}

#[test]
fn bundles_of_all_kinds_hold_or_are_refused() {
    let mut verdicts = BTreeMap::<&str, u32>::new();
    for seed in 0..2000 {
        *verdicts.entry(signatures::hold(&seeded_bytes(seed, 20 + seed as usize % 300))).or_default() += 1;
    }
    println!("{verdicts:?}");
    assert_eq!(signatures::hold(&[]), "signed", "the plain one");
    assert!(verdicts.get("signed").is_some_and(|count| *count > 100), "{verdicts:?}");
    assert!(signatures::CODES.iter().all(|code| verdicts.contains_key(code)), "each reason is met: {verdicts:?}");
}

#[test]
fn the_generator_knows_every_route_of_the_document() {
    let host = Host::open(Path::new(env!("CARGO_BIN_EXE_tenon")));
    let document = host.document();
    let known: Vec<_> = generators::routes().collect();
    let paths = document["paths"].as_object().expect("paths");
    for (path, methods) in paths {
        let parameter = |part: &str| if part.starts_with('{') { "{}".to_owned() } else { part.to_owned() };
        let path = path.split('/').map(parameter).collect::<Vec<_>>().join("/");
        for method in methods.as_object().expect("methods").keys() {
            let method = method.to_uppercase();
            assert!(known.contains(&(method.as_str(), path.as_str())), "{method} {path}: add it to tests/generators");
        }
    }
    assert!(paths.len() > 15);
}
