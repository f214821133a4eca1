//! The two files of a PEFT folder: an adapter of some kind that PEFT would write, and then, perhaps, something wrong with its
//! configuration, its tensors, its values or its container, or a file of another kind in its place.

use std::collections::BTreeSet;

use types::Module;

use crate::safetensors::{self, Tensor};
use crate::{Draw, Json, Sizes};

/// The files of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFiles {
    /// `adapter_config.json`
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub weights: Vec<u8>,
}

/// Files for a base of these sizes.
pub fn adapter(draw: &mut Draw<'_>, sizes: &Sizes) -> AdapterFiles {
    let plan = Shape::draw(draw, sizes);
    let mut config = plan.config(draw);
    let mut tensors = plan.tensors(draw, sizes);
    match draw.below(14) {
        6 => config.mutate(draw),
        7 => set_option(&mut config, draw),
        8 => {
            set_option(&mut config, draw);
            set_option(&mut config, draw);
        }
        9..=11 => misplace(&mut tensors, draw),
        12 | 13 => poison(&mut tensors, draw),
        _ => {}
    }
    let metadata = draw.maybe(3, |draw| match draw.below(3) {
        0 => Json::object([("format", "pt".into())]),
        1 => Json::object([("tenon.adapter", draw.text().as_str().into())]),
        _ => Json::any(draw),
    });
    let weights = if draw.one_in(6) {
        safetensors::broken_file(&tensors, metadata, draw)
    } else {
        safetensors::file(&tensors, metadata)
    };
    let mut files = AdapterFiles { config: config.into_bytes(draw), weights };
    if draw.one_in(32) {
        // What is sent by mistake, or in the hope that it is opened.
        let file = if draw.one_in(4) { &mut files.config } else { &mut files.weights };
        let magic = draw.pick(MAGIC);
        file.splice(..magic.len().min(file.len()), magic.iter().copied());
    }
    files
}

/// How archives, pickles and other weights begin.
const MAGIC: &[&[u8]] = &[
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"BZh9",
    b"\xfd7zXZ\0",
    b"7z\xbc\xaf\x27\x1c",
    b"\x80\x04\x95",
    b"\x80\x02}q",
    b"GGUF\x03\0\0\0",
    b"\x93NUMPY",
];

/// Which modules have which factors: what PEFT's options say, worked out.
struct Shape {
    rank: usize,
    rslora: bool,
    dora: bool,
    modules: BTreeSet<Module>,
    layers: Vec<usize>,
    target: Target,
    /// Module and its own rank.
    rank_pattern: Vec<(Module, usize)>,
    alpha_pattern: Vec<(Module, usize)>,
    dtype: &'static str,
}

#[derive(Clone, Copy)]
enum Target {
    Names,
    Suffixes,
    FullNames,
    Regex,
    AllLinear,
}

