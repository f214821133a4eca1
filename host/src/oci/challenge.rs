//! What a registry wants to see before it answers: the header `WWW-Authenticate` of RFC 9110, section 11, read as far as registries use
//! it. Not here: what is sent then (`session`).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Bytes of the header that are read.
const HEADER_BYTES_MAX: usize = 4096;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token, which `realm` gives out.
    Bearer { realm: String, service: Option<String> },
    /// User name and password.
    Basic,
}

impl Challenge {
    /// The first one that is understood; tokens before passwords.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let found: Vec<Self> = values.filter_map(Self::parse).collect();
        found.iter().find(|challenge| **challenge != Self::Basic).or_else(|| found.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() > HEADER_BYTES_MAX {
            return None;
        }
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest)?;
        let find = |wanted: &str| {
            let found = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.clone())
        };
        Some(Self::Bearer { realm: find("realm")?, service: find("service") })
    }
}

/// `name="value", name=value`; `None` if it is something else.
fn parameters(text: &str) -> Option<Vec<(&str, String)>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = after.find(',').unwrap_or(after.len());
                let (value, after) = after.split_at(end);
                (value.trim().to_owned(), after)
            }
        };
        found.push((name.trim(), value));
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    Some(found)
}

/// Up to the closing quote, and what comes after it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).expect("a header"));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_of_registries() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#;
        assert_eq!(of(&[hub]), bearer("https://auth.docker.io/token", Some("registry.docker.io")));
        assert_eq!(of(&["bearer  realm=https://a/t , Service=\"s\\\"q\""]), bearer("https://a/t", Some("s\"q")));
        assert_eq!(of(&["Basic realm=\"r\"", "Bearer realm=\"https://a/t\""]), bearer("https://a/t", None));
        assert_eq!(of(&["Basic"]), Some(Challenge::Basic));
        assert_eq!(of(&["Negotiate", "basic realm=x"]), Some(Challenge::Basic));
        for none in ["", "Negotiate abc", "Bearer", "Bearer service=\"s\"", "Bearer realm=\"open", "Bearer realm"] {
            assert_eq!(of(&[none]), None, "{none}");
        }
        assert_eq!(of(&[&format!("Bearer realm=\"{}\"", "a".repeat(5000))]), None);
    }
}
