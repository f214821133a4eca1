//! Where a registry's user name and password come from: standard input, or what `docker login` (and `podman`, `oras`, `cosign`) keeps in
//! `config.json`, in itself or through a credential helper. Not here: to whom they are sent (`oci/session`).

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::oci::Login;

const PASSWORD_BYTES_MAX: u64 = 64 << 10;
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Docker's hub, as `config.json` calls it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// What a helper answers with where a token takes the place of a password.
const TOKEN_USERNAME: &str = "<token>";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: std::collections::BTreeMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: std::collections::BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: Zeroizing<String>,
}

fn wrong(message: String) -> Error {
    Error::invalid("invalid_credentials", "username", message)
}

/// With the password on standard input.
pub(super) fn typed(username: &str) -> Result<Login, Error> {
    let mut password = Zeroizing::new(String::new());
    let read = std::io::stdin().lock().take(PASSWORD_BYTES_MAX).read_to_string(&mut password);
    read.map_err(|error| wrong(format!("cannot read the password from standard input: {error}")))?;
    let password = Zeroizing::new(password.trim_end_matches(['\r', '\n']).to_owned());
    if password.is_empty() {
        return Err(wrong("there is no password on standard input".to_owned()));
    }
    Ok(Login { username: username.to_owned(), password })
}

/// What is kept for a registry; `None` if nothing is.
pub(super) fn kept(registry: &str) -> Result<Option<Login>, Error> {
    let folder = variable("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".docker")));
    let Some(file) = folder.map(|folder| folder.join("config.json")) else { return Ok(None) };
    let Ok(opened) = std::fs::File::open(&file) else { return Ok(None) };
    let mut bytes = Zeroizing::new(Vec::new());
    let read = opened.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|error| wrong(format!("cannot read {}: {error}", file.display())))?;
    let config: DockerConfig = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("{} is not what `docker login` writes: {error}", file.display())))?;
    config.login(registry)
}

impl DockerConfig {
    /// A helper that is named for the registry, then what is written down, then the helper for all.
    fn login(&self, registry: &str) -> Result<Option<Login>, Error> {
        if let Some(helper) = self.helpers.get(registry) {
            return ask(helper, key(registry));
        }
        let auth = self.auths.iter().find(|(name, _)| is_of(name, registry)).map(|(_, auth)| auth);
        match auth.map(|auth| auth.login(registry)).transpose()?.flatten() {
            Some(login) => Ok(Some(login)),
            None => self.store.as_deref().map_or(Ok(None), |helper| ask(helper, key(registry))),
        }
    }
}

impl Auth {
    /// `None` where `config.json` only notes that a helper has it.
    fn login(&self, registry: &str) -> Result<Option<Login>, Error> {
        if self.identitytoken.as_ref().is_some_and(|token| !token.is_empty()) {
            let message = "has an identity token, which is not known here; give --username and --password-stdin";
            return Err(wrong(format!("config.json for `{registry}` {message}")));
        }
        if let Some(auth) = self.auth.as_deref().filter(|auth| !auth.is_empty()) {
            let broken = || wrong(format!("config.json has no user name and password in `auth` for `{registry}`"));
            let decoded = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).map_err(|_| broken())?;
            let decoded = Zeroizing::new(String::from_utf8(decoded).map_err(|_| broken())?);
            let (username, password) = decoded.split_once(':').ok_or_else(broken)?;
            let password = Zeroizing::new(password.trim_end_matches('\0').to_owned());
            return Ok(Some(Login { username: username.to_owned(), password }));
        }
        let (Some(username), Some(password)) = (&self.username, &self.password) else { return Ok(None) };
        Ok(Some(Login { username: username.clone(), password: Zeroizing::new(password.clone()) }))
    }
}

/// The name of a registry to a helper.
fn key(registry: &str) -> &str {
    if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry }
}

/// Whether an entry is the registry's: written as a host, or as a URL.
fn is_of(name: &str, registry: &str) -> bool {
    let host = name.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    let is_hub = registry == DOCKER_HUB && host == "index.docker.io";
    host == registry || is_hub
}

/// Asks `docker-credential-NAME get`, which answers with JSON.
fn ask(helper: &str, registry: &str) -> Result<Option<Login>, Error> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if helper.is_empty() || !helper.bytes().all(is_name) {
        return Err(wrong(format!("config.json names a credential helper `{helper}`, which is no name")));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |error: std::io::Error| wrong(format!("cannot run `{program}`, which config.json names: {error}"));
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read answers all the same.
        let _unread = input.write_all(registry.as_bytes());
    }
    let mut answer = Zeroizing::new(Vec::new());
    if let Some(output) = child.stdout.take() {
        output.take(PASSWORD_BYTES_MAX).read_to_end(&mut answer).map_err(failed)?;
    }
    if !child.wait().map_err(failed)?.success() {
        // It has nothing for this registry, which is no mistake: many are read by everybody.
        return Ok(None);
    }
    let found: Helped = serde_json::from_slice(&answer)
        .map_err(|_| wrong(format!("`{program}` answers with something else than JSON")))?;
    if found.username == TOKEN_USERNAME {
        let message = "has an identity token, which is not known here; give --username and --password-stdin";
        return Err(wrong(format!("`{program}` {message}")));
    }
    Ok((!found.secret.is_empty()).then_some(Login { username: found.username, password: found.secret }))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(config: &str, registry: &str) -> Result<Option<(String, String)>, Error> {
        let config: DockerConfig = serde_json::from_str(config).expect("JSON");
        let login = config.login(registry)?;
        Ok(login.map(|login| (login.username, login.password.to_string())))
    }

    #[test]
    fn what_docker_login_keeps_is_found() {
        // `ann:se:cret`, and the same without padding.
        let config = r#"{"auths": {"ghcr.io": {"auth": "YW5uOnNlOmNyZXQ="}, "https://index.docker.io/v1/": {"auth": "YW5uOnNlOmNyZXQ"},
            "http://localhost:5000/v2/": {"username": "bob", "password": "p"}, "quay.io": {}}, "HttpHeaders": {}}"#;
        let ann = Some(("ann".to_owned(), "se:cret".to_owned()));
        assert_eq!(login(config, "ghcr.io").expect("found"), ann);
        assert_eq!(login(config, "docker.io").expect("found"), ann);
        assert_eq!(login(config, "localhost:5000").expect("found"), Some(("bob".to_owned(), "p".to_owned())));
        for other in
            ["quay.io", "evil-ghcr.io", "ghcr.io.evil.net", "localhost", "localhost:50001", "index.docker.io:444"]
        {
            assert_eq!(login(config, other).expect("nothing is wrong"), None, "{other}");
        }
        assert_eq!(login("{}", "ghcr.io").expect("nothing is wrong"), None);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        for config in [
            r#"{"auths": {"ghcr.io": {"auth": "***"}}}"#,
            r#"{"auths": {"ghcr.io": {"auth": "YW5u"}}}"#,
            r#"{"auths": {"ghcr.io": {"identitytoken": "t"}}}"#,
            r#"{"credHelpers": {"ghcr.io": "../../bin/sh"}}"#,
            r#"{"credsStore": "there-is-no-such-helper-of-tenon"}"#,
        ] {
            let error = login(config, "ghcr.io").expect_err(config);
            assert_eq!(error.code(), "invalid_credentials", "{config}");
        }
    }
}
