//! Random adapters, the same values as PEFT's two files and as llama.cpp's GGUF: rank 16 on all linear layers, or of another
//! form. Not here: whether an adapter is good for anything.

use half::f16;
use model::ModelConfig;
use serde_json::{Map, Value, json};
use types::Module;

/// Rank of every module of [`Form::WHOLE`].
pub(crate) const RANK: usize = 16;
/// Alignment of tensors in a GGUF file.
const GGUF_ALIGNMENT: usize = 32;
const GGUF_F16: u32 = 1;

/// What an adapter acts on, and how large it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) rank: usize,
    /// `lora_alpha`.
    pub(crate) alpha: usize,
    pub(crate) modules: &'static [Module],
    /// The first so many layers of the base.
    pub(crate) layers_max: usize,
}

impl Form {
    /// All linear layers, with a scale of 1 on both sides.
    pub(crate) const WHOLE: Self = Self { rank: RANK, alpha: RANK, modules: &Module::ALL, layers_max: usize::MAX };
    /// Queries and values, as PEFT has it by default.
    pub(crate) const fn queries_and_values(rank: usize) -> Self {
        Self { rank, alpha: rank, modules: &[Module::Q, Module::V], layers_max: usize::MAX }
    }
}

/// Adapter number so-and-so for a base of these sizes.
pub(crate) struct RandomAdapter<'a> {
    number: u64,
    base: &'a ModelConfig,
    form: Form,
}

/// One factor of one module: which, its rows and columns, and where its values come from.
struct Factor {
    layer: usize,
    module: Module,
    is_b: bool,
    rows: usize,
    columns: usize,
}

impl<'a> RandomAdapter<'a> {
    /// The same number gives the same adapter.
    pub(crate) const fn new(number: u64, base: &'a ModelConfig) -> Self {
        Self::of(number, base, Form::WHOLE)
    }

    /// The same in another form.
    pub(crate) const fn of(number: u64, base: &'a ModelConfig, form: Form) -> Self {
        Self { number, base, form }
    }

    /// Values of all factors.
    pub(crate) fn parameters(&self) -> usize {
        self.factors().map(|factor| factor.rows * factor.columns).sum()
    }

    /// `adapter_config.json`.
    pub(crate) fn peft_config(&self) -> Vec<u8> {
        let Form { rank, alpha, modules, layers_max } = self.form;
        let modules: Vec<&str> = modules.iter().map(|module| module.name()).collect();
        let mut config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0,
            "bias": "none", "target_modules": modules, "inference_mode": true,
        });
        if layers_max < self.base.layers {
            config["layers_to_transform"] = (0..layers_max).collect();
        }
        config.to_string().into_bytes()
    }

    /// `adapter_model.safetensors`, in f16.
    pub(crate) fn peft_weights(&self) -> Vec<u8> {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for factor in self.factors() {
            let start = data.len();
            let values = self.values(&factor);
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            let block = match factor.module {
                Module::Q | Module::K | Module::V | Module::O => "self_attn",
                Module::Gate | Module::Up | Module::Down => "mlp",
            };
            let (layer, module, letter) = (factor.layer, factor.module.name(), if factor.is_b { 'B' } else { 'A' });
            let name = format!("base_model.model.model.layers.{layer}.{block}.{module}.lora_{letter}.weight");
            let shape = [factor.rows, factor.columns];
            header.insert(name, json!({"dtype": "F16", "shape": shape, "data_offsets": [start, data.len()]}));
        }
        let header = Value::Object(header).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
    }

    /// A GGUF file of the adapter as llama.cpp's `convert_lora_to_gguf.py` makes it, in f16: the rows of B of q and k lie
    /// where llama.cpp has those of a base of architecture llama.
    pub(crate) fn gguf(&self) -> Vec<u8> {
        let factors: Vec<Factor> = self.factors().collect();
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((factors.len() as u64).to_le_bytes());
        file.extend(4u64.to_le_bytes());
        for (key, value) in [("general.architecture", "llama"), ("general.type", "adapter"), ("adapter.type", "lora")] {
            push_text(&mut file, key);
            file.extend(8u32.to_le_bytes());
            push_text(&mut file, value);
        }
        push_text(&mut file, "adapter.lora.alpha");
        file.extend(6u32.to_le_bytes());
        file.extend((self.form.alpha as f32).to_le_bytes());
        let mut data = Vec::new();
        for factor in &factors {
            let letter = if factor.is_b { 'b' } else { 'a' };
            push_text(&mut file, &format!("blk.{}.{}.weight.lora_{letter}", factor.layer, gguf_name(factor.module)));
            file.extend(2u32.to_le_bytes());
            file.extend((factor.columns as u64).to_le_bytes());
            file.extend((factor.rows as u64).to_le_bytes());
            file.extend(GGUF_F16.to_le_bytes());
            data.resize(data.len().next_multiple_of(GGUF_ALIGNMENT), 0);
            file.extend((data.len() as u64).to_le_bytes());
            let values = self.values(factor);
            let rows: Vec<&[f16]> = values.chunks_exact(factor.columns).collect();
            let order = (0..factor.rows).map(|row| self.peft_row(factor, row));
            order.filter_map(|row| rows.get(row)).for_each(|row| data.extend(row.iter().flat_map(|v| v.to_le_bytes())));
        }
        file.resize(file.len().next_multiple_of(GGUF_ALIGNMENT), 0);
        file.extend(data);
        file
    }

    /// PEFT's row that becomes this one: within a head of q or k, row 2i + j comes from j · half + i.
    fn peft_row(&self, factor: &Factor, row: usize) -> usize {
        if !factor.is_b || !matches!(factor.module, Module::Q | Module::K) {
            return row;
        }
        let (head_dim, half) = (self.base.head_dim, self.base.head_dim / 2);
        let within = row % head_dim;
        row - within + (within % 2) * half + within / 2
    }

    fn factors(&self) -> impl Iterator<Item = Factor> + '_ {
        let Form { rank, modules, layers_max, .. } = self.form;
        let layers = 0..self.base.layers.min(layers_max);
        let modules = layers.flat_map(move |layer| modules.iter().map(move |module| (layer, *module)));
        modules.flat_map(move |(layer, module)| {
            let (inputs, outputs) = self.base.module_shape(module);
            let a = Factor { layer, module, is_b: false, rows: rank, columns: inputs };
            let b = Factor { layer, module, is_b: true, rows: outputs, columns: rank };
            [a, b]
        })
    }

    /// Small values of both signs, row after row as PEFT has them; exact in f16 and in bf16.
    fn values(&self, factor: &Factor) -> Vec<f16> {
        let place = (factor.layer * 14 + factor.module.index() * 2 + usize::from(factor.is_b)) as u64;
        let mut state = self.number << 32 | place;
        let divisor = if factor.is_b { 8192.0 } else { 2048.0 };
        (0..factor.rows * factor.columns)
            .map(|_| {
                let byte = (split_mix(&mut state) >> 56) as u8;
                f16::from_f32(f32::from(byte.cast_signed()) / divisor)
            })
            .collect()
    }
}

