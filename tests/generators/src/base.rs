//! A base of a few kilobytes, as a GGUF file of the `llama` architecture with a byte-level tokenizer and a chat template:
//! everything that a real one has, so that a whole host opens on it in milliseconds. Its weights mean nothing. Not here:
//! bases that are malformed; the operator's own file is not hostile.

use types::Module;

/// The sizes of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Sizes {
    /// The smallest in which q, k, gate and down have shapes of their own.
    pub const TINY: Self = Self { layers: 2, hidden: 64, intermediate: 96, heads: 2, kv_heads: 1, head_dim: 32 };

    /// (inputs, outputs) of a linear module.
    #[must_use]
    pub const fn module_shape(&self, module: Module) -> (usize, usize) {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match module {
            Module::Q => (self.hidden, queries),
            Module::K | Module::V => (self.hidden, keys),
            Module::O => (queries, self.hidden),
            Module::Gate | Module::Up => (self.hidden, self.intermediate),
            Module::Down => (self.intermediate, self.hidden),
        }
    }
}

/// Kinds of metadata values.
const UINT32: u32 = 4;
const FLOAT32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// Formats of tensors.
const F32: u32 = 0;
const Q8_0: u32 = 8;
/// Tensor data begins at a multiple of this.
const ALIGNMENT: usize = 32;
/// Kind of a token that is never printed.
const CONTROL: u32 = 3;
const SPECIAL: [&str; 4] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"];
/// With tools and calls, in the shapes that templates expect.
const CHAT_TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}\
    <|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
    {% for call in m.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}\
    <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A GGUF file of these sizes.
#[must_use]
pub fn base_file(sizes: &Sizes) -> Vec<u8> {
    base_file_with(sizes, CHAT_TEMPLATE)
}

/// The same with another chat template.
pub fn base_file_with(sizes: &Sizes, chat_template: &str) -> Vec<u8> {
    file_of(sizes, chat_template, false)
}

/// As [`base_file`] with its matrices in Q8_0: rows must be of whole blocks of 32.
#[must_use]
pub fn quantised_base_file(sizes: &Sizes) -> Vec<u8> {
    file_of(sizes, CHAT_TEMPLATE, true)
}

fn file_of(sizes: &Sizes, chat_template: &str, is_quantised: bool) -> Vec<u8> {
    let tokens = tokens();
    let (mut metadata, mut entries) = (Vec::new(), 0u64);
    let mut put = |key: &str, kind: u32, value: Vec<u8>| {
        metadata.extend([text(key), kind.to_le_bytes().to_vec(), value].concat());
        entries += 1;
    };
    let number = |value: usize| (value as u32).to_le_bytes().to_vec();
    put("general.architecture", STRING, text("llama"));
    put("general.name", STRING, text("tiny"));
    put("llama.block_count", UINT32, number(sizes.layers));
    put("llama.embedding_length", UINT32, number(sizes.hidden));
    put("llama.feed_forward_length", UINT32, number(sizes.intermediate));
    put("llama.attention.head_count", UINT32, number(sizes.heads));
    put("llama.attention.head_count_kv", UINT32, number(sizes.kv_heads));
    put("llama.attention.key_length", UINT32, number(sizes.head_dim));
    put("llama.context_length", UINT32, number(512));
    put("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5f32.to_le_bytes().to_vec());
    put("tokenizer.ggml.model", STRING, text("gpt2"));
    put("tokenizer.ggml.pre", STRING, text("smollm"));
    put("tokenizer.ggml.tokens", ARRAY, array(STRING, tokens.iter().map(|token| text(token))));
    let kinds = tokens.iter().map(|token| if SPECIAL.contains(&token.as_str()) { CONTROL } else { 1 });
    put("tokenizer.ggml.token_type", ARRAY, array(UINT32, kinds.map(|kind| kind.to_le_bytes().to_vec())));
    put("tokenizer.ggml.merges", ARRAY, array(STRING, ["h e", "l l"].iter().map(|merge| text(merge))));
    put("tokenizer.ggml.bos_token_id", UINT32, number(1));
    put("tokenizer.ggml.eos_token_id", UINT32, number(2));
    put("tokenizer.chat_template", STRING, text(chat_template));
    let tensors = tensors(sizes, tokens.len());
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(entries.to_le_bytes());
    file.extend(metadata);
    let mut data = Vec::new();
    for (index, (name, shape)) in tensors.iter().enumerate() {
        file.extend(text(name));
        file.extend((shape.len() as u32).to_le_bytes());
        // GGUF writes the fastest dimension first.
        shape.iter().rev().for_each(|size| file.extend((*size as u64).to_le_bytes()));
        let is_norm = shape.len() == 1;
        let kind = if is_quantised && !is_norm { Q8_0 } else { F32 };
        file.extend(kind.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        let values = values(index as u64, shape.iter().product(), is_norm);
        if kind == Q8_0 {
            let values: Vec<f32> = values.collect();
            for block in values.chunks(32) {
                // A scale of 2⁻⁸ in f16.
                data.extend(0x1c00u16.to_le_bytes());
                data.extend(block.iter().map(|value| ((value * 256.0).round() as i8) as u8));
            }
        } else {
            data.extend(values.flat_map(f32::to_le_bytes));
        }
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend(data);
    file
}

/// Special tokens, a token for each byte in the byte-level alphabet, two merged ones.
fn tokens() -> Vec<String> {
    let is_printed = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100u32..;
    let bytes = (0..=u8::MAX).map(|byte| {
        let character = if is_printed(byte) { Some(u32::from(byte)) } else { others.next() };
        character.and_then(char::from_u32).map(String::from).unwrap_or_default()
    });
    let special = SPECIAL.iter().map(|token| (*token).to_owned());
    special.chain(bytes).chain(["he".to_owned(), "ll".to_owned()]).collect()
}

/// Names and shapes, rows first.
fn tensors(sizes: &Sizes, vocabulary: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), vec![vocabulary, sizes.hidden]),
        ("output_norm.weight".to_owned(), vec![sizes.hidden]),
    ];
    for layer in 0..sizes.layers {
        for norm in ["attn_norm", "ffn_norm"] {
            tensors.push((format!("blk.{layer}.{norm}.weight"), vec![sizes.hidden]));
        }
        let names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        for (module, name) in Module::ALL.into_iter().zip(names) {
            let (inputs, outputs) = sizes.module_shape(module);
            tensors.push((format!("blk.{layer}.{name}.weight"), vec![outputs, inputs]));
        }
    }
    tensors
}

/// Norms of about 1, other weights of about ±0.1.
fn values(seed: u64, count: usize, is_norm: bool) -> impl Iterator<Item = f32> {
    let bytes = crate::seeded_bytes(seed, count).into_iter();
    bytes.map(move |byte| (f32::from(byte) / 127.5 - 1.0) * 0.2 + if is_norm { 1.0 } else { 0.0 })
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array(kind: u32, values: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = [kind.to_le_bytes().as_slice(), &(values.len() as u64).to_le_bytes()].concat();
    values.for_each(|value| bytes.extend(value));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_distinct_and_the_file_is_small() {
        let mut tokens = tokens();
        assert_eq!(tokens.len(), 262);
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), 262);
        assert!(base_file(&Sizes::TINY).len() < 400_000);
    }
}
