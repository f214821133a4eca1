//! What files of the repository look like: opening lines, lengths, places, sizes.

use std::path::{Path, PathBuf};

use tests::{repository, tracked_files};

const RUST_LINES_WARN: usize = 500;
const RUST_LINES_MAX: usize = 800;
const FIXTURE_BYTES_MAX: u64 = 12 << 20;
const FILE_BYTES_MAX: u64 = 6 << 20;

/// The only places for `unsafe`: the numerics, the one call that takes compiled code from our own cache, and advice to the kernel on memory.
const UNSAFE_FOLDER: &str = "kernels";
const UNSAFE_FILES_OF_PLUGIN_MAX: usize = 2;

#[test]
fn every_module_opens_by_saying_what_it_is_for() {
    for (path, text) in rust() {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//!"), "{}: open with `//!`: what this is for, and what it is not", path.display());
    }
}

#[test]
fn files_stay_one_noun() {
    for (path, text) in rust() {
        let lines = text.lines().count();
        assert!(lines <= RUST_LINES_MAX, "{} has {lines} lines, at most {RUST_LINES_MAX}: split it", path.display());
        if lines > RUST_LINES_WARN {
            eprintln!("{} has {lines} lines: is it still one noun?", path.display());
        }
    }
}

#[test]
fn nothing_names_a_machine_or_a_registry() {
    // Written in parts, so that this file passes its own rule.
    let words =
        [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["files.python", "hosted.org"], ["static.cra", "tes.io"]];
    let words = words.map(|parts| parts.concat());
    for path in tracked_files() {
        let Ok(text) = std::fs::read_to_string(repository().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            for word in &words {
                assert!(!line.contains(word), "{}:{}: names {word}: find it at run time", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_two_rooms() {
    // Written in parts, so that this file passes its own rule.
    let word = ["unsafe", " {"].concat();
    let outside: Vec<PathBuf> = rust()
        .into_iter()
        .filter(|(path, text)| !path.starts_with(UNSAFE_FOLDER) && text.contains(&word))
        .map(|(path, _)| path)
        .collect();
    let (plugin, elsewhere): (Vec<_>, Vec<_>) =
        outside.into_iter().partition(|path| path.starts_with("host/crates/plugin/src"));
    // wit-bindgen's macro, not a hand, writes the unsafe code of guests.
    assert!(elsewhere.is_empty(), "{elsewhere:?}: unsafe code belongs to kernels/ and two files of host/crates/plugin");
    assert!(plugin.len() <= UNSAFE_FILES_OF_PLUGIN_MAX, "{plugin:?}: only two files of plugin may have unsafe code");
}

#[test]
fn fixtures_stay_small() {
    let sizes = tracked_files().into_iter().map(|path| {
        let bytes = std::fs::metadata(repository().join(&path)).expect("a tracked file is there").len();
        (path, bytes)
    });
    let mut fixture_bytes = 0;
    for (path, bytes) in sizes {
        assert!(bytes <= FILE_BYTES_MAX, "{} has {bytes} bytes, at most {FILE_BYTES_MAX}", path.display());
        fixture_bytes += if path.starts_with("tests/fixtures") { bytes } else { 0 };
    }
    assert!(
        fixture_bytes <= FIXTURE_BYTES_MAX,
        "tests/fixtures has {fixture_bytes} bytes, at most {FIXTURE_BYTES_MAX}"
    );
}

#[test]
fn decisions_are_numbered_and_titled() {
    let mut decisions: Vec<PathBuf> =
        tracked_files().into_iter().filter(|path| path.starts_with("docs/decisions") && is(path, "md")).collect();
    decisions.sort();
    for (index, path) in decisions.iter().enumerate() {
        let number = format!("{:04}-", index + 1);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        assert!(
            name.starts_with(&number),
            "{}: decisions are numbered without gaps, expected {number}…",
            path.display()
        );
        let text = std::fs::read_to_string(repository().join(path)).expect("a decision can be read");
        assert!(text.starts_with("# "), "{}: open with `# ` and the decision as a sentence", path.display());
    }
}

#[test]
fn documents_name_files_that_are_there() {
    const TREES: [&str; 7] = ["host/", "kernels/", "sdk/", "plugins/", "tests/", "wit/", "docs/"];
    for document in tracked_files().into_iter().filter(|path| is(path, "md")) {
        let text = std::fs::read_to_string(repository().join(&document)).expect("a document is UTF-8");
        let quoted = text.split('`').skip(1).step_by(2);
        for path in quoted.filter(|word| TREES.iter().any(|tree| word.starts_with(tree)) && !word.contains([' ', '*']))
        {
            let is_there = repository().join(path).exists();
            assert!(is_there, "{} names `{path}`, which is not there: say where it is now", document.display());
        }
    }
}

fn rust() -> Vec<(PathBuf, String)> {
    let files = tracked_files().into_iter().filter(|path| is(path, "rs"));
    files.map(|path| (path.clone(), std::fs::read_to_string(repository().join(path)).expect("UTF-8"))).collect()
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}
