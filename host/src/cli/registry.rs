//! `tenon push` and `tenon pull`: components in OCI registries, and what `tenon deploy` takes from there. Not here: how a registry is
//! asked (`oci`), and where its password comes from (`credentials`).

mod credentials;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Printer, cell, items, printable, read, text};
use super::project::described;
use super::remote::{tls, upload};
use crate::adapters::SIGNATURE_BYTES_MAX;
use crate::error::Error;
use crate::oci::{
    self, COMPONENT_BYTES_MAX, Doors, NewArtefact, Pulled, Reference, SIGNATURES_MAX, Session, WasmWorld,
};

/// Components that are smaller are here before anybody looks.
const PROGRESS_BYTES_MIN: u64 = 1 << 20;
const ANNOTATIONS_MAX: usize = 64;

/// How a registry is asked.
#[derive(Debug, Args)]
pub(crate) struct RegistryArgs {
    /// User name at the registry; else what `docker login` keeps is used
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the registry's password or token from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Ask a registry on this machine over plain HTTP
    #[arg(long)]
    plain_http: bool,
    /// Certificate authorities (PEM) to trust with the registry, in place of the system's
    #[arg(long, value_name = "FILE")]
    registry_ca: Option<PathBuf>,
}

impl RegistryArgs {
    async fn session(&self, reference: &Reference, writes: bool) -> Result<Session, Failure> {
        let login = match &self.username {
            Some(username) => Some(credentials::typed(username)?),
            None => credentials::kept(reference.registry())?,
        };
        let tls = tls(!self.plain_http, self.registry_ca.as_deref())?;
        let doors = Doors::named(reference, self.plain_http, tls).await.map_err(|error| self.hint(error, reference))?;
        Ok(Session::new(doors, reference.clone(), login, writes))
    }

    /// What is asked over HTTPS on this machine, and does not speak it, mostly wants to be asked without.
    fn hint(&self, error: oci::OciError, reference: &Reference) -> Failure {
        let is_plain =
            matches!(error, oci::OciError::Unavailable { .. }) && !self.plain_http && oci::is_loopback(reference);
        if is_plain {
            let message = format!("{error}; if it speaks plain HTTP, add --plain-http");
            return Error::invalid("source_unavailable", "plain-http", message).into();
        }
        Error::from(error).into()
    }

