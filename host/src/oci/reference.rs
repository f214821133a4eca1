//! How an artefact is named: `REGISTRY/REPOSITORY:TAG`, with `@sha256:…` for just these bytes. Not here: whether the registry may be
//! asked (`doors`).

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

use super::OciError;

const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
const REFERENCE_BYTES_MAX: usize = 1024;
const DOCKER_HUB: &str = "docker.io";
/// Docker's hub answers there.
const DOCKER_HUB_REGISTRY: &str = "registry-1.docker.io";

/// SHA-256 of some bytes, as registries name them: `sha256:` and 64 digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digits alone.
    #[must_use]
    pub fn digits(&self) -> String {
        self.to_string().split_off("sha256:".len())
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Sha256 {
    type Err = OciError;

    fn from_str(text: &str) -> Result<Self, OciError> {
        let wrong = || OciError::Reference("a digest is `sha256:` and 64 hexadecimal digits in lower case".to_owned());
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return Err(wrong());
        }
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return Err(wrong()) };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

/// An artefact's name. There is a tag or a digest, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Sha256>,
}

impl Reference {
    /// Host and port as they are written.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Host and port that are asked.
    #[must_use]
    pub fn address(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_REGISTRY } else { &self.registry }
    }

    /// Path of the repository.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What moves.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What the manifest's bytes must have.
    #[must_use]
    pub const fn digest(&self) -> Option<Sha256> {
        self.digest
    }

    /// The same artefact by its bytes.
    #[must_use]
    pub fn with_digest(&self, digest: Sha256) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// What is asked for in the path of a manifest.
    pub(super) fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => String::new(),
        }
    }
}

impl FromStr for Reference {
    type Err = OciError;

    /// With or without `oci://` before it.
    fn from_str(text: &str) -> Result<Self, OciError> {
        let wrong = |reason: &str| Err(OciError::Reference(reason.to_owned()));
        let text = text.strip_prefix("oci://").unwrap_or(text);
        if text.len() > REFERENCE_BYTES_MAX {
            return wrong("it is longer than 1024 bytes");
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (text, None),
        };
        let Some((registry, path)) = name.split_once('/') else {
            return wrong("name the registry too, such as `ghcr.io/acme/polite:1.0`");
        };
        let is_host = registry.contains(['.', ':']) || registry == "localhost";
        if !is_host || !is_registry(registry) {
            return wrong("it begins with a registry's host, such as `ghcr.io` or `localhost:5000`");
        }
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (path, None),
        };
        if tag.is_none() && digest.is_none() {
            return wrong("say which: end it with `:TAG` or `@sha256:…`");
        }
        if tag.as_ref().is_some_and(|tag| !is_tag(tag)) {
            return wrong("a tag has 1 to 128 letters, digits, `_`, `.` and `-`, and begins with none of the last two");
        }
        let is_official = registry == DOCKER_HUB && !repository.contains('/');
        let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
        if repository.len() > REPOSITORY_BYTES_MAX || !repository.split('/').all(is_component) {
            return wrong(
                "a repository is written in lower case: letters and digits, with `.`, `_`, `-` and `/` between",
            );
        }
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// A host with or without a port, and nothing that a URL would read as something else.
fn is_registry(text: &str) -> bool {
    let is_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    let url = reqwest::Url::parse(&format!("https://{text}/"));
    text.bytes().all(is_byte) && url.is_ok_and(|url| url.has_host() && url.path() == "/" && url.username().is_empty())
}

fn is_tag(text: &str) -> bool {
    let is_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=TAG_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_byte) && !text.starts_with(['.', '-'])
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, as the specification of the distribution has it.
fn is_component(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_plain = text.bytes().next().is_some_and(is_plain) && text.bytes().last().is_some_and(is_plain);
    let mut separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends_plain
        && separators.all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_say_registry_repository_and_which() {
        let digest = Sha256::of(b"component").to_string();
        for (text, address, repository, tag) in [
            ("ghcr.io/acme/polite:1.0", "ghcr.io", "acme/polite", Some("1.0")),
            ("oci://localhost:5000/a/b_c/d--e:v_1", "localhost:5000", "a/b_c/d--e", Some("v_1")),
            ("127.0.0.1:5000/echo:latest", "127.0.0.1:5000", "echo", Some("latest")),
            ("[::1]:5000/echo:a", "[::1]:5000", "echo", Some("a")),
            ("docker.io/echo:1", "registry-1.docker.io", "library/echo", Some("1")),
            ("docker.io/acme/echo:1", "registry-1.docker.io", "acme/echo", Some("1")),
        ] {
            let reference: Reference = text.parse().expect(text);
            assert_eq!((reference.address(), reference.repository(), reference.tag()), (address, repository, tag));
            assert_eq!(reference.digest(), None, "{text}");
            assert!(text.ends_with(reference.tag().expect("a tag")) && reference.wanted() == tag.expect("a tag"));
        }
        let both: Reference = format!("ghcr.io/acme/polite:1.0@{digest}").parse().expect("both");
        assert_eq!((both.wanted(), both.to_string()), (digest.clone(), format!("ghcr.io/acme/polite:1.0@{digest}")));
        let only: Reference = format!("ghcr.io/acme/polite@{digest}").parse().expect("a digest");
        assert_eq!((only.tag(), only.wanted()), (None, digest));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let digest = Sha256::of(b"component").to_string();
        let upper = digest.to_uppercase();
        let cases = [
            "",
            "polite",
            "polite:1",
            "acme/polite:1",
            "ghcr.io/acme/polite",
            "ghcr.io/Acme/polite:1",
            "ghcr.io/:1",
            "ghcr.io//a:1",
            "ghcr.io/a/:1",
            "ghcr.io/a/../b:1",
            "ghcr.io/a..b:1",
            "ghcr.io/a:.b",
            "ghcr.io/a:b/c",
            "ghcr.io/a:",
            "user@ghcr.io/a:1",
            "ghcr.io:99999/a:1",
            "https://ghcr.io/a:1",
            "ghcr.io/a%2fb:1",
            "ghcr.io/a?b:1",
            "ghcr.io/a#b:1",
            "ghcr.io/-a:1",
            "ghcr.io/a___b:1",
            "ghcr.io/a b:1",
            "g hcr.io/a:1",
            "ghcr.io/a@sha256:12",
            "ghcr.io/a@sha512:12",
            "ghcr.io/a:1@",
        ];
        for text in cases.into_iter().map(str::to_owned).chain([format!("ghcr.io/a@{upper}")]) {
            let error = text.parse::<Reference>().expect_err(&text);
            assert_eq!(error.code(), "invalid_reference", "{text}");
        }
        assert!(format!("ghcr.io/{}:1", "a".repeat(256)).parse::<Reference>().is_err());
        assert!(format!("ghcr.io/a:{}", "b".repeat(129)).parse::<Reference>().is_err());
    }
}