impl Shape {
    fn draw(draw: &mut Draw<'_>, sizes: &Sizes) -> Self {
        let target = draw.pick(&[
            Target::Names,
            Target::Names,
            Target::Suffixes,
            Target::FullNames,
            Target::Regex,
            Target::AllLinear,
        ]);
        let mut modules: BTreeSet<Module> = (0..=draw.below(3)).map(|_| draw.pick(&Module::ALL)).collect();
        if matches!(target, Target::AllLinear) {
            modules = Module::ALL.into();
        }
        let layers = match draw.below(3) {
            2 => vec![draw.below(sizes.layers)],
            _ => (0..sizes.layers).collect(),
        };
        let pattern = |draw: &mut Draw<'_>| -> Vec<(Module, usize)> {
            let keys: BTreeSet<Module> = (0..draw.below(3)).map(|_| draw.pick(&Module::ALL)).collect();
            keys.into_iter().map(|module| (module, 1 + draw.below(5))).collect()
        };
        Self {
            rank: 1 + draw.below(4),
            rslora: draw.one_in(4),
            dora: draw.one_in(3),
            modules,
            layers,
            target,
            rank_pattern: if draw.one_in(3) { pattern(draw) } else { Vec::new() },
            alpha_pattern: if draw.one_in(3) { pattern(draw) } else { Vec::new() },
            dtype: draw.pick(&["F32", "F16", "BF16"]),
        }
    }

    fn rank_of(&self, module: Module) -> usize {
        let own = self.rank_pattern.iter().find(|(name, _)| *name == module);
        own.map_or(self.rank, |(_, rank)| *rank)
    }

    fn config(&self, draw: &mut Draw<'_>) -> Json {
        let names = self.modules.iter().map(|module| module.name());
        let full = || self.layers.iter().flat_map(|layer| self.modules.iter().map(|module| place(*layer, *module)));
        let target = match self.target {
            Target::Names => Json::texts(names),
            Target::Suffixes => {
                Json::texts(self.modules.iter().map(|module| format!("{}.{}", block(*module), module.name())))
            }
            Target::FullNames => Json::texts(full().map(|name| format!("model.{name}"))),
            Target::Regex => Json::Text(format!(r".*\.({})", names.collect::<Vec<_>>().join("|"))),
            Target::AllLinear => Json::from("all-linear"),
        };
        let pattern = |entries: &[(Module, usize)], draw: &mut Draw<'_>| {
            let entry = |(module, value): &(Module, usize)| {
                let name = module.name();
                let forms = [
                    name.to_owned(),
                    format!(r".*\.{name}"),
                    format!("{}.{name}", block(*module)),
                    format!("^.*{name}$"),
                ];
                (draw.pick(&forms), Json::from(*value))
            };
            Json::Object(entries.iter().map(entry).collect())
        };
        let mut config = Json::object([
            ("peft_type", "LORA".into()),
            ("r", self.rank.into()),
            ("lora_alpha", Json::Number(draw.pick(&["8", "16", "1", "0", "0.5", "32.0"]).into())),
            ("target_modules", target),
        ]);
        if !self.rank_pattern.is_empty() {
            config.set("rank_pattern", pattern(&self.rank_pattern, draw));
        }
        if !self.alpha_pattern.is_empty() {
            config.set("alpha_pattern", pattern(&self.alpha_pattern, draw));
        }
        if self.dora {
            config.set("use_dora", true.into());
        }
        if self.rslora {
            config.set("use_rslora", true.into());
        }
        let all_layers = self.layers.len() > 1;
        if !all_layers || draw.one_in(4) {
            let numbers = self.layers.iter().map(|layer| Json::from(*layer)).collect();
            config.set("layers_to_transform", Json::List(numbers));
        }
        if draw.one_in(2) {
            for (key, value) in NEUTRAL {
                config.set(key, Json::Raw((*value).into()));
            }
        }
        config
    }

    fn tensors(&self, draw: &mut Draw<'_>, sizes: &Sizes) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        let magnitude = draw.pick(&["lora_magnitude_vector", "lora_magnitude_vector.weight"]);
        for layer in &self.layers {
            for module in &self.modules {
                let (inputs, outputs) = sizes.module_shape(*module);
                let rank = self.rank_of(*module);
                let name = format!("base_model.model.model.{}", place(*layer, *module));
                let mut factor = |factor: &str, shape: &[usize], seed: u64, dtype: &str| {
                    let data = values(seed, shape.iter().product(), dtype, factor == magnitude);
                    let shape = shape.iter().map(|size| *size as u64).collect();
                    tensors.push(Tensor { name: format!("{name}.{factor}"), dtype: dtype.into(), shape, data });
                };
                factor("lora_A.weight", &[rank, inputs], draw.bits(), self.dtype);
                factor("lora_B.weight", &[outputs, rank], draw.bits(), self.dtype);
                if self.dora {
                    factor(magnitude, &[outputs], draw.bits(), self.dtype);
                }
            }
        }
        if draw.one_in(4) {
            tensors.reverse();
        }
        tensors
    }
}

fn block(module: Module) -> &'static str {
    match module {
        Module::Q | Module::K | Module::V | Module::O => "self_attn",
        Module::Gate | Module::Up | Module::Down => "mlp",
    }
}

fn place(layer: usize, module: Module) -> String {
    format!("layers.{layer}.{}.{}", block(module), module.name())
}

/// Small values of both signs, or magnitudes about 1, in the file's type. A seed of 0 is all the same value.
fn values(seed: u64, count: usize, dtype: &str, is_magnitude: bool) -> Vec<u8> {
    let bytes = crate::seeded_bytes(seed, count);
    let value =
        |byte: u8| if is_magnitude { 0.5 + f32::from(byte) / 128.0 } else { (f32::from(byte) - 127.5) / 4096.0 };
    bytes.into_iter().flat_map(|byte| encode(value(byte), dtype)).collect()
}

/// A value of usual size in the file's type; f16 by cutting its mantissa.
fn encode(value: f32, dtype: &str) -> Vec<u8> {
    let bits = value.to_bits();
    match dtype {
        "BF16" => ((bits >> 16) as u16).to_le_bytes().to_vec(),
        "F16" => {
            let exponent = ((bits >> 23) & 0xff).saturating_sub(112).min(30);
            let half = ((bits >> 31) << 15) | (exponent << 10) | ((bits >> 13) & 0x3ff);
            (half as u16).to_le_bytes().to_vec()
        }
        _ => bits.to_le_bytes().to_vec(),
    }
}