    /// Pulls what is named, with a bar if somebody watches.
    pub(super) async fn pull(&self, reference: &Reference) -> Result<Pulled, Failure> {
        let mut session = self.session(reference, false).await?;
        let bar = ProgressBar::hidden();
        let came = |piece: u64, whole: u64| {
            if bar.length().is_none() && whole >= PROGRESS_BYTES_MIN && std::io::stderr().is_terminal() {
                let style = ProgressStyle::with_template("{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_message("pulling the component");
                bar.set_length(whole);
                bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            }
            bar.inc(piece);
        };
        let pulled = oci::pull(&mut session, &came).await;
        bar.finish_and_clear();
        pulled.map_err(|error| self.hint(error, reference))
    }
}

/// A reference in the arguments.
pub(super) fn reference(text: &str) -> Result<Reference, Failure> {
    Ok(text.parse::<Reference>().map_err(Error::from)?)
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The component, a .wasm file
    component: PathBuf,
    /// Where it goes, such as ghcr.io/acme/polite:1.0
    reference: String,
    /// A signature of the component, a Sigstore bundle as `cosign sign-blob --bundle` writes it; may be repeated
    #[arg(long = "signature", value_name = "FILE")]
    signatures: Vec<PathBuf>,
    /// A note in the manifest, such as org.opencontainers.image.source=https://…; may be repeated
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    annotations: Vec<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Pushes a component.
pub(crate) async fn push(arguments: PushArgs, printer: Printer) -> Result<(), Failure> {
    let reference = reference(&arguments.reference)?;
    let component = Bytes::from(read(&arguments.component)?);
    if component.len() as u64 > COMPONENT_BYTES_MAX {
        let message =
            format!("the component has {} bytes, more than the {COMPONENT_BYTES_MAX} that hosts take", component.len());
        return Err(Error::invalid("plugin_too_large", "component", message).into());
    }
    let described = described(&component)?;
    let names = |list| items(&described, list).filter_map(Value::as_str).map(str::to_owned).collect();
    let world = WasmWorld { exports: names("exports"), imports: names("imports") };
    let problems: Vec<&str> = items(&described, "problems").filter_map(Value::as_str).collect();
    if !printer.json {
        problems.iter().for_each(|problem| eprintln!("tenon: note: {}", printable(problem)));
    }
    let signatures = signatures(&arguments.signatures)?;
    let annotations = annotations(&arguments.annotations)?;
    let artefact = NewArtefact { component, world, annotations, signatures };
    let mut session = arguments.registry.session(&reference, true).await?;
    let body_of = |bytes: Bytes| upload(bytes.into(), "pushing the component");
    let pushed = oci::push(&mut session, &artefact, &body_of).await;
    let pushed = pushed.map_err(|error| arguments.registry.hint(error, &reference))?;
    let whole = reference.with_digest(pushed.digest).to_string();
    let done = json!({
        "reference": whole, "digest": pushed.digest.to_string(), "component_sha256": pushed.component.to_string(),
        "bytes": artefact.component.len(), "uploaded": !pushed.was_there, "signatures": artefact.signatures.len(),
        "problems": problems,
    });
    printer.result(&done, |_| format!("pushed {whole}"))
}

fn annotations(pairs: &[String]) -> Result<BTreeMap<String, String>, Error> {
    let wrong = |message: String| Error::invalid("invalid_request", "annotation", message);
    if pairs.len() > ANNOTATIONS_MAX {
        return Err(wrong(format!("at most {ANNOTATIONS_MAX} annotations")));
    }
    let parse = |pair: &String| {
        let (name, value) = pair.split_once('=').filter(|(name, _)| !name.is_empty())?;
        Some((name.to_owned(), value.to_owned()))
    };
    pairs
        .iter()
        .map(|pair| parse(pair).ok_or_else(|| wrong(format!("--annotation takes NAME=VALUE, not `{pair}`"))))
        .collect()
}

/// Reads bundles, which are looked at by whoever verifies them.
pub(super) fn signatures(files: &[PathBuf]) -> Result<Vec<Bytes>, Error> {
    let wrong = |message: String| Error::invalid("invalid_request", "signature", message);
    if files.len() > SIGNATURES_MAX {
        return Err(wrong(format!("at most {SIGNATURES_MAX} signatures")));
    }
    let bundle = |file: &PathBuf| {
        let bytes = read(file)?;
        if bytes.len() > SIGNATURE_BYTES_MAX {
            return Err(wrong(format!("{} is longer than {SIGNATURE_BYTES_MAX} bytes", file.display())));
        }
        Ok(Bytes::from(bytes))
    };
    files.iter().map(bundle).collect()
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// What is pulled, such as ghcr.io/acme/polite:1.0 or ghcr.io/acme/polite@sha256:…
    reference: String,
    /// Where it is written; else the repository's last word with .wasm, here, if there is no such file yet
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Pulls a component, and the signatures beside it.
pub(crate) async fn pull(arguments: PullArgs, printer: Printer) -> Result<(), Failure> {
    let reference = reference(&arguments.reference)?;
    let output = match arguments.output {
        Some(output) => output,
        None => free_name(&reference)?,
    };
    let pulled = arguments.registry.pull(&reference).await?;
    write(&output, &pulled.component)?;
    let mut signatures = Vec::new();
    for (index, bundle) in pulled.signatures.iter().enumerate() {
        let ending = if index == 0 { "sigstore.json".to_owned() } else { format!("{}.sigstore.json", index + 1) };
        let mut file = output.clone().into_os_string();
        file.push(format!(".{ending}"));
        let file = PathBuf::from(file);
        write(&file, bundle)?;
        signatures.push(file.display().to_string());
    }
    let done = json!({
        "reference": reference.with_digest(pulled.digest).to_string(), "digest": pulled.digest.to_string(),
        "component": output.display().to_string(), "bytes": pulled.component.len(), "signatures": signatures,
        "imports": pulled.world.imports, "exports": pulled.world.exports,
    });
    printer.result(&done, |done| {
        let mut lines = vec![
            format!("{}: {} bytes", text(done, "component"), cell(done, "bytes")),
            format!("pulled {}", text(done, "reference")),
        ];
        lines.extend(signatures.iter().map(|file| format!("signature {file}")));
        lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
    })
}

fn free_name(reference: &Reference) -> Result<PathBuf, Error> {
    let name = reference.repository().rsplit('/').next().unwrap_or("plugin");
    let file = PathBuf::from(format!("{name}.wasm"));
    if file.exists() {
        let message = format!("{} is there already; say with --output where it is to be written", file.display());
        return Err(Error::invalid("file_exists", "output", message));
    }
    Ok(file)
}

/// Whole or not at all.
fn write(file: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = || {
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(bytes)?;
        // As `cp` would leave it, and not for the owner alone.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        temporary.as_file().set_permissions(mode)?;
        temporary.persist(file).map_err(|error| error.error)
    };
    let failed = |error: std::io::Error| {
        Error::invalid("file_unwritable", "output", format!("cannot write {}: {error}", file.display()))
    };
    written().map(drop).map_err(failed)
}
