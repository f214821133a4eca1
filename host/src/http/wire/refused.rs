//! Fields of OpenAI's and vLLM's bodies that would change the answer and are not served. Each is refused if it is there with
//! more than a neutral value; everything else that is unknown is ignored, as those APIs' users expect.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::Error;

/// Whether a field asks for something: null, false, 0, "none", an empty text and an empty list do not. Nothing of it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asks(bool);

impl Asks {
    /// Whether it does.
    pub(crate) const fn any(self) -> bool {
        self.0
    }
}

impl<'de> Deserialize<'de> for Asks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AsksVisitor).map(Self)
    }
}

struct AsksVisitor;

impl<'de> Visitor<'de> for AsksVisitor {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
        Ok(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<bool, E> {
        Ok(value != 0)
    }

    fn visit_u64<E>(self, value: u64) -> Result<bool, E> {
        Ok(value != 0)
    }

    fn visit_f64<E>(self, value: f64) -> Result<bool, E> {
        Ok(value != 0.0)
    }

    fn visit_str<E>(self, value: &str) -> Result<bool, E> {
        Ok(!matches!(value, "" | "none"))
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_none<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        let mut any = false;
        while items.next_element::<IgnoredAny>()?.is_some() {
            any = true;
        }
        Ok(any)
    }

    /// `web_search_options: {}` asks for a search.
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<bool, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(true)
    }
}

macro_rules! refused {
    ($($field:ident),* $(,)?) => {
        /// The fields that are refused.
        #[derive(Debug, Default, Deserialize)]
        #[serde(default)]
        pub(crate) struct Refused {
            $($field: Asks,)*
        }

        impl Refused {
            /// Refuses the first of them that asks for something.
            pub(crate) fn check(&self) -> Result<(), Error> {
                let fields = [$((stringify!($field), self.$field)),*];
                match fields.into_iter().find(|(_, asks)| asks.0) {
                    Some((field, _)) => Err(unsupported(field)),
                    None => Ok(()),
                }
            }
        }
    };
}

refused! {
    // OpenAI's.
    audio, function_call, functions, prediction, reasoning_effort, suffix, verbosity, web_search_options,
    // vLLM's.
    allowed_token_ids, bad_words, chat_template, chat_template_kwargs, continue_final_message, documents, include_stop_str_in_output, length_penalty, logits_processors, min_tokens, prompt_logprobs,
    truncate_prompt_tokens, use_beam_search,
}

/// The answer to a field that is not served.
pub(crate) fn unsupported(field: &str) -> Error {
    Error::invalid("unsupported", field, format!("{field} is not supported: leave it out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neutral_values_ask_for_nothing() {
        for (json, asks) in [
            ("null", false),
            ("false", false),
            ("0", false),
            ("0.0", false),
            ("\"\"", false),
            ("\"none\"", false),
            ("[]", false),
            ("{}", true),
            ("true", true),
            ("1", true),
            ("-1", true),
            ("0.5", true),
            ("\"low\"", true),
            ("[0]", true),
            ("{\"a\": null}", true),
        ] {
            assert_eq!(serde_json::from_str::<Asks>(json).expect("read"), Asks(asks), "{json}");
        }
    }

    #[test]
    fn the_field_is_named() {
        let refused: Refused =
            serde_json::from_str(r#"{"user": "me", "bad_words": [], "min_tokens": 3}"#).expect("read");
        let error = refused.check().expect_err("refused");
        assert_eq!((error.code(), error.param()), ("unsupported", Some("min_tokens")));
        assert!(Refused::default().check().is_ok());
    }
}
