"""Makes tests/fixtures/bases: a tiny llama and a tiny qwen3 with random weights, each as safetensors and as GGUF, an
adapter for each, and what transformers and PEFT compute with them.

    python -m venv VENV && VENV/bin/pip install -r tests/bases/requirements.txt
    VENV/bin/python tests/bases/make.py

Run once, by hand; the tests read what it wrote. Every weight is a whole number of at most 7 bits times a power of two,
with the largest in each block of 32, so that bf16, f16, f32 and GGUF's Q8_0 hold exactly the same model: whatever the
form, the logits must agree with the goldens to rounding.
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "bases"
VOCABULARY = 288
GREEDY_TOKENS = 24
BLOCK = 32

TEXT = """A tenon is the part that slots into a joint. The base is the joint; adapters and plugins slot in. The joiner cut
the tenon in 1789, and it's there still: we've measured it (12.75 mm), they'll measure it again. One resident base model,
thousands of skills. The rest of the timber was oak, the pegs were of ash, and the roof didn't leak in 2000, 2001, 2002, 2003, 2004, 2005, 2006 or 2007."""

PROMPTS = {
    "one": "A",
    "words": "The tenon is the part that",
    "unlike": "It's 1789:  nai\u0308ve cafe\u0301 — 日本語 🙂\n\n\tend of 20031  ",
    "long": TEXT,
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a tenon?"},
    {"role": "assistant", "content": "A part that slots in."},
    {"role": "user", "content": " And the base? "},
]

# The way in which Llama 3 and Qwen 2 cut text (from their tokenizer.json).
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"\p{N}{1,3}" + REST
QWEN2 = CONTRACTIONS + r"\p{N}" + REST

LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
# With what Qwen's own templates ask of an engine: namespaces, lists turned round, Python's string methods.
QWEN_TEMPLATE = """{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last < 0 and message.role == "user" and message.content is string %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content.rstrip('\\n') + ('!' if loop.index0 == ns.last else '') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def tokenizer(pattern, special, added, bos, eos, template, normalizer):
    made = Tokenizer(models.BPE(ignore_merges=bos is not None))
    made.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special) - len(added),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    if bos:
        # As Llama 3 has many: a token that no merges make, found because it is a whole piece.
        about = json.loads(made.to_str())
        merges = about["model"]["merges"]
        about["model"]["merges"] = [merge for merge in merges if "".join(merge) != "Ġthe"]
        assert len(about["model"]["merges"]) == len(merges) - 1
        made = Tokenizer.from_str(json.dumps(about))
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos)
    fast.chat_template = template
    assert len(fast) == VOCABULARY
    return fast


def fill(model, generator):
    """Weights that all forms hold exactly; norms near 1."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.copy_(1 + torch.randint(-32, 33, weight.shape, generator=generator) / 64)
            else:
                whole = torch.randint(-126, 127, weight.shape, generator=generator)
                whole.view(-1, BLOCK)[:, 5] = 127
                weight.copy_(whole / 256)


def goldens(model, prompts):
    logits, greedy = {}, {}
    for name, ids in prompts.items():
        tokens = list(ids)
        for step in range(GREEDY_TOKENS):
            with torch.no_grad():
                last = model(torch.tensor([tokens])).logits[0, -1]
            if step == 0:
                logits[name] = last.clone()
            tokens.append(int(last.argmax()))
        greedy[name] = tokens[len(ids):]
    return logits, greedy


