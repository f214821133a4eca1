//! `cargo xtask test`: every check of the repository, stage by stage, with one line of totals at the end. CI runs this
//! and nothing else. Not here: the checks themselves.
//!
//! Every build here selects the whole workspace, the demo's too: a smaller selection would resolve other features for
//! shared dependencies and so build wasmtime a second time.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::ValueEnum;

use crate::shell::{self, Outcome};
use crate::{base, clients, cuda, guests, tools};

/// A part of `cargo xtask test`, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// `cargo fmt --check`, in every workspace
    Fmt,
    /// Build the guests
    Guests,
    /// Fetch the base
    Base,
    /// Build the workspace, its binaries and its tests
    Build,
    /// Install the real clients, the S3 server and the OCI registry that the tests run
    Clients,
    /// Compare the CUDA kernels' fatbins with their sources, and run kernels and runner on a device that the CPU emulates
    CudaEmulation,
    /// Every golden of the demo base through the CUDA runner on that device: many minutes, and only if it is named
    CudaGoldens,
    /// Run the tests of the workspace
    Workspace,
    /// Run the tests of the Rust SDK and of the plugins, natively
    Plugins,
    /// Test and build the other languages' SDKs, their examples and templates, with tools that are installed once
    Sdks,
    /// `tenon new`, `build`, `deploy` and `invoke` in each language, on a host, timed; with the tools of the stage before
    Newcomer,
    /// `cargo clippy` with warnings as errors
    Clippy,
    /// `cargo deny`: licences, bans, sources
    Deny,
}

const CARGO_DENY: &str = "0.20.2";
/// The workspace of the SDK and the plugins.
const GUESTS: &str = "plugins/Cargo.toml";
/// The workspace of the fuzz targets, which is not built here.
const FUZZ: &str = "fuzz/Cargo.toml";

/// What test runners counted.
#[derive(Default)]
pub(crate) struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs one stage, or all of them; all run even if one fails.
///
/// # Errors
/// If any stage failed.
pub(crate) fn run(only: Option<Stage>) -> Outcome {
    let started = Instant::now();
    let is_asked = |stage: &Stage| only.map_or(*stage != Stage::CudaGoldens, |only| only == *stage);
    let stages: Vec<Stage> = Stage::value_variants().iter().copied().filter(is_asked).collect();
    let mut totals = Totals::default();
    let mut failures = Vec::new();
    let mut times = Vec::new();
    for stage in stages {
        let name = stage.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        println!("\n== {name}");
        let stage_started = Instant::now();
        if let Err(error) = one(stage, &mut totals) {
            eprintln!("xtask: {name}: {error}");
            failures.push(name.clone());
        }
        times.push(format!("{name} {:.0} s", stage_started.elapsed().as_secs_f64()));
    }
    println!("\n== {}; in all {:.0} s", times.join(", "), started.elapsed().as_secs_f64());
    // A stage that runs no tests counts as one when it fails, so that no failure hides behind the totals.
    totals.failed = totals.failed.max(failures.len() as u64);
    println!("{} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.skipped);
    if failures.is_empty() { Ok(()) } else { Err(format!("failed: {}", failures.join(", ")).into()) }
}

fn one(stage: Stage, totals: &mut Totals) -> Outcome {
    match stage {
        Stage::Fmt => {
            shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))?;
            shell::run(&mut shell::cargo(&["fmt", "--all", "--check", "--manifest-path", GUESTS]))?;
            shell::run(&mut shell::cargo(&["fmt", "--all", "--check", "--manifest-path", FUZZ]))
        }
        Stage::Guests => guests(false),
        Stage::Base => base::ensure().map(|path| println!("base: {}", path.display())),
        Stage::Build => {
            shell::run(&mut shell::cargo(&["build", "--locked", "--workspace", "--lib", "--bins", "--tests"]))
        }
        Stage::Clients => clients::ensure(),
        Stage::CudaEmulation => base::ensure().and_then(|base| cuda::emulation(&base, totals)),
        Stage::CudaGoldens => base::ensure().and_then(|base| cuda::goldens(&base, totals)),
        // What needs the emulated device is run by the stage before.
        Stage::Workspace => tests(
            shell::cargo(&["test", "--locked", "--workspace", "--no-fail-fast", "--", "--skip", "emulated::"]),
            totals,
        ),
        Stage::Plugins => tests(native(&["test", "--locked", "--workspace", "--manifest-path", GUESTS]), totals),
        Stage::Sdks => checks(&["sdk/check.py"], totals),
        Stage::Newcomer => newcomer(totals),
        Stage::Clippy => {
            let arguments = ["clippy", "--locked", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
            shell::run(&mut shell::cargo(&arguments))
        }
        Stage::Deny => deny(),
    }
}

/// Builds the guests; the committed ones serve where no toolchain can build for WebAssembly.
///
/// # Errors
/// If they cannot be built and fixtures are to be updated, or none are committed.
pub(crate) fn guests(update_fixtures: bool) -> Outcome {
    match guests::build(&shell::root(), update_fixtures) {
        Ok(components) => println!("guests: {} built", components.len()),
        Err(error) if update_fixtures => return Err(error),
        Err(error) => {
            println!("guests: {error}; going on with the committed ones in {}", committed_guests().display());
            forget_built_guests()?;
        }
    }
    Ok(())
}

