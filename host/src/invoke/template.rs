//! Prompt templates of a manifest: text in which `{{ name }}` stands for an argument of the plan, and nothing more. Their
//! writer is a stranger: with a whole language behind them, one long expression ended the process, and a short one could
//! fill its memory. Not here: the base's chat template, which is the operator's (crate `model`).

use std::collections::BTreeMap;

use types::PlanError;

use crate::error::Error;

/// Bytes of an argument's name.
const NAME_BYTES_MAX: usize = 64;

#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Argument(&'a str),
}

/// Checks the syntax of a manifest's templates, before anybody is served by them.
pub(crate) fn check_templates(templates: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, source) in templates {
        let invalid = |reason| {
            let name: String = name.chars().take(NAME_BYTES_MAX).collect();
            Error::invalid("invalid_template", "templates", format!("prompt template `{name}`: {reason}"))
        };
        parse(source).map_err(invalid)?;
    }
    Ok(())
}

/// The template with its arguments, at most `bytes_max` long.
pub(super) fn render(source: &str, arguments: &[(String, String)], bytes_max: usize) -> Result<String, Error> {
    let parts = parse(source).map_err(|reason| Error::Internal(format!("a template passed the check: {reason}")))?;
    let arguments: BTreeMap<&str, &str> = arguments.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut out = String::new();
    for part in parts {
        let text = match part {
            Part::Text(text) => text,
            Part::Argument(name) => arguments.get(name).copied().ok_or_else(|| missing(name))?,
        };
        let bytes = out.len().saturating_add(text.len());
        if bytes > bytes_max {
            return Err(too_long(bytes, bytes_max));
        }
        out.push_str(text);
    }
    Ok(out)
}

fn parse(source: &str) -> Result<Vec<Part<'_>>, &'static str> {
    let (mut parts, mut rest) = (Vec::new(), source);
    while let Some((text, mark, after)) = next_mark(rest) {
        if mark != "{{" {
            return Err("`{%` and `{#` are not supported: write text and `{{ name }}`");
        }
        let (name, after) = after.split_once("}}").ok_or("a `{{` without its `}}`")?;
        let name = name.trim();
        if !is_name(name) {
            return Err(
                "between `{{` and `}}` goes the name of an argument: a-z A-Z 0-9 _, not beginning with a digit",
            );
        }
        parts.extend([Part::Text(text), Part::Argument(name)]);
        rest = after;
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

/// The text before the next mark, the mark, and what follows it. Every byte is looked at once.
fn next_mark(source: &str) -> Option<(&str, &str, &str)> {
    let is_mark = |at: usize| matches!(source.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
    let (at, _) = source.match_indices('{').find(|(at, _)| is_mark(*at))?;
    let (text, rest) = source.split_at_checked(at)?;
    let (mark, after) = rest.split_at_checked(2)?;
    Some((text, mark, after))
}

fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.len() <= NAME_BYTES_MAX
        && name.bytes().next().is_some_and(is_letter)
        && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
}

fn missing(name: &str) -> Error {
    let source = PlanError::OutOfRange {
        what: "a template argument",
        value: format!("missing, `{name}`"),
        expected: "give every name that the template uses",
    };
    Error::Plan { source, by_caller: false }
}

fn too_long(bytes: usize, bytes_max: usize) -> Error {
    let source = PlanError::OverLimit {
        what: "the rendered prompt's length in bytes",
        value: bytes.to_string(),
        limit: "prompt_bytes_max",
        max: bytes_max.to_string(),
    };
    Error::Plan { source, by_caller: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render_with(source: &str, arguments: &[(&str, &str)]) -> Result<String, &'static str> {
        let arguments: Vec<_> = arguments.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        render(source, &arguments, 64).map_err(|error| match error.code() {
            "invalid_plan" => "invalid_plan",
            "limit_exceeded" => "limit_exceeded",
            _ => "other",
        })
    }

    #[test]
    fn arguments_are_put_in_as_they_are() {
        let ada = [("name", "Ada {{ 1 }}")];
        assert_eq!(
            render_with("Hello {{ name }}! {{name}} {\"a\": {}}}", &ada),
            Ok("Hello Ada {{ 1 }}! Ada {{ 1 }} {\"a\": {}}}".into())
        );
        assert_eq!(render_with("", &ada), Ok(String::new()));
        assert_eq!(render_with("é{{ name }}é", &[("name", "ö")]), Ok("éöé".into()));
        assert_eq!(render_with("{{ other }}", &ada), Err("invalid_plan"));
    }

    #[test]
    fn what_comes_out_is_bounded() {
        let long = "x".repeat(40);
        assert_eq!(render_with("{{ a }}", &[("a", &long)]), Ok(long.clone()));
        assert_eq!(render_with("{{ a }}{{ a }}", &[("a", &long)]), Err("limit_exceeded"));
    }

    #[test]
    fn there_is_no_language_behind_it() {
        let check = |source: &str| {
            let templates = BTreeMap::from([("t".to_owned(), source.to_owned())]);
            check_templates(&templates).map_err(|error| error.code().to_owned())
        };
        assert_eq!(check("text, {{ a }} and {{b_2}}"), Ok(()));
        for source in
            ["{{ a | upper }}", "{{ 'a' * 1000000000 }}", "{% for a in b %}", "{# c #}", "{{ a", "{{ }}", "{{ 2a }}"]
        {
            assert_eq!(check(source), Err("invalid_template".into()), "{source}");
        }
        // These ended the whole process: the parser of the language that was here before has no limit on its own depth.
        for unit in ["-", "not ", "(", "["] {
            assert_eq!(check(&format!("{{{{ {}1 }}}}", unit.repeat(50_000))), Err("invalid_template".into()), "{unit}");
        }
    }
}