/// What PEFT writes although it changes nothing.
const NEUTRAL: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "null"),
    ("auto_mapping", "null"),
    ("base_model_name_or_path", "\"tiny\""),
    ("bias", "\"none\""),
    ("corda_config", "null"),
    ("ensure_weight_tying", "false"),
    ("eva_config", "null"),
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("inference_mode", "true"),
    ("init_lora_weights", "true"),
    ("layer_replication", "null"),
    ("layers_pattern", "null"),
    ("loftq_config", "{}"),
    ("lora_bias", "false"),
    ("lora_dropout", "0.05"),
    ("megatron_config", "null"),
    ("megatron_core", "\"megatron.core\""),
    ("modules_to_save", "null"),
    ("peft_version", "\"0.21.0\""),
    ("qalora_group_size", "16"),
    ("revision", "null"),
    ("target_parameters", "null"),
    ("task_type", "\"CAUSAL_LM\""),
    ("trainable_token_indices", "null"),
    ("use_qalora", "false"),
];

/// Options that change what is computed, and values that break who reads them.
const OPTIONS: &[(&str, &[&str])] = &[
    ("use_dora", &["true", "false", "1", "\"true\"", "[]"]),
    ("use_rslora", &["true", "false", "null", "1", "\"\""]),
    (
        "rank_pattern",
        &[
            "{}",
            "{\"q_proj\":2}",
            "{\"q_proj\":0}",
            "{\"q_proj\":1e9}",
            "{\"(\":2}",
            "{\"(a+)+$\":1}",
            "{\"\":3}",
            "[2]",
            "{\"q_proj\":-1}",
            "{\".*\":4294967297}",
            "{\"(?=q)\":2}",
            "{\"q_proj\":2,\"q_proj\":3}",
            "{\"x{1000}{1000}\":1}",
        ],
    ),
    (
        "alpha_pattern",
        &[
            "{}",
            "{\".*\":2.5}",
            "{\".*\":0}",
            "{\".*\":-1}",
            "{\".*\":1e308}",
            "{\".*\":1e-308}",
            "{\"[\":1}",
            "null",
            "{\".*\":\"8\"}",
        ],
    ),
    (
        "target_modules",
        &[
            "\".*\"",
            "\"all-linear\"",
            "\"\"",
            "[]",
            "[\"\"]",
            "[\"lm_head\"]",
            "\".*_proj\"",
            "\"(?!x).*\"",
            "\"(\"",
            "\"(.*)*(.*)*(.*)*x\"",
            "\"(\\\\w{1,1000}){1,1000}\"",
            "\"\\\\1\"",
            "[\"q_proj\",\"q_proj\"]",
            "[1]",
            "{\"a\":1}",
            "\"(?i).*Q_PROJ\"",
            "\"^model\\\\.layers\\\\.[01]\\\\..*$\"",
            "\"\\\\p{L}*\\\\.q_proj\"",
            "[\"q_proj\",null]",
        ],
    ),
    (
        "layers_to_transform",
        &["0", "[0]", "[0,1]", "[1,0,1]", "[]", "[2]", "[-1]", "[1e9]", "4294967296", "\"0\"", "[[0]]"],
    ),
    ("layers_pattern", &["\"layers\"", "[\"layers\"]", "\"h\"", "[]", "\"(\"", "1"]),
    ("exclude_modules", &["[]", "[\"q_proj\"]", "\".*\"", "\"(\"", "[\"\"]", "\"q_proj\""]),
    ("r", &["0", "1", "256", "257", "4294967296", "-1", "1.0", "\"4\"", "null", "1e9"]),
    ("lora_alpha", &["0", "-1", "1e308", "1e39", "1e-300", "\"8\"", "null", "true", "1e999"]),
    ("bias", &["\"all\"", "\"lora_only\"", "\"none\"", "null", "1"]),
    ("lora_bias", &["true", "false", "null"]),
    ("modules_to_save", &["[\"lm_head\"]", "[]", "null", "\"lm_head\""]),
    (
        "init_lora_weights",
        &["\"pissa\"", "\"gaussian\"", "\"olora\"", "\"loftq\"", "false", "null", "\"pissa_niter_4\"", "1"],
    ),
    ("peft_type", &["\"LORA\"", "\"IA3\"", "\"lora\"", "null", "1", "\"ADALORA\""]),
    ("fan_in_fan_out", &["true", "false", "null", "0"]),
    ("layer_replication", &["[[0,2]]", "[]", "null"]),
    ("alora_invocation_tokens", &["[1]", "[1,261,1]", "[]", "null", "[262]", "[-1]", "[1e9]", "[\"1\"]", "1"]),
    ("target_parameters", &["[\"w\"]", "[]"]),
    ("trainable_token_indices", &["[1]", "{\"embed\":[1]}", "[]"]),
    (
        "auto_mapping",
        &["{\"parent_library\":\"os\"}", "{\"parent_library\":\"transformers.models.llama\"}", "{}", "[1]", "1"],
    ),
    ("use_qalora", &["true"]),
    ("eva_config", &["{\"rho\":2}", "{}", "1"]),
    ("use_tomorrow", &["true", "false"]),
    ("megatron_config", &["{\"a\":1}", "{}"]),
    (
        "tenon.base_digest",
        &["\"0000000000000000000000000000000000000000000000000000000000000000\"", "\"tiny\"", "null"],
    ),
];

