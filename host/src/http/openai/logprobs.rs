//! Log-probabilities in OpenAI's two shapes. A token's bytes are its own, so that a client can join them to the text even
//! where a character is split over tokens. Not here: the numbers, which are the runner's.

use model::{TextDecoder, Tokenizer};
use serde_json::{Map, Value, json};

use crate::invoke::TokenOut;

/// `choices[].logprobs` of a chat.
pub(super) fn of_chat(tokenizer: &Tokenizer, tokens: &[TokenOut]) -> Value {
    let entry = |id: u32, logprob: Option<f32>| {
        // A special token prints nothing and has no bytes in the text.
        json!({"token": tokenizer.token_text(id), "logprob": logprob, "bytes": tokenizer.token_bytes(id)})
    };
    let content = tokens.iter().map(|token| {
        let mut value = entry(token.id, token.logprob);
        if let Some(object) = value.as_object_mut() {
            let top: Vec<Value> = token.top.iter().map(|(id, logprob)| entry(*id, Some(*logprob))).collect();
            object.insert("top_logprobs".to_owned(), top.into());
        }
        value
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// Where the text of a completion has come to, in characters.
pub(super) struct TextOffset {
    decoder: TextDecoder,
    characters: usize,
}

impl TextOffset {
    /// At the beginning.
    pub(super) const fn new(decoder: TextDecoder) -> Self {
        Self { decoder, characters: 0 }
    }

    /// Where this token begins; one that goes on with a character begins where that character does.
    fn next(&mut self, id: u32) -> usize {
        let begins = self.characters;
        self.characters += self.decoder.push(id).chars().count();
        begins
    }
}

/// `choices[].logprobs` of a completion.
pub(super) fn of_completion(tokenizer: &Tokenizer, offset: &mut TextOffset, tokens: &[TokenOut]) -> Value {
    let top = |token: &TokenOut| -> Value {
        // The drawn token is always there, as one more if it is not among the most likely.
        let drawn = token.logprob.map(|logprob| (token.id, logprob));
        let all = token.top.iter().copied().chain(drawn);
        all.map(|(id, logprob)| (text(tokenizer, id), Value::from(logprob))).collect::<Map<_, _>>().into()
    };
    json!({
        "tokens": tokens.iter().map(|token| text(tokenizer, token.id)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| offset.next(token.id)).collect::<Vec<_>>(),
    })
}

/// A token's text; in this shape a part of a character is written as its bytes, or two of them would be one key.
fn text(tokenizer: &Tokenizer, id: u32) -> String {
    match tokenizer.token_bytes(id) {
        Some(bytes) if std::str::from_utf8(bytes).is_err() => {
            bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}"))
        }
        _ => tokenizer.token_text(id),
    }
}
