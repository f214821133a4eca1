//! Adapters that a test makes: PEFT's two files from values, sound or not. Not here: whether they are accepted.

use serde_json::{Map, Value, json};

/// The width of the demo base's residual stream, and of its keys and values.
const HIDDEN: usize = 576;
const KEYS: usize = 192;

/// One tensor as a safetensors file names it.
#[derive(Clone, Debug)]
pub struct PeftTensor {
    /// Its name in the file.
    pub name: String,
    /// `F32`, …
    pub dtype: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// An adapter as PEFT writes it: change what should be wrong, then take the files.
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    /// `adapter_config.json`.
    pub config: Map<String, Value>,
    /// The tensors of `adapter_model.safetensors`, in the order of the file.
    pub tensors: Vec<PeftTensor>,
}

impl PeftAdapter {
    /// Rank 2 on q and v of the first two layers of the demo base; the values follow from the seed.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn tiny(seed: u64) -> Self {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none",
            "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 1], "inference_mode": true,
            "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        });
        let mut adapter = Self { config: config.as_object().cloned().expect("an object"), tensors: Vec::new() };
        for layer in 0..2 {
            adapter.push_pair(&format!("layers.{layer}.self_attn.q_proj"), 2, HIDDEN, HIDDEN, seed + layer);
            adapter.push_pair(&format!("layers.{layer}.self_attn.v_proj"), 2, HIDDEN, KEYS, seed + 8 + layer);
        }
        adapter
    }

    /// Adds A and B of a module.
    pub fn push_pair(&mut self, module: &str, rank: usize, inputs: usize, outputs: usize, seed: u64) {
        self.push(&format!("{module}.lora_A.weight"), &[rank, inputs], seeded(seed, rank * inputs, 0.05));
        self.push(&format!("{module}.lora_B.weight"), &[outputs, rank], seeded(!seed, outputs * rank, 0.05));
    }

    /// Adds a tensor of f32 values.
    pub fn push(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        self.tensors.push(PeftTensor {
            name: format!("base_model.model.model.{name}"),
            dtype: "F32".into(),
            shape: shape.to_vec(),
            data: values.into_iter().flat_map(f32::to_le_bytes).collect(),
        });
    }

    /// Makes it a DoRA adapter whose magnitudes are all this.
    pub fn add_magnitudes(&mut self, magnitude: f32) {
        self.set("use_dora", json!(true));
        let modules: Vec<(String, usize)> = self
            .tensors
            .iter()
            .filter_map(|tensor| {
                let name = tensor.name.strip_suffix(".lora_B.weight")?.strip_prefix("base_model.model.model.")?;
                Some((name.to_owned(), *tensor.shape.first()?))
            })
            .collect();
        for (module, outputs) in modules {
            self.push(&format!("{module}.lora_magnitude_vector"), &[outputs], vec![magnitude; outputs]);
        }
    }

    /// Sets a key of the configuration.
    pub fn set(&mut self, key: &str, value: Value) {
        self.config.insert(key.to_owned(), value);
    }

    /// The configuration as a file.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn config_file(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).expect("JSON")
    }

    /// The weights as a file.
    #[must_use]
    pub fn weights_file(&self) -> Vec<u8> {
        self.weights_file_with(|_| ())
    }

    /// The weights as a file whose header was changed: names to `{dtype, shape, data_offsets}`.
    #[must_use]
    pub fn weights_file_with(&self, change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for tensor in &self.tensors {
            let start = data.len();
            data.extend(&tensor.data);
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
            header.insert(tensor.name.clone(), entry);
        }
        change(&mut header);
        safetensors_file(Value::Object(header).to_string().as_bytes(), &data)
    }
}

/// A safetensors file of this header, whatever it is.
#[must_use]
pub fn safetensors_file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// Values between -size and size, the same for the same seed (splitmix64).
fn seeded(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * size
    };
    (0..count).map(|_| next()).collect()
}