fn set_option(config: &mut Json, draw: &mut Draw<'_>) {
    let (key, values) = draw.pick(OPTIONS);
    let value = match draw.below(8) {
        6 => Json::Number(draw.number()),
        7 => Json::any(draw),
        _ => Json::Raw(draw.pick(values).into()),
    };
    config.set(key, value);
}

/// Names, shapes and types that do not fit; tensors too few or too many.
fn misplace(tensors: &mut Vec<Tensor>, draw: &mut Draw<'_>) {
    let at = draw.below(tensors.len());
    let other = tensors[draw.below(tensors.len())].clone();
    let tensor = &mut tensors[at];
    match draw.below(14) {
        0 => drop(tensors.remove(at)),
        1 => tensors.push(other),
        2 => tensor.name = other.name,
        3 => {
            tensor.name = tensor.name.replace(
                "layers.0",
                draw.pick(&["layers.00", "layers.2", "layers.-1", "layers.18446744073709551616", "layers."]),
            )
        }
        4 => {
            tensor.name = tensor
                .name
                .replace("base_model.model.", draw.pick(&["", "base_model.", "base_model.model.base_model.model."]))
        }
        5 => {
            tensor.name = tensor.name.replace(".weight", draw.pick(&[".bias", "", ".default.weight", ".weight.weight"]))
        }
        6 => tensor.name = tensor.name.replace("_proj", draw.pick(&["_proj.base_layer", "", "_proj\0", "_PROJ"])),
        7 => tensor.name = tensor.name.replace("self_attn", "mlp"),
        8 => tensor.shape.reverse(),
        9 => tensor.shape = vec![tensor.shape.iter().product()],
        10 => tensor.shape.push(1),
        11 => {
            tensor.dtype = "F32".into();
            tensor.data.resize(tensor.shape.iter().product::<u64>() as usize * 4, 0);
        }
        12 => {
            let extra =
                ["base_model.model.lm_head.lora_A.weight", "base_model.model.model.embed_tokens.weight", "a", ""];
            tensors.push(Tensor { name: draw.pick(&extra).into(), ..other });
        }
        _ => tensors.clear(),
    }
}

/// NaN, infinity, zeros and magnitudes beyond what training makes.
fn poison(tensors: &mut [Tensor], draw: &mut Draw<'_>) {
    let at = draw.below(tensors.len());
    let Some(tensor) = tensors.get_mut(at) else { return };
    let width = if tensor.dtype == "F32" { 4 } else { 2 };
    let patterns: [&[u8]; 7] = [
        &f32::NAN.to_le_bytes(),
        &f32::INFINITY.to_le_bytes(),
        &f32::MAX.to_le_bytes(),
        &1e-45f32.to_le_bytes(),
        &[0; 4],
        &(-1.0f32).to_le_bytes(),
        &1e6f32.to_le_bytes(),
    ];
    let pattern = draw.pick(&patterns);
    // The upper half of an f32 is a bf16; as f16 it is something else, which is as good.
    let pattern = &pattern[4 - width..];
    let count = tensor.data.len() / width;
    let (first, values) = match draw.below(3) {
        0 => (draw.below(count), 1),
        1 => (count.saturating_sub(1), 1),
        _ => (0, count),
    };
    for chunk in tensor.data.chunks_exact_mut(width).skip(first).take(values) {
        chunk.copy_from_slice(pattern);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_bytes_the_adapter_is_a_plain_one() {
        let files = adapter(&mut Draw::new(&[]), &Sizes::TINY);
        let config = String::from_utf8(files.config).unwrap();
        assert_eq!(config, r#"{"peft_type":"LORA","r":1,"lora_alpha":8,"target_modules":["q_proj"]}"#);
        assert_eq!(files.weights.len() % 4, 0);
    }

    #[test]
    fn values_of_each_type_are_near_each_other() {
        for value in [0.03f32, -0.002, 1.5] {
            let bf16 = encode(value, "BF16");
            let back = f32::from_bits(u32::from(u16::from_le_bytes([bf16[0], bf16[1]])) << 16);
            assert!((back - value).abs() < value.abs() / 100.0);
            let f16 = encode(value, "F16");
            let bits = u32::from(u16::from_le_bytes([f16[0], f16[1]]));
            let (exponent, mantissa) = ((bits >> 10) & 0x1f, bits & 0x3ff);
            let back = (1.0 + mantissa as f32 / 1024.0) * 2f32.powi(exponent as i32 - 15);
            assert!((back - value.abs()).abs() < value.abs() / 100.0, "{value} {back}");
        }
    }
}
