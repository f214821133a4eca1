//! `cargo xtask bench cuda`: builds the small program that measures the CUDA path, and runs it here or packs it for a machine
//! that has nothing but a GPU. Not here: what it measures (`tests/cuda-bench`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;

use crate::shell::{self, Outcome};

/// What is lent carries files of tens of megabytes at most; this leaves room for others.
const ARCHIVE_BYTES_MAX: u64 = 8 << 20;
/// Beside the program: what runs it, and what it is compared with.
const SCRIPTS: [&str; 2] = ["run.sh", "peers.py"];
const NAME: &str = "tenon-cuda-bench";

/// What is done with the program; everything else goes to it.
#[derive(Parser)]
#[command(name = "cargo xtask bench cuda", disable_help_flag = true)]
struct Arguments {
    /// Pack it instead of running it; the ending says how (`.tar.xz`, `.tar.gz`)
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// Builds, and runs or packs.
///
/// # Errors
/// If it cannot be built, there is no GPU, or the archive is too large.
pub(crate) fn run(arguments: &[OsString]) -> Outcome {
    let arguments = Arguments::try_parse_from([OsString::from("cuda")].iter().chain(arguments))?;
    let mut build = shell::cargo(&["build", "--locked", "--release", "--package", "cuda-bench"]);
    shell::run(build.env("TENON_COMMIT", commit()))?;
    let program = shell::target().join("release").join("cuda-bench");
    let scripts = shell::root().join("tests").join("cuda-bench");
    match arguments.archive {
        Some(archive) => pack(&program, &scripts, &archive),
        None => shell::run(Command::new(program).arg("--peers").arg(scripts.join("peers.py")).args(arguments.rest)),
    }
}

/// Which commit it is: where it runs there is no checkout.
fn commit() -> String {
    let git = |arguments: &[&str]| shell::capture(Command::new("git").args(arguments).current_dir(shell::root()));
    let Ok(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "not stated".to_owned() };
    let changes = git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|changes| !changes.is_empty());
    format!("{}{}", head.trim(), if changes { "+changes" } else { "" })
}

fn pack(program: &Path, scripts: &Path, archive: &Path) -> Outcome {
    let stage = shell::target().join("cuda-bench");
    let folder = stage.join(NAME);
    std::fs::create_dir_all(&folder)?;
    let stripped = folder.join("cuda-bench");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(program).stdin(Stdio::null());
    if !strip.status().is_ok_and(|status| status.success()) {
        println!("there is no `strip`: the program keeps its symbols");
        std::fs::copy(program, &stripped)?;
    }
    for script in SCRIPTS {
        std::fs::copy(scripts.join(script), folder.join(script))?;
    }
    // The same bytes for the same files.
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-C"]).arg(&stage);
    shell::run(tar.arg("-caf").arg(archive).arg(NAME))?;
    let bytes = std::fs::metadata(archive)?.len();
    let megabytes = |bytes: u64| format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20));
    println!("{}: {} of at most {}", archive.display(), megabytes(bytes), megabytes(ARCHIVE_BYTES_MAX));
    println!("on the GPU machine: tar -xf {} && ./{NAME}/run.sh", shown(archive));
    if bytes > ARCHIVE_BYTES_MAX {
        return Err(format!("{} is larger than {}", archive.display(), megabytes(ARCHIVE_BYTES_MAX)).into());
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_is_told_goes_to_the_program_or_says_where_to_pack() {
        let parse = |line: &[&str]| Arguments::try_parse_from([&["cuda"], line].concat()).expect("arguments");
        let packed = parse(&["--archive", "a.tar.xz"]);
        assert!(packed.archive.is_some_and(|path| path == Path::new("a.tar.xz")) && packed.rest.is_empty());
        let run = parse(&["--json", "out.json", "--tiny", "--help"]);
        assert!(run.archive.is_none() && run.rest == ["--json", "out.json", "--tiny", "--help"]);
    }
}
