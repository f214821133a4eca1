//! An opened base file: its digest, sizes, tokenizer and chat template, shared by everyone who runs it. Not here: its
//! weights, which a runner loads in its own form.

use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;
use candle_core::quantized::QTensor;
use types::{Digest, Module};

use crate::gguf::{Gguf, malformed};
use crate::{ChatTemplate, ModelConfig, ModelError, Tokenizer};

/// An opened model file.
pub struct Base {
    digest: Digest,
    name: String,
    config: ModelConfig,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    eos: Vec<u32>,
    gguf: Gguf,
    file: Mutex<BufReader<File>>,
}

impl Base {
    /// Opens a GGUF file and checks it. Reads the whole file once, for its digest.
    ///
    /// # Errors
    /// If the file cannot be read, is not sound, or is not of the `llama` architecture.
    pub fn open(path: &Path) -> Result<Arc<Self>, ModelError> {
        let unreadable = |source| ModelError::Read { path: path.to_owned(), source };
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(unreadable)?);
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&mut file).map_err(unreadable)?;
        file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let gguf = Gguf::read(&mut file)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let chat_template = ChatTemplate::from_gguf(&gguf, &tokenizer)?;
        let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = gguf.string("general.name").map_or_else(|_| stem(), str::to_owned);
        let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let mut eos: Vec<u32> = ends.iter().filter_map(|key| gguf.token(key)).collect();
        eos.dedup();
        if eos.iter().any(|id| *id as usize >= config.vocabulary) {
            return Err(ModelError::Malformed("the end-of-sequence token is outside the vocabulary".into()));
        }
        let digest = Digest::from_bytes(*hasher.finalize().as_bytes());
        Ok(Arc::new(Self { digest, name, config, tokenizer, chat_template, eos, gguf, file: Mutex::new(file) }))
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

    /// What the file says the base is, apart from its name: family and size.
    pub(crate) fn stated_names(&self) -> Vec<&str> {
        ["general.basename", "general.size_label"].iter().filter_map(|key| self.gguf.string(key).ok()).collect()
    }

    /// A linear module, `[outputs, inputs]`.
    pub(crate) fn module_tensor(&self, layer: usize, module: Module) -> Result<QTensor, ModelError> {
        let (inputs, outputs) = self.config.module_shape(module);
        let name = match module {
            Module::Q => "attn_q",
            Module::K => "attn_k",
            Module::V => "attn_v",
            Module::O => "attn_output",
            Module::Gate => "ffn_gate",
            Module::Up => "ffn_up",
            Module::Down => "ffn_down",
        };
        if self.has_tensor(&format!("blk.{layer}.{name}.bias")) {
            return Err(ModelError::Unsupported(format!("{name} of layer {layer} has a bias")));
        }
        self.tensor(&format!("blk.{layer}.{name}.weight"), &[outputs, inputs])
    }

    /// Whether the file has this tensor.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.gguf.content().tensor_infos.contains_key(name)
    }

    /// Reads a tensor of exactly this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<QTensor, ModelError> {
        let content = self.gguf.content();
        let info = content.tensor_infos.get(name);
        let info = info.ok_or_else(|| ModelError::Malformed(format!("tensor {name} is missing")))?;
        if info.shape.dims() != shape {
            let dims = info.shape.dims();
            return Err(ModelError::Malformed(format!("tensor {name} has shape {dims:?}, expected {shape:?}")));
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        info.read(&mut *file, content.tensor_data_offset, &Device::Cpu).map_err(malformed)
    }
}

/// Dequantised.
pub(crate) fn values(tensor: &QTensor) -> Result<Vec<f32>, ModelError> {
    let flat = tensor.dequantize(&Device::Cpu).and_then(|tensor| tensor.flatten_all());
    flat.and_then(|tensor| tensor.to_vec1()).map_err(malformed)
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
