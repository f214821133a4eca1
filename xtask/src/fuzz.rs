//! `cargo xtask fuzz`: builds the fuzz targets of `fuzz/` and runs them for some minutes each. Not here: the targets, which
//! are glue over the crate `generators` and the properties beside the tests, and are tried by `cargo xtask test` too.
//!
//! cargo-fuzz asks for flags of a nightly compiler; the stable one that builds everything else takes them with
//! `RUSTC_BOOTSTRAP`, and has the runtime of AddressSanitizer where rustup installed it.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::ValueEnum;
use generators::{Draw, Sizes, adapter, requests, seeded_bytes};

use crate::shell::{self, Outcome};
use crate::tools;

const CARGO_FUZZ: &str = "0.13.1";
/// Enough for a whole adapter or three requests.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// An input that takes longer is a finding.
const INPUT_SECONDS_MAX: &str = "20";
/// A process that takes more memory is a finding.
const MEMORY_MEGABYTES_MAX: &str = "4096";
/// One allocation that is larger is a finding: limits are met before memory is.
const ALLOCATION_MEGABYTES_MAX: &str = "512";
/// Gives way to whatever else the machine does.
const NICE: i32 = 15;
/// Seeds of a target that has no corpus yet.
const SEEDS: u64 = 256;

/// A fuzz target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Target {
    /// Configurations and safetensors files of adapters
    AdapterAdmission,
    /// Bundles that sign adapters
    AdapterSignature,
    /// Plans against grants and limits
    PlanValidation,
    /// Requests on every route of a whole host
    HttpBodies,
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::AdapterAdmission => "adapter_admission",
            Self::AdapterSignature => "adapter_signature",
            Self::PlanValidation => "plan_validation",
            Self::HttpBodies => "http_bodies",
        }
    }
}

/// Runs one target or all, for so many minutes each; or one target on the input that a finding left.
///
/// # Errors
/// If a target cannot be built, or finds something; how to reproduce it is printed.
pub(crate) fn run(target: Option<Target>, minutes: f64, input: Option<&Path>) -> Outcome {
    let targets = target.map_or_else(|| Target::value_variants().to_vec(), |target| vec![target]);
    build(&targets)?;
    let _lower_is_kept = rustix::process::nice(NICE);
    let scratch = scratch()?;
    if let Some(input) = input {
        let target = target.ok_or("say which target the input is for")?;
        return shell::run(fuzzer(target, scratch.path())?.arg(input));
    }
    let mut lines = Vec::new();
    let mut findings = 0;
    for target in targets {
        let outcome = fuzz(target, minutes, scratch.path())?;
        findings += usize::from(!outcome.is_clean);
        lines.push(outcome.line);
    }
    println!("\n{}", lines.join("\n"));
    if findings == 0 { Ok(()) } else { Err(format!("{findings} of the targets found something").into()) }
}

fn folder() -> PathBuf {
    shell::root().join("fuzz")
}

/// The targets, and the binary `tenon`, which compiles plugins for the host that is fuzzed.
fn build(targets: &[Target]) -> Outcome {
    if targets.contains(&Target::HttpBodies) {
        shell::run(&mut shell::cargo(&["build", "--locked", "--workspace", "--lib", "--bins"]))?;
    }
    let tool = tools::installed("cargo-fuzz", CARGO_FUZZ)?;
    let sanitizer = if has_address_sanitizer()? { "address" } else { "none" };
    for target in targets {
        let mut build = Command::new(&tool);
        build.args(["fuzz", "build", "--target", &host_triple()?, "--sanitizer", sanitizer]);
        build.arg("--fuzz-dir").arg(folder()).arg(target.name());
        build.current_dir(shell::root()).env("RUSTC_BOOTSTRAP", "1");
        // Two at a time unless told otherwise: a coverage build of everything fills a small machine.
        if std::env::var_os("CARGO_BUILD_JOBS").is_none() {
            build.env("CARGO_BUILD_JOBS", "2");
        }
        shell::run(&mut build)?;
    }
    Ok(())
}

