//! Where the repository, the base, the fixtures and the larger sets beside the checkout are. Not here: reading them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The root of the checkout.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_path_buf()
}

/// Files that git tracks, relative to the root; with new ones that it does not ignore.
#[must_use]
pub fn tracked_files() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(repository());
    let output = git.output().expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let files = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    files.filter(|name| repository().join(name).is_file()).collect()
}

/// The larger sets that may lie beside the checkout, or where `TENON_SHARED` says.
#[must_use]
pub fn shared() -> Option<PathBuf> {
    let beside = repository().parent().map(|parent| parent.join("shared"));
    let folder = std::env::var_os("TENON_SHARED").map(PathBuf::from).or(beside);
    folder.filter(|folder| folder.is_dir())
}

/// The base model, if it was fetched.
#[must_use]
pub fn base() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    let cached = cache.map(|cache| cache.join("tenon").join("base").join("SmolLM2-135M-Instruct.Q4_1.gguf"));
    std::env::var_os("TENON_BASE").map(PathBuf::from).or(cached).filter(|path| path.is_file())
}

/// A component by name: as built by `cargo xtask guests` if it was, else the committed one.
///
/// # Panics
/// If there is neither.
#[must_use]
pub fn guest(name: &str) -> Vec<u8> {
    let committed = repository().join("tests/fixtures/guests").join(format!("{name}.wasm"));
    let built = repository().join("target/guests").join(format!("{name}.wasm"));
    let path = if built.is_file() { built } else { committed };
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask guests`", path.display()))
}

/// The folder of an adapter in PEFT's form: committed, or in the larger set beside the checkout.
#[must_use]
pub fn adapter_folder(name: &str) -> Option<PathBuf> {
    let committed = repository().join("tests/fixtures/lora").join(name);
    let larger = shared().map(|shared| shared.join("lora/adapters").join(name));
    std::iter::once(committed).chain(larger).find(|folder| folder.is_dir())
}

/// The golden outputs: those beside the checkout if they are there, else the committed part.
///
/// # Panics
/// If neither is there.
#[must_use]
pub fn golden() -> Value {
    let committed = repository().join("tests/fixtures/lora/golden/golden.json");
    let larger = shared().map(|shared| shared.join("lora/golden/golden.json")).filter(|path| path.is_file());
    let path = larger.unwrap_or(committed);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("golden.json is JSON")
}

/// Says why a test does nothing here, where `cargo xtask test` counts it.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let Some(log) = std::env::var_os("TENON_SKIP_LOG") else { return };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(log);
    file.and_then(|mut file| writeln!(file, "{test}: {reason}")).expect("the log of skips can be written");
}

/// The folder of the profile, where binaries lie.
pub(crate) fn profile() -> PathBuf {
    let executable = std::env::current_exe().expect("a running test has a path");
    executable.ancestors().nth(2).expect("tests run in target/PROFILE/deps").to_path_buf()
}
