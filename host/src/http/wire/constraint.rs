//! The fields that say what an answer must match: OpenAI's `response_format`, as LoRAX has it too, and vLLM's
//! `structured_outputs` and `guided_*`. Not here: whether that can be done.

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use types::Constraint;
use utoipa::ToSchema;

use super::refused::{Asks, unsupported};
use crate::error::Error;

/// Any JSON object.
const ANY_OBJECT: &str = r#"{"type": "object"}"#;

/// A JSON schema as its text: as a value it would take twenty times the memory, for as long as the request lives.
#[derive(Clone, Debug)]
struct SchemaText(String);

impl<'de> Deserialize<'de> for SchemaText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Value::deserialize(deserializer)? {
            // vLLM takes both.
            Value::String(text) => text,
            schema => schema.to_string(),
        }))
    }
}

/// The form of the answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(expecting = "response_format: expected an object")]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(default, rename = "type")]
    kind: String,
    /// Of `json_schema`.
    json_schema: Option<NamedSchema>,
    /// Of `json_object`, as LoRAX has it: any object without one.
    #[schema(value_type = Option<Object>)]
    schema: Option<SchemaText>,
}

/// A schema as OpenAI's clients send it; its name and description are not told to the model.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(expecting = "response_format.json_schema: expected an object")]
struct NamedSchema {
    /// A JSON schema. The answer is always kept to it, whatever `strict` says.
    #[schema(value_type = Option<Object>)]
    schema: Option<SchemaText>,
}

impl ResponseFormat {
    /// What the answer must match, if it is not plain text.
    pub(crate) fn constraint(&self) -> Result<Option<Constraint>, Error> {
        let schema = match self.kind.as_str() {
            "text" => return Ok(None),
            "json_object" => self.schema.as_ref().map_or(ANY_OBJECT, |schema| &schema.0),
            "json_schema" => {
                let schema = self.json_schema.as_ref().and_then(|named| named.schema.as_ref());
                let message = "response_format.json_schema.schema is missing: send a JSON schema";
                &schema.ok_or_else(|| Error::invalid("invalid_request", "response_format", message))?.0
            }
            _ => {
                let message = "response_format.type is text, json_object or json_schema";
                return Err(Error::invalid("unsupported", "response_format", message));
            }
        };
        Ok(Some(Constraint::JsonSchema(schema.to_owned())))
    }
}

/// vLLM's, since 0.11: one of its members.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(expecting = "structured_outputs: expected an object")]
struct StructuredOutputs {
    /// A JSON schema, or its text.
    #[schema(value_type = Option<Object>)]
    json: Option<SchemaText>,
    regex: Option<String>,
    /// One of these texts.
    choice: Option<Vec<String>>,
    /// In Lark's syntax.
    grammar: Option<String>,
    /// Any JSON object.
    json_object: Option<bool>,
    #[serde(default)]
    #[schema(ignore)]
    structural_tag: Asks,
    #[serde(default)]
    #[schema(ignore)]
    whitespace_pattern: Asks,
    #[serde(default)]
    #[schema(ignore)]
    disable_any_whitespace: Asks,
    #[serde(default)]
    #[schema(ignore)]
    disable_additional_properties: Asks,
}

/// Every field of OpenAI's routes that says what an answer must match; one of them may.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct ConstraintFields {
    response_format: Option<ResponseFormat>,
    structured_outputs: Option<StructuredOutputs>,
    /// vLLM's: a JSON schema, or its text.
    #[schema(value_type = Option<Object>)]
    guided_json: Option<SchemaText>,
    /// vLLM's.
    guided_regex: Option<String>,
    /// vLLM's: one of these texts.
    guided_choice: Option<Vec<String>>,
    /// vLLM's: in Lark's syntax.
    guided_grammar: Option<String>,
}

impl ConstraintFields {
    /// What the answer must match, if anything.
    pub(crate) fn constraint(&self) -> Result<Option<Constraint>, Error> {
        let format = self.response_format.as_ref().map(ResponseFormat::constraint).transpose()?.flatten();
        let mut found: Vec<(&str, Constraint)> = format.map(|format| ("response_format", format)).into_iter().collect();
        let named = self.structured_outputs.clone().unwrap_or_default();
        let refused = [
            ("structured_outputs.structural_tag", named.structural_tag),
            ("structured_outputs.whitespace_pattern", named.whitespace_pattern),
            ("structured_outputs.disable_any_whitespace", named.disable_any_whitespace),
            ("structured_outputs.disable_additional_properties", named.disable_additional_properties),
        ];
        if let Some((field, _)) = refused.into_iter().find(|(_, asks)| asks.any()) {
            return Err(unsupported(field));
        }
        for (field, json, regex, choice, grammar) in [
            ("structured_outputs", &named.json, &named.regex, &named.choice, &named.grammar),
            ("guided_json", &self.guided_json, &None, &None, &None),
            ("guided_regex", &None, &self.guided_regex, &None, &None),
            ("guided_choice", &None, &None, &self.guided_choice, &None),
            ("guided_grammar", &None, &None, &None, &self.guided_grammar),
        ] {
            let json = json.clone().map(|schema| Constraint::JsonSchema(schema.0));
            let choice = choice.as_ref().map(|choices| one_of(field, choices)).transpose()?;
            let all = [json, regex.clone().map(Constraint::Regex), choice, grammar.clone().map(Constraint::Grammar)];
            found.extend(all.into_iter().flatten().map(|constraint| (field, constraint)));
        }
        if named.json_object == Some(true) {
            found.push(("structured_outputs", Constraint::JsonSchema(ANY_OBJECT.into())));
        }
        if let [_, (field, _), ..] = &found[..] {
            let message = format!("{field} is not the only field that says what the answer must match: send one");
            return Err(Error::invalid("invalid_request", field, message));
        }
        Ok(found.pop().map(|(_, constraint)| constraint))
    }

