//! What admission and packing know of the base: its sizes, its names, and, for DoRA, its weights. Not here: how a runner
//! keeps them.

use std::fmt;

use types::{Digest, Module};

use crate::{Base, ModelConfig, ModelError};

/// The base that an adapter is for. [`ModelConfig`] is one too: sizes alone are enough for every adapter but DoRA.
pub trait AdapterBase: Send + Sync {
    /// Its sizes.
    fn config(&self) -> &ModelConfig;

    /// Of its files; nothing where only its sizes are known.
    fn digest(&self) -> Option<Digest>;

    /// A linear module dequantised to f32, `[outputs, inputs]`, rows in the file's order: that of the packed form.
    ///
    /// # Errors
    /// If it cannot be read.
    fn dense(&self, layer: usize, module: Module) -> Result<Vec<f32>, ModelError>;

    /// Whether an adapter that says it was trained on this name may mean this base. A guess, for a warning.
    fn may_be_called(&self, name: &str) -> bool;
}

impl fmt::Debug for dyn AdapterBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterBase").field("config", self.config()).finish_non_exhaustive()
    }
}

impl AdapterBase for Base {
    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.digest())
    }

    fn dense(&self, layer: usize, module: Module) -> Result<Vec<f32>, ModelError> {
        self.module_tensor(layer, module)?.to_f32()
    }

    fn may_be_called(&self, name: &str) -> bool {
        let claimed = letters_and_digits(name);
        let stated = self.stated_names();
        if stated.is_empty() {
            let own = letters_and_digits(self.name());
            return own.contains(&claimed) || claimed.contains(&own);
        }
        stated.iter().all(|stated| claimed.contains(&letters_and_digits(stated)))
    }
}

impl AdapterBase for ModelConfig {
    fn config(&self) -> &ModelConfig {
        self
    }

    fn digest(&self) -> Option<Digest> {
        None
    }

    fn dense(&self, _: usize, _: Module) -> Result<Vec<f32>, ModelError> {
        Err(ModelError::Unsupported("its sizes are known here, not its weights".into()))
    }

    fn may_be_called(&self, _: &str) -> bool {
        true
    }
}

fn letters_and_digits(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|character| character.to_ascii_lowercase()).collect()
}
