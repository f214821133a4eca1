//! An opened base: its digest, sizes, tokenizer and chat template, shared by everyone who runs it, and its tensors as the
//! files have them. Not here: the form in which a runner keeps them.

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use types::{Digest, Module};

use crate::gguf::Gguf;
use crate::tensor_files::TensorFiles;
use crate::{
    Architecture, BaseTensor, ChatTemplate, ModelConfig, ModelError, TensorFormat, Tokenizer, folder, gguf_config,
    names,
};

/// An opened model.
pub struct Base {
    pub(crate) digest: Digest,
    pub(crate) name: String,
    /// What the files say the base is, apart from its name: family and size.
    pub(crate) stated_names: Vec<String>,
    pub(crate) architecture: Architecture,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) chat_template: ChatTemplate,
    pub(crate) eos: Vec<u32>,
    pub(crate) tensors: TensorFiles,
}

impl Base {
    /// Opens a GGUF file, or a folder of safetensors files as transformers saves it, and checks it down to the place of
    /// its last tensor. Reads every file once as a whole, for its digest.
    ///
    /// # Errors
    /// If a file cannot be read or is not sound, or the base is of an architecture that is not known.
    pub fn open(path: &Path) -> Result<Arc<Self>, ModelError> {
        if path.is_dir() { folder::open(path)?.checked() } else { Self::open_gguf(path)?.checked() }
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let unreadable = |source| ModelError::Read { path: path.to_owned(), source };
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(unreadable)?);
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&mut file).map_err(unreadable)?;
        file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let gguf = Gguf::read(&mut file)?;
        let tensors = gguf.tensors(file.into_inner())?;
        let (architecture, config) = gguf_config::from_gguf(&gguf, &tensors)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let stated = ["general.basename", "general.size_label"].iter().filter_map(|key| gguf.string(key).ok());
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        Ok(Self {
            digest: Digest::from_bytes(*hasher.finalize().as_bytes()),
            name: gguf.string("general.name").map_or_else(|_| stem(), str::to_owned),
            stated_names: stated.map(str::to_owned).collect(),
            architecture,
            config,
            chat_template: ChatTemplate::from_gguf(&gguf, &tokenizer)?,
            tokenizer,
            eos: ends.iter().filter_map(|key| gguf.token(key)).collect(),
            tensors,
        })
    }

    fn checked(mut self) -> Result<Arc<Self>, ModelError> {
        let stated = std::mem::take(&mut self.eos);
        for id in stated {
            if !self.eos.contains(&id) {
                self.eos.push(id);
            }
        }
        if self.eos.iter().any(|id| *id as usize >= self.config.vocabulary) {
            return Err(ModelError::Malformed("the end-of-sequence token is outside the vocabulary".into()));
        }
        names::refuse_others(self.tensors.names(), &self.config)?;
        for (name, shape) in names::required(&self.config) {
            self.tensors.find(&name, &shape)?;
        }
        Ok(Arc::new(self))
    }

    /// BLAKE3 of the file, or of the list of a folder's files with theirs.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The name in the file's metadata, or the file's or folder's own.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its family.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        self.architecture
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

    /// What the files say the base is, apart from its name: family and size.
    pub(crate) fn stated_names(&self) -> &[String] {
        &self.stated_names
    }

    /// A linear module, `[outputs, inputs]`, rows of q and k in the order of [`ModelConfig::rope`].
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn module_tensor(&self, layer: usize, module: Module) -> Result<BaseTensor, ModelError> {
        let (inputs, outputs) = self.config.module_shape(module);
        self.tensor(&names::module_weight(layer, module), &[outputs, inputs])
    }

    /// How a tensor of exactly this shape is stored.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub(crate) fn tensor_format(&self, name: &str, shape: &[usize]) -> Result<TensorFormat, ModelError> {
        Ok(self.tensors.find(name, shape)?.format)
    }

    /// Reads a tensor of exactly this shape. Its name is GGUF's (`blk.0.attn_q.weight`, `token_embd.weight`, …), whatever
    /// the files are.
    ///
    /// # Errors
    /// If it is missing, has another shape or a format that is not known, or cannot be read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<BaseTensor, ModelError> {
        self.tensors.read(name, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_shared_between_threads_and_a_missing_file_is_named() {
        fn shared<T: Send + Sync>() {}
        shared::<Base>();
        shared::<crate::LoraAdapter>();
        let error = Base::open(Path::new("absent.gguf")).err().map(|error| (error.code(), error.to_string()));
        let (code, text) = error.unwrap();
        assert!(code == "base_unreadable" && text.contains("absent.gguf"));
    }
}
