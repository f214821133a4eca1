//! What a data folder may hold, file by file. Anything else was left behind.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Every file below a folder, relative to it.
pub(super) fn list(folder: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() { walk(&path, into) } else { into.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(folder, &mut found);
    found.sort();
    found.into_iter().map(|path| path.strip_prefix(folder).expect("below").to_path_buf()).collect()
}

/// The files, once no packed adapter is being written: that happens after the answer that it was packed for.
pub(super) fn settled(data: &Path) -> Vec<PathBuf> {
    let started = Instant::now();
    loop {
        let found = list(data);
        let is_staged = |name: &PathBuf| name.to_string_lossy().starts_with("packed-adapters/.staged-");
        if !found.iter().any(is_staged) || started.elapsed() > Duration::from_secs(10) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether a file belongs into a data folder when nothing is being written.
pub(super) fn is_expected(name: &Path) -> bool {
    let parts: Vec<&str> = name.iter().map(|part| part.to_str().unwrap_or_default()).collect();
    match parts.as_slice() {
        ["state.redb" | "dev.key" | "receipt.key" | "receipt.pub" | "secrets.key"]
        | ["plugin-cache" | "packed-adapters", "mark.key"] => true,
        ["blobs", "plugin" | "adapter", fan_out, digest] => is_hex(digest, 64) && digest.get(..2) == Some(*fan_out),
        ["plugin-cache", file] => {
            let names = file.strip_suffix(".cwasm").and_then(|stem| stem.split_once('-'));
            names.is_some_and(|(component, engine)| is_hex(component, 64) && is_hex(engine, 16))
        }
        ["packed-adapters", file] => {
            let parts: Vec<&str> = file.strip_suffix(".packed").unwrap_or_default().split('-').collect();
            matches!(parts[..], [adapter, of, layout] if is_hex(adapter, 16) && is_hex(of, 64) && is_hex(layout, 16))
        }
        _ => false,
    }
}

/// Asserts that nothing is there but what belongs there, and that every blob is what its name says.
pub(super) fn check(data: &Path) {
    for name in settled(data) {
        assert!(is_expected(&name), "{} was left behind", name.display());
        if name.starts_with("blobs") {
            let bytes = std::fs::read(data.join(&name)).expect("a blob");
            let digest = blake3::hash(&bytes).to_hex();
            assert_eq!(Some(digest.as_str()), name.file_name().and_then(|name| name.to_str()), "a blob is torn");
        }
    }
}