/// Older builds must not stand in for the ones that could not be built.
fn forget_built_guests() -> Outcome {
    match fs::remove_dir_all(built_guests()) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn built_guests() -> PathBuf {
    shell::root().join("target").join("guests")
}

/// A component by name: as it was built last, or the committed one.
pub(crate) fn component(name: &str) -> PathBuf {
    let file = format!("{name}.wasm");
    let built = built_guests().join(&file);
    if built.is_file() { built } else { committed_guests().join(file) }
}

/// The components that are in the tree.
fn committed_guests() -> PathBuf {
    shell::root().join("tests").join("fixtures").join("guests")
}

/// The rules of the repository alone, without building the host.
///
/// # Errors
/// If one is broken; the test's message says what to do.
pub(crate) fn tidy() -> Outcome {
    shell::run(&mut shell::cargo(&["test", "--locked", "--workspace", "--test", "it", "tidy::"]))
}

/// A cargo command for the SDK and the plugins, built for this machine and apart from the host.
fn native(arguments: &[&str]) -> Command {
    let mut command = shell::cargo(arguments);
    command.env("CARGO_TARGET_DIR", shell::target().join("sdk"));
    command
}

/// The path of somebody who begins, with the program that was built and the base that was fetched.
fn newcomer(totals: &mut Totals) -> Outcome {
    shell::run(&mut shell::cargo(&["build", "--locked", "--workspace", "--bins"]))?;
    let tenon = shell::target().join("debug").join("tenon");
    let base = match base::ensure() {
        Ok(base) => base,
        Err(error) => {
            println!("skipped: newcomer: {error}");
            totals.skipped += 1;
            return Ok(());
        }
    };
    checks(&["sdk/newcomer.py", &tenon.to_string_lossy(), &base.to_string_lossy()], totals)
}

/// What a script checks, a line each.
pub(crate) fn checks(arguments: &[&str], totals: &mut Totals) -> Outcome {
    let mut command = Command::new("python3");
    command.arg("-u").args(arguments).current_dir(shell::root());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let line = shell::line_of(&command);
    println!("$ {line}");
    let mut child = match command.spawn() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: the SDKs: there is no python3");
            totals.skipped += 1;
            return Ok(());
        }
        child => child.map_err(|error| format!("cannot start `{line}`: {error}"))?,
    };
    let stdout = child.stdout.take().ok_or("no standard output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        totals.add_check(&line);
    }
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("`{line}` failed: {status}").into()) }
}

/// Licences, bans and sources. Not advisories: their database lies in no package registry, which is all that CI reaches.
fn deny() -> Outcome {
    let tool = tools::installed("cargo-deny", CARGO_DENY)?;
    shell::run(Command::new(tool).args(["check", "bans", "licenses", "sources"]).current_dir(shell::root()))?;
    println!("deny: advisories are not checked here; run `cargo deny check advisories` before a release");
    Ok(())
}

/// Runs a test command, passing its output on and adding up the summary lines of libtest.
pub(crate) fn tests(mut command: Command, totals: &mut Totals) -> Outcome {
    let skips = shell::target().join("skips.log");
    fs::write(&skips, "")?;
    let line = shell::line_of(&command);
    println!("$ {line}");
    command.env("TENON_SKIP_LOG", &skips).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot start `{line}`: {error}"))?;
    let stdout = child.stdout.take().ok_or("no standard output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        totals.add(&line);
    }
    let status = child.wait()?;
    for skip in fs::read_to_string(&skips)?.lines() {
        println!("skipped: {skip}");
        totals.passed = totals.passed.saturating_sub(1);
        totals.skipped += 1;
    }
    if status.success() { Ok(()) } else { Err(format!("`{line}` failed: {status}").into()) }
}

impl Totals {
    /// Says what was left out and why, and counts it.
    pub(crate) fn skip(&mut self, what: &str) {
        println!("skipped: {what}");
        self.skipped += 1;
    }

    /// Counts a check that ran outside of any test runner.
    pub(crate) fn pass(&mut self) {
        self.passed += 1;
    }

    /// `ok      python: types (1.2 s)`, `skipped c: example gate (0.0 s): there is no wit-bindgen`
    fn add_check(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("ok", _)) => self.passed += 1,
            Some(("FAILED", _)) => self.failed += 1,
            Some(("skipped", _)) => self.skipped += 1,
            _ => {}
        }
    }

    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        let counts = counts.split_once(". ").map_or(counts, |(_, counts)| counts);
        for count in counts.split("; ") {
            match count.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                Some((number, "ignored")) => self.skipped += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_are_added_up() {
        let mut totals = Totals::default();
        totals.add("running 3 tests");
        totals.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.01s");
        totals.add_check("ok      python: unit tests (0.3 s)");
        totals.add_check("skipped c: example gate (0.0 s): there is no wit-bindgen");
        totals.add_check("what a tool said");
        totals.add("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s");
        assert_eq!((totals.passed, totals.failed, totals.skipped), (6, 4, 2));
    }
}
