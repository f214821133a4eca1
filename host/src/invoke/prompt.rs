//! From a checked prompt to tokens: templates are rendered, text is tokenised, off the async threads. Not here: the
//! tokenizer and the base's chat template, which are the crate `model`.

use std::collections::BTreeMap;
use std::sync::Arc;

use types::Prompt;

use crate::error::Error;
use crate::host::Host;

/// A prompt as tokens, with the bytes that a receipt commits to.
#[derive(Clone, Debug)]
pub(crate) struct Rendered {
    /// What the model is given.
    pub(crate) tokens: Vec<u32>,
    /// The rendered text, or the token ids as little-endian u32 if the caller sent ids.
    pub(crate) committed: Vec<u8>,
}

/// Renders and tokenises.
pub(crate) async fn tokenise(
    host: &Arc<Host>,
    prompt: &Prompt,
    templates: Option<&BTreeMap<String, String>>,
) -> Result<Rendered, Error> {
    let text = match prompt {
        Prompt::Tokens(tokens) => {
            let committed = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
            return Ok(Rendered { tokens: tokens.clone(), committed });
        }
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => host.base.chat_template().render(messages, true)?,
        Prompt::Template { name, arguments } => {
            let source = templates.and_then(|templates| templates.get(name));
            let source = source.ok_or_else(|| Error::Internal(format!("template `{name}` passed the check")))?;
            render(name, source, arguments)?
        }
    };
    let base = Arc::clone(&host.base);
    let tokenised = tokio::task::spawn_blocking(move || {
        let tokens = base.tokenizer().encode(&text)?;
        Ok(Rendered { tokens, committed: text.into_bytes() })
    });
    tokenised.await.map_err(|error| Error::Internal(format!("the tokenizer did not return: {error}")))?
}

/// A manifest's template with text arguments; bounded, because its writer is a stranger.
fn render(name: &str, source: &str, arguments: &[(String, String)]) -> Result<String, Error> {
    const TEMPLATE_FUEL_MAX: u64 = 100_000;
    let mut environment = minijinja::Environment::new();
    environment.set_fuel(Some(TEMPLATE_FUEL_MAX));
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    let arguments: BTreeMap<String, String> = arguments.iter().cloned().collect();
    let rendered = environment.render_str(source, arguments);
    rendered.map_err(|error| Error::invalid("template_failed", "", format!("prompt template `{name}` failed: {error}")))
}

/// Checks the syntax of a manifest's templates, before anybody is served by them.
pub(crate) fn check_templates(templates: &BTreeMap<String, String>) -> Result<(), Error> {
    let environment = minijinja::Environment::new();
    for (name, source) in templates {
        if let Err(error) = environment.template_from_str(source) {
            return Err(Error::invalid("invalid_template", "templates", format!("prompt template `{name}`: {error}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn templates_take_text_and_have_no_way_out() {
        let arguments = [("name".to_owned(), "Ada {{ 1 }}".to_owned())];
        assert_eq!(render("t", "Hello {{ name }}!", &arguments).expect("rendered"), "Hello Ada {{ 1 }}!");
        assert_eq!(render("t", "{{ other }}", &arguments).expect_err("strict").code(), "template_failed");
        let endless = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
        assert_eq!(render("t", endless, &arguments).expect_err("fuel").code(), "template_failed");
    }
}
