//! A plugin's project on the developer's machine: `tenon new` writes one from a template, `tenon build` makes its component,
//! `tenon inspect` says what a component is. Only `tenon dev` talks to a host. Not here: the templates (`sdk/templates`).

mod build;
mod dev;
mod inspect;
mod sizes;
mod templates;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::failure::Failure;
use super::output::Printer;
use crate::error::Error;

pub(crate) use build::{BuildArgs, build};
pub(crate) use dev::{DevArgs, dev};
pub(super) use inspect::described;
pub(crate) use inspect::{InspectArgs, inspect};

/// Bytes of a project's name.
const NAME_BYTES_MAX: usize = 64;

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// Rust
    Rust,
    /// Python
    Python,
    /// JavaScript
    Js,
    /// TypeScript
    Ts,
    /// C
    C,
}

/// What a plugin does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum World {
    /// It decides what is generated, and what becomes of it
    Policy,
    /// It drives generations of its own
    Agent,
}

impl World {
    const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Agent => "agent",
        }
    }
}

impl Language {
    const fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Python => "python",
            Self::Js => "js",
            Self::Ts => "ts",
            Self::C => "c",
        }
    }

    /// The language of the project in this folder, by the files that its template writes.
    fn of(folder: &Path) -> Option<Self> {
        let has = |file: &str| folder.join(file).is_file();
        match () {
            () if has("Cargo.toml") => Some(Self::Rust),
            () if has("package.json") && has("tsconfig.json") => Some(Self::Ts),
            () if has("package.json") => Some(Self::Js),
            () if has("plugin.c") && has("build.py") => Some(Self::C),
            () if has("app.py") => Some(Self::Python),
            () => None,
        }
    }

    /// How the language's package tool names the SDK.
    fn sdk(self, path: Option<&Path>) -> String {
        let version = env!("CARGO_PKG_VERSION");
        match (self, path.map(Path::display)) {
            (Self::Rust, None) => format!("\"{version}\""),
            (Self::Rust, Some(path)) => format!("{{ path = \"{path}/rust\" }}"),
            (Self::Python, None) => format!("tenon-sdk[build]=={version}"),
            (Self::Python, Some(path)) => format!("tenon-sdk[build] @ file://{path}/python"),
            (Self::Js | Self::Ts, None) => version.to_owned(),
            (Self::Js | Self::Ts, Some(path)) => format!("file:{path}/js"),
            (Self::C, _) => String::new(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// The function's name: lower-case letters, digits and `-`; also the new folder's
    name: String,
    /// What it is to be written in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
    /// What it is to do
    #[arg(long, value_enum, default_value_t = World::Policy)]
    world: World,
    /// The folder `sdk` of Tenon's repository, to use in place of the published packages
    #[arg(long, value_name = "DIR", env = "TENON_SDK")]
    sdk: Option<PathBuf>,
    /// Make the folder here
    #[arg(long, value_name = "DIR", default_value = ".")]
    into: PathBuf,
}

/// Writes a project: sources, a unit test, what its tools need. Nothing that is there already is touched.
pub(crate) fn new(arguments: NewArgs, printer: Printer) -> Result<(), Failure> {
    let NewArgs { name, lang, world, sdk, into } = arguments;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.starts_with(|first: char| first.is_ascii_lowercase())
        || !name.bytes().all(allowed)
        || name.ends_with('-')
        || name.len() > NAME_BYTES_MAX
    {
        let message = format!(
            "`{name}` is no name for a project: begin with a lower-case letter, go on with these, digits and `-`, at most 64"
        );
        return Err(Error::invalid("invalid_request", "name", message).into());
    }
    let files = templates::of(lang, world).ok_or_else(|| {
        let message = "there is no template of an agent in C: take --lang rust, python, js or ts";
        Error::invalid("invalid_request", "world", message.to_owned())
    })?;
    let sdk = sdk.map(|sdk| sdk_folder(&sdk)).transpose()?;
    let folder = into.join(&name);
    std::fs::create_dir_all(&into).map_err(Error::io(format!("cannot make {}", into.display())))?;
    // Fails if it is there: what is in it is somebody's work.
    std::fs::create_dir(&folder).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let message = format!("{} is there already: choose another name, or another --into", folder.display());
            Error::invalid("conflict", "name", message)
        }
        _ => Error::io(format!("cannot make {}", folder.display()))(error),
    })?;
    let filled = |text: &str| text.replace("{{name}}", &name).replace("{{sdk}}", &lang.sdk(sdk.as_deref()));
    for (file, text) in &files {
        let path = folder.join(file);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = written.and_then(|()| std::fs::write(&path, filled(text)));
        written.map_err(Error::io(format!("cannot write {}", path.display())))?;
    }
    let names: Vec<&str> = files.iter().map(|(file, _)| *file).collect();
    let made = json!({
        "name": name, "language": lang.name(), "world": world.name(), "folder": folder.display().to_string(), "files": names,
    });
    printer.result(&made, |_| {
        let folder = folder.display();
        let (what, manifest) = match world {
            World::Policy => ("a plugin", String::new()),
            World::Agent => ("an agent", format!(" --manifest {folder}/manifest.json")),
        };
        format!(
            "{folder}: {what} in {}, {} files; README.md says how to test it\n\
             tenon build {folder} && tenon deploy {name} --plugin {folder}/plugin.wasm{manifest} && tenon invoke {name} \"hello\"",
            lang.name(),
            names.len(),
        )
    })
}

fn sdk_folder(sdk: &Path) -> Result<PathBuf, Error> {
    let found = sdk.canonicalize().ok().filter(|sdk| sdk.join("rust").is_dir() && sdk.join("templates").is_dir());
    let message = || format!("{} is not the folder `sdk` of Tenon's repository", sdk.display());
    let found = found.ok_or_else(|| Error::invalid("invalid_request", "sdk", message()))?;
    // It is written into files of several formats, unquoted in some.
    let is_plain = found.to_str().is_some_and(|path| {
        path.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-' | b'+'))
    });
    if is_plain {
        return Ok(found);
    }
    let message =
        format!("the path {} has characters that package tools read differently: use another", found.display());
    Err(Error::invalid("invalid_request", "sdk", message))
}