    /// Whether any of them asks for something.
    pub(crate) fn asks(&self) -> bool {
        !matches!(self.constraint(), Ok(None))
    }
}

/// A grammar of which these are the only texts.
fn one_of(field: &str, choices: &[String]) -> Result<Constraint, Error> {
    if choices.is_empty() {
        return Err(Error::invalid("invalid_request", field, "there is no choice: send at least one text"));
    }
    // Lark writes texts as JSON does.
    let choices: Vec<String> = choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
    Ok(Constraint::Grammar(format!("start: {}", choices.join(" | "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> Result<Option<Constraint>, (String, String)> {
        let fields: ConstraintFields = serde_json::from_str(fields).expect("read");
        let told = |error: Error| (error.code().to_owned(), error.param().unwrap_or_default().to_owned());
        assert_eq!(
            fields.asks(),
            fields.constraint().is_ok_and(|found| found.is_some()) || fields.constraint().is_err()
        );
        fields.constraint().map_err(told)
    }

    #[test]
    fn each_field_is_read_and_one_at_a_time() {
        let schema = |text: &str| Some(Constraint::JsonSchema(text.into()));
        let object = schema(ANY_OBJECT);
        let named = r#"{"type":"object","properties":{"b":{},"a":{"const":1.0}}}"#;
        for (fields, expected) in [
            ("{}".to_owned(), None),
            (r#"{"response_format": null, "guided_json": null, "structured_outputs": null}"#.into(), None),
            (r#"{"response_format": {"type": "text"}, "structured_outputs": {}}"#.into(), None),
            (r#"{"response_format": {"type": "json_object"}}"#.into(), object.clone()),
            (format!(r#"{{"response_format": {{"type": "json_object", "schema": {named}}}}}"#), schema(named)),
            (
                format!(
                    r#"{{"response_format": {{"type": "json_schema", "json_schema": {{"name": "n", "strict": true, "schema": {named}}}}}}}"#
                ),
                schema(named),
            ),
            (format!(r#"{{"guided_json": {named}}}"#), schema(named)),
            (r#"{"guided_json": "{\"type\": \"null\"}"}"#.into(), schema(r#"{"type": "null"}"#)),
            (r#"{"guided_regex": "a+"}"#.into(), Some(Constraint::Regex("a+".into()))),
            (r#"{"guided_grammar": "start: \"a\""}"#.into(), Some(Constraint::Grammar("start: \"a\"".into()))),
            (
                r#"{"guided_choice": ["a", "b\"\\\n"]}"#.into(),
                Some(Constraint::Grammar(r#"start: "a" | "b\"\\\n""#.into())),
            ),
            (r#"{"structured_outputs": {"regex": "a+"}}"#.into(), Some(Constraint::Regex("a+".into()))),
            (format!(r#"{{"structured_outputs": {{"json": {named}, "regex": null}}}}"#), schema(named)),
            (r#"{"structured_outputs": {"json_object": true}}"#.into(), object),
            (
                r#"{"structured_outputs": {"choice": ["a"]}, "guided_regex": null}"#.into(),
                Some(Constraint::Grammar("start: \"a\"".into())),
            ),
        ] {
            assert_eq!(read(&fields), Ok(expected), "{fields}");
        }
    }

    #[test]
    fn what_is_not_meant_is_refused_and_named() {
        for (fields, code, param) in [
            (r#"{"response_format": {}}"#, "unsupported", "response_format"),
            (r#"{"response_format": {"type": "structural_tag"}}"#, "unsupported", "response_format"),
            (r#"{"response_format": {"type": "json_schema"}}"#, "invalid_request", "response_format"),
            (
                r#"{"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}"#,
                "invalid_request",
                "response_format",
            ),
            (r#"{"guided_choice": []}"#, "invalid_request", "guided_choice"),
            (r#"{"guided_regex": "a", "guided_grammar": "b"}"#, "invalid_request", "guided_grammar"),
            (r#"{"response_format": {"type": "json_object"}, "guided_json": {}}"#, "invalid_request", "guided_json"),
            (r#"{"structured_outputs": {"regex": "a", "json": {}}}"#, "invalid_request", "structured_outputs"),
            (
                r#"{"structured_outputs": {"structural_tag": {"a": 1}}}"#,
                "unsupported",
                "structured_outputs.structural_tag",
            ),
            (
                r#"{"structured_outputs": {"regex": "a", "disable_any_whitespace": true}}"#,
                "unsupported",
                "structured_outputs.disable_any_whitespace",
            ),
        ] {
            assert_eq!(read(fields), Err((code.into(), param.into())), "{fields}");
        }
        assert!(serde_json::from_str::<ConstraintFields>(r#"{"response_format": "json"}"#).is_err());
    }
}