/// Whether this toolchain has the sanitizer's runtime.
fn has_address_sanitizer() -> Outcome<bool> {
    let folder = shell::capture(Command::new("rustc").args(["--print", "target-libdir"]))?;
    let entries = fs::read_dir(folder.trim())?;
    Ok(entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with("_rt.asan.a")))
}

fn host_triple() -> Outcome<String> {
    let version = shell::capture(Command::new("rustc").arg("-vV"))?;
    let triple = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(triple.ok_or("rustc does not name its host")?.to_owned())
}

/// Where hosts keep their data while they are fuzzed: in memory where the system offers that, for the sake of the disk.
fn scratch() -> Outcome<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    builder.prefix("tenon-fuzz-");
    Ok(if memory.is_dir() { builder.tempdir_in(memory)? } else { builder.tempdir()? })
}

/// The target's program with everything but its inputs.
fn fuzzer(target: Target, scratch: &Path) -> Outcome<Command> {
    let program = folder().join("target").join(host_triple()?).join("release").join(target.name());
    let mut command = Command::new(program);
    // What is alive when the process ends (threads, caches) is not a leak; memory has its own limit.
    command.env("ASAN_OPTIONS", "detect_leaks=0:detect_odr_violation=0").env("TMPDIR", scratch);
    command.env("RUST_BACKTRACE", "1").current_dir(shell::root()).args(["-detect_leaks=0"]);
    command.args([format!("-timeout={INPUT_SECONDS_MAX}"), format!("-rss_limit_mb={MEMORY_MEGABYTES_MAX}")]);
    command.args([format!("-malloc_limit_mb={ALLOCATION_MEGABYTES_MAX}"), format!("-max_len={INPUT_BYTES_MAX}")]);
    Ok(command)
}

struct Run {
    is_clean: bool,
    line: String,
}

fn fuzz(target: Target, minutes: f64, scratch: &Path) -> Outcome<Run> {
    let name = target.name();
    let (corpus, artifacts) = (folder().join("corpus").join(name), folder().join("artifacts").join(name));
    fs::create_dir_all(&artifacts)?;
    seed(target, &corpus)?;
    if target == Target::AdapterAdmission {
        seed_whole_files(&corpus)?;
    }
    let mut command = fuzzer(target, scratch)?;
    command.arg(format!("-max_total_time={:.0}", minutes * 60.0)).arg("-print_final_stats=1");
    if target == Target::HttpBodies {
        // The schedule by rare features costs more than the requests: threads and clocks make many features rare.
        command.arg("-entropic=0");
    }
    command.arg(format!("-artifact_prefix={}/", artifacts.display())).arg(&corpus);
    println!("$ {}", shell::line_of(&command));
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let stderr = child.stderr.take().ok_or("no standard error")?;
    let (mut done, mut executions, mut found) = (String::new(), String::new(), None);
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        eprintln!("{line}");
        if let Some((_, counters)) = line.split_once("cov: ") {
            let counters = counters.split_once(" L: ").map_or(counters, |(counters, _)| counters);
            done = format!("cov: {counters}");
        }
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            executions = count.trim().to_owned();
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            found = Some(path.trim().to_owned());
        }
    }
    let status = child.wait()?;
    if let Some(path) = &found {
        println!("\nreproduce with: cargo xtask fuzz {name} --input {path}");
    }
    let is_clean = status.success() && found.is_none();
    let verdict =
        if is_clean { "no finding".to_owned() } else { format!("FOUND {} ({status})", found.unwrap_or_default()) };
    Ok(Run { is_clean, line: format!("{name}: {executions} executions in {minutes} min, {done}: {verdict}") })
}