/// The next word of splitmix64.
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

const fn gguf_name(module: Module) -> &'static str {
    match module {
        Module::Q => "attn_q",
        Module::K => "attn_k",
        Module::V => "attn_v",
        Module::O => "attn_output",
        Module::Gate => "ffn_gate",
        Module::Up => "ffn_up",
        Module::Down => "ffn_down",
    }
}

fn push_text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ours::tests::tiny_base;
    use model::{AdapterLimits, LoraAdapter, Precision, canonical_adapter};

    #[test]
    fn both_forms_hold_the_same_values() {
        let base = tiny_base();
        let config = base.config();
        let adapter = RandomAdapter::new(3, config);
        let weights = adapter.peft_weights();
        let canonical =
            canonical_adapter(&adapter.peft_config(), &weights, config, &AdapterLimits::default()).expect("admitted");
        let packed =
            LoraAdapter::from_canonical(&canonical.bytes, config, &AdapterLimits::default(), Precision::default())
                .expect("packed");
        assert_eq!(packed.rank() as usize, RANK);
        let mut gguf = std::io::Cursor::new(adapter.gguf());
        let content = candle_core::quantized::gguf_file::Content::read(&mut gguf).expect("GGUF");
        assert_eq!(content.tensor_infos.len(), config.layers * 14);
        let q = content.tensor(&mut gguf, "blk.0.attn_q.weight.lora_b", &candle_core::Device::Cpu).expect("a tensor");
        let q: Vec<Vec<f32>> = q.dequantize(&candle_core::Device::Cpu).and_then(|t| t.to_vec2()).expect("values");
        let factor = adapter.factors().find(|factor| factor.is_b).expect("the B of q");
        let peft = adapter.values(&factor);
        // llama.cpp's row 1 of a head is transformers' row half.
        let half = config.head_dim / 2;
        let row: Vec<f32> = peft[half * RANK..][..RANK].iter().map(|value| value.to_f32()).collect();
        assert_eq!(q[1], row);
        assert_ne!(adapter.peft_weights(), RandomAdapter::new(4, config).peft_weights());
    }

    #[test]
    fn other_forms_are_admitted_as_what_they_say() {
        let base = tiny_base();
        let (config, limits) = (base.config(), AdapterLimits::default());
        for form in
            [Form::queries_and_values(8), Form { layers_max: 1, alpha: 64, ..Form::queries_and_values(4) }, Form::WHOLE]
        {
            let adapter = RandomAdapter::of(7, config, form);
            let admitted = canonical_adapter(&adapter.peft_config(), &adapter.peft_weights(), config, &limits);
            let admitted = admitted.unwrap_or_else(|error| panic!("{form:?}: {error}"));
            assert_eq!((admitted.rank as usize, admitted.modules.iter().count()), (form.rank, form.modules.len()));
            let layers: Vec<usize> = adapter.factors().map(|factor| factor.layer).collect();
            assert_eq!(layers.last().copied(), Some(config.layers.min(form.layers_max) - 1));
        }
    }
}
