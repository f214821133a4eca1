//! Messages to prompt text, by the Jinja template in the base's metadata. Not here: tokens.
//!
//! The environment is that of transformers (`apply_chat_template`): blocks trimmed, Python's string methods, `tojson`
//! without HTML escapes, `raise_exception`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use types::Message;

use crate::gguf::Gguf;
use crate::{ModelError, Tokenizer};

/// Instructions that one rendering may take.
const FUEL: u64 = 1_000_000;
const NAME: &str = "chat";

/// The base's chat template.
pub struct ChatTemplate {
    /// Absent if the file has none.
    environment: Option<Environment<'static>>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The prompt text of these messages; with the generation prompt, it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// If the template refuses the messages or runs for too long, or the base has none.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        let environment = self.environment.as_ref().ok_or_else(|| {
            ModelError::ChatTemplate("the base has no chat template: send a prompt instead of messages".into())
        })?;
        let messages: Vec<Value> =
            messages.iter().map(|message| context! { role => &message.role, content => &message.content }).collect();
        let context = context! {
            messages,
            add_generation_prompt,
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        let rendered = environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| ModelError::ChatTemplate(error.to_string()))
    }

    pub(crate) fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Self, ModelError> {
        let text = |key| gguf.token(key).map(|id| tokenizer.token_text(id)).unwrap_or_default();
        let (bos, eos) = (text("tokenizer.ggml.bos_token_id"), text("tokenizer.ggml.eos_token_id"));
        match gguf.string("tokenizer.chat_template") {
            Ok(source) => Self::new(source, bos, eos),
            Err(_) => Ok(Self { environment: None, bos, eos }),
        }
    }

    fn new(source: &str, bos: String, eos: String) -> Result<Self, ModelError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| ModelError::Malformed(format!("chat template: {error}")))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        let added = environment.add_template_owned(NAME, source.to_owned());
        added.map_err(|error| ModelError::Malformed(format!("chat template: {error}")))?;
        Ok(Self { environment: Some(environment), bos, eos })
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps(value, ensure_ascii=False)`: minijinja's own filter, without its escapes for HTML.
fn to_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let escaped = minijinja::filters::tojson(value, indent, options)?.to_string();
    let mut text = String::with_capacity(escaped.len());
    let mut rest = escaped.as_str();
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let html = [("u003c", "<"), ("u003e", ">"), ("u0026", "&"), ("u0027", "'")];
        let found = html.into_iter().find_map(|(code, plain)| Some((plain, after.strip_prefix(code)?)));
        let (plain, after) = found.unwrap_or_else(|| {
            let escape = after.chars().next().map_or(0, char::len_utf8);
            let (escape, after) = after.split_at(escape);
            text.push('\\');
            (escape, after)
        });
        text.push_str(plain);
        rest = after;
    }
    text.push_str(rest);
    Ok(Value::from_safe_string(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, content: &str) -> Result<String, ModelError> {
        let message = Message { role: "user".into(), content: content.into() };
        ChatTemplate::new(source, "<s>".into(), "</s>".into()).unwrap().render(&[message], true)
    }

    #[test]
    fn as_transformers_would() {
        let source = "{% for m in messages %}\n  {% if m['role'] == 'user' %}\n{{ bos_token + m.content.strip() }}\n  {% endif %}\n{% endfor %}";
        assert_eq!(render(source, "  hi <b> ").unwrap(), "<s>hi <b>\n");
        assert_eq!(render("{{ messages[0] | tojson }}", "ä<").unwrap(), r#"{"role": "user", "content": "ä<"}"#);
        assert_eq!(render("{{ [1, {'a': none}] | tojson }}", "").unwrap(), r#"[1, {"a": null}]"#);
        assert_eq!(render("{{ messages[0].content | tojson }}", "\\u003c'&\"").unwrap(), r#""\\u003c'&\"""#);
        assert_eq!(render("{{ [1] | tojson(indent=2) }}", "").unwrap(), "[\n  1\n]");
    }

    #[test]
    fn refusals_and_endless_templates_are_errors() {
        assert!(
            render("{{ raise_exception('roles must alternate') }}", "").unwrap_err().to_string().contains("alternate")
        );
        assert!(
            render("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "").is_err()
        );
        assert!(ChatTemplate::new("{% for", String::new(), String::new()).is_err());
    }

    #[test]
    fn text_of_a_message_is_never_a_template() {
        assert_eq!(render("{{ messages[0].content }}", "{{ 1 + 1 }}").unwrap(), "{{ 1 + 1 }}");
    }
}
