"""Makes tests/fixtures/alora: an activated LoRA for the tiny llama of tests/fixtures/bases, and what PEFT computes with it.

    python -m venv VENV && VENV/bin/pip install -r tests/bases/requirements.txt
    VENV/bin/python tests/bases/alora.py

Run once, by hand, after make.py; the tests read what it wrote. Where the adapter begins to act is PEFT's own finding, from
`alora_invocation_tokens` and the prompt.
"""

import json
import random
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.variants import calculate_alora_offsets
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
BASE = FIXTURES / "bases" / "llama"
PLAIN = FIXTURES / "bases" / "llama-adapter"
OUT = FIXTURES / "alora"
GREEDY_TOKENS = 24
# It can overlap itself.
INVOCATION = [70, 71, 70]


def words(count, seed):
    """Ordinary tokens, none of which is in the invocation."""
    return [random.Random(seed * 1000 + place).randrange(80, 280) for place in range(count)]


PROMPTS = {
    "at-the-start": INVOCATION + words(20, 1),
    "in-the-middle": words(19, 2) + INVOCATION + words(11, 3),
    "on-a-block": words(32, 4) + INVOCATION + words(2, 5),
    "twice": words(6, 6) + INVOCATION + words(17, 7) + INVOCATION + words(5, 8),
    "overlapping": words(9, 9) + INVOCATION + INVOCATION[1:] + words(3, 10),
    "at-the-end": words(21, 11) + INVOCATION,
    "nothing-else": INVOCATION,
    "absent": words(25, 12),
    "cut-short": words(12, 13) + INVOCATION[:2],
    "long": words(140, 14) + INVOCATION + words(30, 15),
}


def make_adapter():
    """Rank 2 on every linear module; B is not zero."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", alora_invocation_tokens=INVOCATION
    )
    adapted = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(70)
    with torch.no_grad():
        for place, weight in adapted.named_parameters():
            if "lora_" in place:
                whole = torch.randint(-127, 128, weight.shape, generator=generator)
                weight.copy_(whole / (1024 if "lora_B" in place else 512))
    adapted.save_pretrained(OUT / "adapter")
    path = OUT / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "llama"
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=1) + "\n")
    (OUT / "adapter" / "README.md").unlink(missing_ok=True)


def computed(model, ids, **more):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **more).logits[0]


def main():
    shutil.rmtree(OUT / "adapter", ignore_errors=True)
    OUT.mkdir(parents=True, exist_ok=True)
    make_adapter()
    fresh = lambda: AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, attn_implementation="eager").eval()
    base, adapted = fresh(), PeftModel.from_pretrained(fresh(), OUT / "adapter").eval()
    # Beside an ordinary adapter: PEFT finds no offsets for two at once, but applies those that it is given.
    both = PeftModel.from_pretrained(fresh(), OUT / "adapter").eval()
    both.load_adapter(PLAIN, "plain")
    both.base_model.set_adapter(["default", "plain"])
    prompts, logits = {}, {}
    for name, ids in PROMPTS.items():
        offset = calculate_alora_offsets(adapted.peft_config, "default", torch.tensor([ids]))[0]
        start = None if offset is None else len(ids) - offset
        plain, ours = computed(base, ids), computed(adapted, ids)
        together = computed(both, ids, alora_offsets=[offset])
        before = len(ids) if start is None else start
        assert (plain[:before] - ours[:before]).abs().max().item() < 1e-5 if before else True, name
        moved = (plain[before:] - ours[before:]).abs().max().item() if before < len(ids) else 0.0
        print(name, "begins at", start, "and moves the logits by", moved)
        assert (moved > 0.1) == (start is not None), name
        # Without an end-of-sequence token, to the full length.
        output = adapted.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=GREEDY_TOKENS, min_new_tokens=GREEDY_TOKENS, pad_token_id=0, eos_token_id=None,
        )[0, len(ids):].tolist()
        assert len(output) == GREEDY_TOKENS, name
        at = sorted({0, len(ids) - 1} | ({start - 1, start} if start else set()))
        logits[f"alora/{name}"] = ours[at].contiguous()
        logits[f"both/{name}"] = together[-1:].contiguous()
        prompts[name] = {"ids": ids, "start": start, "logits_at": at, "greedy": output}
    save_file(logits, OUT / "logits.safetensors")
    golden = {"invocation_tokens": INVOCATION, "prompts": prompts}
    (OUT / "golden.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