/// The pairs of files of the shared hostile set, where the checkout has it beside it (or `TENON_SHARED` names it), and of the
/// fixtures, in the form of [`Target::AdapterAdmission`]'s whole files. Each run adds them again: they are few, and the corpus
/// may be older.
fn seed_whole_files(corpus: &Path) -> Outcome {
    let shared = std::env::var_os("TENON_SHARED").map_or_else(|| shell::root().join("../shared"), PathBuf::from);
    let hostile = shared.join("lora/hostile");
    match seed_folders("hostile", &hostile, corpus)? {
        0 => println!("no hostile set under {}: the corpus begins without it", shared.display()),
        seeds => println!("{seeds} inputs from the hostile set"),
    }
    let mut seeds = 0;
    for folder in ["alora", "bases", "lora", "signatures"] {
        seeds += seed_folders(folder, &shell::root().join("tests/fixtures").join(folder), corpus)?;
    }
    println!("{seeds} inputs from the fixtures");
    Ok(())
}

/// The adapters in the folders within this one, if they are small enough; how many. None where there is no such folder.
fn seed_folders(name: &str, folder: &Path, corpus: &Path) -> Outcome<usize> {
    let Ok(cases) = fs::read_dir(folder) else { return Ok(0) };
    let mut seeds = 0;
    for case in cases {
        let case = case?;
        let read = |file: &str| fs::read(case.path().join(file));
        let (Ok(config), Ok(weights)) = (read("adapter_config.json"), read("adapter_model.safetensors")) else {
            continue;
        };
        let length = u32::try_from(config.len())?.to_le_bytes();
        let input = [&[6][..], &length, &config, &weights].concat();
        if input.len() <= INPUT_BYTES_MAX {
            fs::write(corpus.join(format!("{name}-{}", case.file_name().to_string_lossy())), input)?;
            seeds += 1;
        }
    }
    Ok(seeds)
}

/// A corpus to begin with, where there is none: choices from seeds, and whole plain inputs for the raw variants.
fn seed(target: Target, corpus: &Path) -> Outcome {
    if fs::read_dir(corpus).is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(());
    }
    fs::create_dir_all(corpus)?;
    for seed in 0..SEEDS {
        fs::write(corpus.join(format!("seed-{seed}")), seeded_bytes(seed, 16 + 3 * seed as usize))?;
    }
    let mut plain = Draw::new(&[]);
    let raw = match target {
        Target::AdapterAdmission => {
            let files = adapter(&mut plain, &Sizes::TINY);
            vec![(7, files.config), (15, files.weights)]
        }
        Target::AdapterSignature => {
            let made = shell::root().join("tests/fixtures/signatures/adapter/model.sig");
            vec![(7, fs::read(made)?)]
        }
        Target::PlanValidation => vec![(7, b"text".to_vec()), (15, b"text".to_vec())],
        Target::HttpBodies => requests(&mut plain).into_iter().map(|request| (7, request.body)).collect(),
    };
    for (first, rest) in raw {
        fs::write(corpus.join(format!("raw-{first}")), [&[first], rest.as_slice()].concat())?;
    }
    println!("corpus of {} begun: {} inputs", name_of(corpus), fs::read_dir(corpus)?.count());
    Ok(())
}

fn name_of(path: &Path) -> String {
    path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_that_fit_become_inputs_and_others_do_not() {
        let (from, corpus) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        for (case, weights) in [("small", Some(3)), ("large", Some(INPUT_BYTES_MAX)), ("half", None)] {
            let folder = from.path().join(case);
            fs::create_dir(&folder).expect("a folder");
            fs::write(folder.join("adapter_config.json"), "{}").expect("written");
            if let Some(bytes) = weights {
                fs::write(folder.join("adapter_model.safetensors"), vec![9; bytes]).expect("written");
            }
        }
        assert_eq!(seed_folders("set", from.path(), corpus.path()).expect("read"), 1);
        let input = fs::read(corpus.path().join("set-small")).expect("an input");
        assert_eq!(input, b"\x06\x02\0\0\0{}\x09\x09\x09");
        assert_eq!(seed_folders("set", &from.path().join("none"), corpus.path()).expect("nothing"), 0);
        let fixtures = shell::root().join("tests/fixtures/bases");
        assert!(seed_folders("bases", &fixtures, corpus.path()).expect("read") >= 2, "the fixtures fit");
    }
}
