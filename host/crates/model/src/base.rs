//! An opened base file: its digest, sizes, tokenizer and chat template, shared by everyone who runs it.

use std::path::Path;
use std::sync::Arc;

use types::Digest;

use crate::{ChatTemplate, ModelConfig, ModelError, Tokenizer};

/// An opened model file.
pub struct Base {
    digest: Digest,
    name: String,
    config: ModelConfig,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    eos: Vec<u32>,
}

impl Base {
    /// Opens a GGUF file and checks it. Reads the whole file once, for its digest.
    ///
    /// # Errors
    /// If the file cannot be read, is not sound, or is not of the `llama` architecture.
    pub fn open(path: &Path) -> Result<Arc<Self>, ModelError> {
        Err(ModelError::Unsupported(format!("{}: the loader is not written yet", path.display())))
    }

    /// BLAKE3 of the file.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The name in the file's metadata, or the file's own.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Its chat template.
    #[must_use]
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    /// Tokens that end a sequence.
    #[must_use]
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }
}
