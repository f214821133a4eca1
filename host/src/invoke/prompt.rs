//! From a checked prompt to tokens: templates are rendered, text is tokenised, off the async threads. Not here: the
//! tokenizer and the base's chat template, which are the crate `model`, and the manifest's templates (`template.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use types::{Chat, Prompt};

use super::template;
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
    if let Prompt::Tokens(tokens) = prompt {
        let committed = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        return Ok(Rendered { tokens: tokens.clone(), committed });
    }
    let source = match prompt {
        Prompt::Template { name, .. } => templates.and_then(|templates| templates.get(name)).cloned(),
        _ => None,
    };
    let (base, prompt, bytes_max) = (Arc::clone(&host.base), prompt.clone(), host.plan_limits.prompt_bytes_max);
    // A template over thousands of messages takes a second, and so does a megabyte of text.
    let tokenised = tokio::task::spawn_blocking(move || {
        let text = match prompt {
            Prompt::Tokens(_) => String::new(),
            Prompt::Text(text) => text,
            Prompt::Messages(messages) => base.chat_template().render(&Chat::from(messages), true)?,
            Prompt::Chat(chat) => base.chat_template().render(&chat, true)?,
            Prompt::Template { name, arguments } => {
                let source = source.ok_or_else(|| Error::Internal(format!("template `{name}` passed the check")))?;
                template::render(&source, &arguments, bytes_max)?
            }
        };
        let tokens = base.tokenizer().encode(&text)?;
        Ok(Rendered { tokens, committed: text.into_bytes() })
    });
    tokenised.await.map_err(|error| Error::Internal(format!("the tokenizer did not return: {error}")))?
}
