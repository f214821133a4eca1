//! Messages to prompt text, by the base's Jinja template. Not here: tokens.
//!
//! The environment is that of transformers (`apply_chat_template`): blocks trimmed, Python's string methods, `tojson`
//! without HTML escapes, `raise_exception`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use types::{Chat, ChatMessage, ToolCall};

use crate::gguf::Gguf;
use crate::{ModelError, Tokenizer};

/// Instructions that one rendering may take.
const FUEL: u64 = 1_000_000;
const NAME: &str = "chat";

/// The base's chat template.
pub struct ChatTemplate {
    /// Absent if the file has none.
    environment: Option<Environment<'static>>,
    /// Whether it has a place for tools, and for calls of them.
    takes_tools: bool,
    takes_tool_calls: bool,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The prompt text of this conversation; with the generation prompt, it ends where the assistant's answer begins.
    ///
    /// Tools and calls have the shapes that transformers gives its templates: arguments are an object, not text, and what
    /// a message does not have is not defined.
    ///
    /// # Errors
    /// If the template refuses the messages, has no place for the tools or calls in them, or runs for too long, or the base
    /// has none.
    pub fn render(&self, chat: &Chat, add_generation_prompt: bool) -> Result<String, ModelError> {
        let environment = self.environment.as_ref().ok_or_else(|| {
            ModelError::ChatTemplate("the base has no chat template: send a prompt instead of messages".into())
        })?;
        if !self.takes_tools && !chat.tools.is_empty() {
            return Err(ModelError::ChatTemplateLacks("tools"));
        }
        if !self.takes_tool_calls && chat.messages.iter().any(|message| !message.tool_calls.is_empty()) {
            return Err(ModelError::ChatTemplateLacks("tool_calls"));
        }
        let messages = chat.messages.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        let tools = chat.tools.iter().map(|tool| json(tool)).collect::<Result<Vec<_>, _>>()?;
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(tools) };
        let context = context! {
            messages,
            tools,
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
        Self::from_source(gguf.string("tokenizer.chat_template").ok(), bos, eos)
    }

    /// Of a template's source, if the base has one, and the texts of the tokens that it may write.
    pub(crate) fn from_source(source: Option<&str>, bos: String, eos: String) -> Result<Self, ModelError> {
        match source {
            Some(source) => Self::new(source, bos, eos),
            None => Ok(Self { environment: None, takes_tools: false, takes_tool_calls: false, bos, eos }),
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
        let (takes_tools, takes_tool_calls) = (mentions(source, "tools"), mentions(source, "tool_calls"));
        Ok(Self { environment: Some(environment), takes_tools, takes_tool_calls, bos, eos })
    }
}

/// One turn, with the members that it has and no others.
fn message(message: &ChatMessage) -> Result<Value, ModelError> {
    let mut members = vec![("role", Value::from(&message.role)), ("content", Value::from(&message.content))];
    members.extend(message.name.as_ref().map(|name| ("name", Value::from(name))));
    members.extend(message.tool_call_id.as_ref().map(|id| ("tool_call_id", Value::from(id))));
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(tool_call).collect::<Result<Vec<_>, _>>()?;
        members.push(("tool_calls", Value::from(calls)));
    }
    Ok(Value::from_pairs(members))
}

fn tool_call(call: &ToolCall) -> Result<Value, ModelError> {
    let function = context! { name => &call.name, arguments => json(&call.arguments)? };
    Ok(context! { id => &call.id, type => "function", function })
}

/// Members keep their order: the model sees it.
fn json(text: &str) -> Result<Value, ModelError> {
    serde_json::from_str(text).map_err(|error| ModelError::ChatTemplate(format!("a tool is not JSON: {error}")))
}

/// Whether a template names this variable or member anywhere.
fn mentions(source: &str, name: &str) -> bool {
    let is_part = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    source.match_indices(name).any(|(at, _)| {
        let (before, after) = (source.get(..at).unwrap_or_default(), source.get(at + name.len()..).unwrap_or_default());
        !is_part(before.chars().next_back()) && !is_part(after.chars().next())
    })
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
        let message = ChatMessage { role: "user".into(), content: content.into(), ..ChatMessage::default() };
        render_chat(source, &Chat { messages: vec![message], tools: Vec::new() })
    }

    fn render_chat(source: &str, chat: &Chat) -> Result<String, ModelError> {
        ChatTemplate::new(source, "<s>".into(), "</s>".into()).unwrap().render(chat, true)
    }

    /// Someone asked for the weather, the assistant called a tool, and the tool answered.
    fn weather() -> Chat {
        let turn = |role: &str, content: &str| ChatMessage {
            role: role.into(),
            content: content.into(),
            ..ChatMessage::default()
        };
        let arguments = r#"{"unit": "C", "city": "Oslo"}"#.to_owned();
        let call = ToolCall { id: "call_1".into(), name: "weather".into(), arguments };
        let answer =
            ChatMessage { tool_call_id: Some("call_1".into()), name: Some("weather".into()), ..turn("tool", "4") };
        let tool = r#"{"type": "function", "function": {"name": "weather", "description": "<b>", "a": 1}}"#;
        Chat {
            messages: vec![
                turn("user", "cold?"),
                ChatMessage { tool_calls: vec![call], ..turn("assistant", "") },
                answer,
            ],
            tools: vec![tool.into()],
        }
    }

    /// In the manner of Hermes and Qwen.
    const TOOL_TEMPLATE: &str = "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}
{% for m in messages %}[{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}{% if m.tool_call_id is defined %} {{ m.tool_call_id }}{% endif %}] {{ m.content }}{% if m.tool_calls is defined %}{% for call in m.tool_calls %}{{ call.type }} {{ call.id }} {{ call.function.name }} {{ call.function.arguments.city }} {{ call.function.arguments | tojson }}{% endfor %}{% endif %};{% endfor %}";

    #[test]
    fn tools_and_calls_reach_the_template_as_transformers_gives_them() {
        let expected = r#"<tools>{"type": "function", "function": {"name": "weather", "description": "<b>", "a": 1}}</tools>[user] cold?;[assistant] function call_1 weather Oslo {"unit": "C", "city": "Oslo"};[tool weather call_1] 4;"#;
        assert_eq!(render_chat(TOOL_TEMPLATE, &weather()).unwrap(), expected);
        assert_eq!(render(TOOL_TEMPLATE, "hi").unwrap(), "[user] hi;");
        assert_eq!(render("{{ tools is none }}{{ messages[0].tool_calls is defined }}", "hi").unwrap(), "TrueFalse");
    }

    #[test]
    fn tools_without_a_place_for_them_are_refused() {
        let plain = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}";
        let error = render_chat(plain, &weather()).unwrap_err();
        assert!(error.code() == "unsupported" && error.to_string().contains("tools"), "{error}");
        let no_tools = Chat { tools: Vec::new(), ..weather() };
        let error = render_chat(plain, &no_tools).unwrap_err();
        assert!(error.code() == "unsupported" && error.to_string().contains("tool_calls"), "{error}");
        // Other words that contain it are no place for it.
        assert!(render_chat("{{ builtin_tools }}{{ tool_calls }}", &weather()).is_err());
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
