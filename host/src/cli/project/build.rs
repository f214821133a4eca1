//! `tenon build`: runs the language's own tools in a project's folder, installs what they need into it, and checks the component
//! that they made. Not here: what the tools do.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::Value;
use wit_component::ComponentEncoder;

use super::Language;
use super::inspect::{self, described};
use crate::cli::failure::Failure;
use crate::cli::output::{Printer, read, read_text};
use crate::error::Error;

const RUST_TARGET: &str = "wasm32-unknown-unknown";
/// In the folder that a package tool fills: what it was filled for.
const STAMP: &str = ".tenon-installed";

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Where to write the component; `plugin.wasm` in the folder by default
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Builds a project's component.
pub(crate) fn build(arguments: BuildArgs, printer: Printer) -> Result<(), Failure> {
    let built = component(&arguments.folder, arguments.output.as_deref())?;
    printer.result(&built, inspect::text)
}

/// Builds it; what [`inspect`](super::inspect) says of it, with its path and language.
pub(crate) fn component(folder: &Path, output: Option<&Path>) -> Result<Value, Error> {
    let Some(language) = Language::of(folder) else {
        let message = format!("{} is no plugin's project: `tenon new` makes one", folder.display());
        return Err(Error::invalid("invalid_request", "folder", message));
    };
    let folder = folder.canonicalize().map_err(Error::io(format!("cannot open {}", folder.display())))?;
    let output = match output {
        Some(output) => std::path::absolute(output).map_err(Error::io("cannot find the working folder"))?,
        None => folder.join("plugin.wasm"),
    };
    match language {
        Language::Rust => rust(&folder, &output)?,
        Language::Python => {
            let python = virtual_environment(&folder)?;
            let arguments: [&OsStr; 6] = [
                "-m".as_ref(),
                "tenon_sdk".as_ref(),
                "build".as_ref(),
                "app.py".as_ref(),
                "-o".as_ref(),
                output.as_ref(),
            ];
            run(&folder, &python, &arguments, "its message says what is wrong with app.py")?;
        }
        Language::Js | Language::Ts => node(&folder, language, &output)?,
        Language::C => {
            let python = virtual_environment(&folder)?;
            let arguments: [&OsStr; 4] = ["build.py".as_ref(), "plugin.c".as_ref(), "-o".as_ref(), output.as_ref()];
            run(&folder, &python, &arguments, "README.md says which tools it needs")?;
        }
    }
    let mut built = described(&read(&output)?)?;
    if let Some(fields) = built.as_object_mut() {
        fields.insert("component".into(), output.display().to_string().into());
        fields.insert("language".into(), language.name().into());
    }
    Ok(built)
}

fn rust(folder: &Path, output: &Path) -> Result<(), Error> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = command(folder, &program);
    command.args(["build", "--release", "--target", RUST_TARGET, "--message-format", "json-render-diagnostics"]);
    let advice = "if the target is missing: `rustup target add wasm32-unknown-unknown`";
    let done = command.stdout(Stdio::piped()).output().map_err(|error| no_program(&program, &error))?;
    if !done.status.success() {
        return Err(failed(&program, advice));
    }
    let messages = String::from_utf8_lossy(&done.stdout);
    let mut modules = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let files = message.get("filenames")?.as_array()?.clone();
        files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".wasm")).map(PathBuf::from)
    });
    let module = modules.next_back().ok_or_else(|| {
        let message = "cargo made no module: Cargo.toml needs `crate-type = [\"cdylib\"]`";
        Error::invalid("build_failed", "", message)
    })?;
    let encoded =
        ComponentEncoder::default().validate(true).module(&read(&module)?).and_then(|mut encoder| encoder.encode());
    let component = encoded
        .map_err(|error| Error::invalid("build_failed", "", format!("no component of this module: {error:#}")))?;
    write(output, &component)
}

fn node(folder: &Path, language: Language, output: &Path) -> Result<(), Error> {
    install(folder, "package.json", "node_modules", || {
        run(folder, "npm", &["install".as_ref()], "npm must reach its registry; `tenon new --sdk` uses a local SDK")
    })?;
    let source = if language == Language::Ts { "src/plugin.ts" } else { "src/plugin.js" };
    let arguments: [&OsStr; 6] =
        ["exec".as_ref(), "--".as_ref(), "tenon-sdk".as_ref(), "build".as_ref(), source.as_ref(), "-o".as_ref()];
    let arguments: Vec<&OsStr> = arguments.into_iter().chain([output.as_os_str()]).collect();
    run(folder, "npm", &arguments, "its message says what is wrong with the source")
}

/// The interpreter of the project's own environment, made and filled if it is not there.
fn virtual_environment(folder: &Path) -> Result<OsString, Error> {
    let python = folder.join(".venv").join("bin").join("python").into_os_string();
    install(folder, "requirements.txt", ".venv", || {
        let advice = "Python 3.11 with venv is needed";
        run(folder, "python3", &["-m".as_ref(), "venv".as_ref(), ".venv".as_ref()], advice)?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"];
        let advice = "pip must reach its registry; `tenon new --sdk` uses a local SDK";
        run(folder, &python, &pip.map(OsStr::new), advice)
    })?;
    Ok(python)
}

/// Fills a folder unless it was filled for the same list of packages.
fn install(folder: &Path, list: &str, filled: &str, fill: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
    let wanted = read_text(&folder.join(list))?;
    let stamp = folder.join(filled).join(STAMP);
    if std::fs::read_to_string(&stamp).is_ok_and(|of| of == wanted) {
        return Ok(());
    }
    eprintln!("tenon: installing what {list} names into {filled}");
    fill()?;
    write(&stamp, wanted.as_bytes())
}

/// What a tool says goes to standard error: standard output is this command's own.
fn command(folder: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

fn run(folder: &Path, program: impl AsRef<OsStr>, arguments: &[&OsStr], advice: &str) -> Result<(), Error> {
    let program = program.as_ref();
    let mut command = command(folder, program);
    command.args(arguments).stdout(std::io::stderr());
    let status = command.status().map_err(|error| no_program(program, &error))?;
    if status.success() { Ok(()) } else { Err(failed(program, advice)) }
}

fn failed(program: &OsStr, advice: &str) -> Error {
    let message = format!("{} failed (what it said is above); {advice}", program.to_string_lossy());
    Error::invalid("build_failed", "", message)
}

fn no_program(program: &OsStr, error: &std::io::Error) -> Error {
    let program = program.to_string_lossy();
    match error.kind() {
        ErrorKind::NotFound => {
            Error::invalid("build_failed", "", format!("there is no `{program}` on this machine: install it"))
        }
        _ => Error::invalid("build_failed", "", format!("`{program}` could not be started: {error}")),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    std::fs::write(path, bytes).map_err(Error::io(format!("cannot write {}", path.display())))
}