def write_gguf(path, folder, model, fast, pre):
    config, arch = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"tiny {arch}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if arch == "llama":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_vocab_size(config.vocab_size)
    write_vocabulary(writer, fast, config, pre)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(rope, config.head_dim))
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = weight.float().numpy()
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = permuted(data, heads)
        ours = names.get_name(name, try_suffixes=(".weight",))
        if data.ndim == 1:
            writer.add_tensor(ours, data)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        blocks = gguf.quants.quantize(data, kind)
        assert (gguf.quants.dequantize(blocks, kind) == data).all(), name
        writer.add_tensor(ours, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(writer, fast, config, pre):
    kinds = {}
    for token in fast.added_tokens_decoder.values():
        kinds[token.content] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    by_id = {number: token for token, number in fast.get_vocab().items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(config.vocab_size)]
    padded = [gguf.TokenType.UNUSED if number not in by_id else kinds.get(token, gguf.TokenType.NORMAL)
              for number, token in enumerate(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(padded)
    merges = json.loads(fast.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    if fast.bos_token_id is not None:
        writer.add_bos_token_id(fast.bos_token_id)
    writer.add_eos_token_id(fast.eos_token_id)
    writer.add_chat_template(fast.chat_template)


def permuted(data, heads):
    """The rows of q and k as llama.cpp's convert_hf_to_gguf.py moves them."""
    return data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def llama3_divisors(rope, head_dim):
    """As convert_hf_to_gguf.py computes them."""
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * numpy.pi * rope["rope_theta"] ** (2 * pair / head_dim)
        old = rope["original_max_position_embeddings"]
        if wavelength < old / rope["high_freq_factor"]:
            divisors.append(1)
        elif wavelength > old / rope["low_freq_factor"]:
            divisors.append(rope["factor"])
        else:
            smooth = (old / wavelength - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return numpy.array(divisors, dtype=numpy.float32)


def make_adapter(folder, name, base, generator):
    """Rank 2 on every linear module; B is not zero."""
    config = LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for place, weight in adapted.named_parameters():
            if "lora_" in place:
                weight.copy_(torch.randint(-127, 128, weight.shape, generator=generator) / (1024 if "lora_B" in place else 512))
    adapted.save_pretrained(folder)
    # Without the folder that the base lay in here.
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def make(name, model, fast, eos, pre, shard):
    generator = torch.Generator().manual_seed(len(name))
    fill(model, generator)
    folder = OUT / name
    model.generation_config = GenerationConfig(eos_token_id=eos, bos_token_id=fast.bos_token_id)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    fast.save_pretrained(folder, save_jinja_files=name != "llama")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    write_gguf(OUT / f"{name}.gguf", folder, reference, fast, pre)
    prompts = {key: fast.encode(text, add_special_tokens=False) for key, text in PROMPTS.items()}
    chat = fast.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    prompts["chat"] = fast.encode(chat, add_special_tokens=False)
    logits, greedy = goldens(reference, prompts)
    make_adapter(OUT / f"{name}-adapter", name, reference, generator)
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    adapted = PeftModel.from_pretrained(fresh, OUT / f"{name}-adapter").eval()
    adapted_logits, adapted_greedy = goldens(adapted, prompts)
    difference = max((adapted_logits[key] - logits[key]).abs().max() for key in logits)
    print(name, "logits of size", max(row.abs().max() for row in logits.values()), "the adapter moves them by", difference)
    tensors = {f"base/{key}": row for key, row in logits.items()}
    save_file(tensors | {f"adapter/{key}": row for key, row in adapted_logits.items()}, OUT / f"{name}-logits.safetensors")
    return {
        "eos": eos,
        "chat": chat,
        "prompts": {
            key: {"text": chat if key == "chat" else PROMPTS[key], "ids": ids, "decoded": fast.decode(ids, skip_special_tokens=True,
                  clean_up_tokenization_spaces=False), "greedy": greedy[key], "adapted": adapted_greedy[key]}
            for key, ids in prompts.items()
        },
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != "README.md":
            old.unlink()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    llama_tokens = tokenizer(LLAMA3, special, [], special[0], "<|eot_id|>", LLAMA_TEMPLATE, None)
    ids = llama_tokens.convert_tokens_to_ids
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    llama = LlamaForCausalLM(LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, vocab_size=VOCABULARY, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters=rope, bos_token_id=ids(special[0]), eos_token_id=ids("<|eot_id|>"),
    ))
    about = {"llama": make("llama", llama, llama_tokens, [ids("<|eot_id|>"), ids("<|end_of_text|>")], "llama-bpe", "5GB")}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    qwen_tokens = tokenizer(QWEN2, special, ["<think>", "</think>"], None, "<|im_end|>", QWEN_TEMPLATE, normalizers.NFC())
    ids = qwen_tokens.convert_tokens_to_ids
    # Heads that are wider together than the stream, an output layer of its own, more rows than tokens: as Qwen3 has it.
    qwen3 = Qwen3ForCausalLM(Qwen3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=VOCABULARY + 8, max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}, eos_token_id=ids("<|im_end|>"),
    ))
    about["qwen3"] = make("qwen3", qwen3, qwen_tokens, [ids("<|im_end|>"), ids("<|endoftext|>")], "qwen2", "60KB")
    about["messages"] = MESSAGES
    (OUT / "golden.json").write_text(json.dumps(about, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
