"""What PEFT makes of three small adapters by `add_weighted_adapter`, dense: the expectation of host/crates/model/tests/derive.rs.

Run with torch, transformers and peft installed: `python3 tests/derive/make.py`. Writes tests/fixtures/derive. The random methods
(DARE) are not here: PEFT draws their masks from torch's generator.
"""

import json
import os
import shutil
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "fixtures" / "bases" / "llama"
OUT = ROOT / "fixtures" / "derive"

# Mixed ranks, scales, kinds and modules.
ADAPTERS = {
    "one": dict(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"]),
    "two": dict(r=5, lora_alpha=3, use_rslora=True, target_modules=["q_proj"]),
    "three": dict(r=3, lora_alpha=6, target_modules=["up_proj", "q_proj"], layers_to_transform=[1]),
}
WEIGHTS = {"one": 0.7, "two": -1.3, "three": 0.25}
# Name here: how PEFT is asked for it. 64 is the full rank of both modules; PEFT takes no larger one.
CASES = {
    "magnitude_prune": dict(combination_type="magnitude_prune_svd", density=0.4, svd_rank=64),
    "ties-total": dict(combination_type="ties_svd", density=0.4, majority_sign_method="total", svd_rank=64),
    "ties-frequency": dict(combination_type="ties_svd", density=0.4, majority_sign_method="frequency", svd_rank=64),
    "svd": dict(combination_type="svd", svd_rank=3),
    "concatenate": dict(combination_type="cat"),
}


def main():
    torch.manual_seed(20)
    base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = None
    for name, options in ADAPTERS.items():
        config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **options)
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    shutil.rmtree(OUT, ignore_errors=True)
    model.save_pretrained(OUT)
    for name in ADAPTERS:
        (OUT / name / "README.md").unlink(missing_ok=True)
        # The name of the base is the path that it was read from.
        path = OUT / name / "adapter_config.json"
        config = json.loads(path.read_text()) | {"base_model_name_or_path": None}
        path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (OUT / "README.md").unlink(missing_ok=True)
    dense = {}
    for case, options in CASES.items():
        model.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), adapter_name=case, **options)
        for path, module in model.named_modules():
            if case not in getattr(module, "lora_A", {}):
                continue
            layer = path.split("layers.")[1].split(".")[0]
            delta = module.get_delta_weight(case).detach()
            dense[f"{case}/layers.{layer}.{path.split('.')[-1]}"] = delta.contiguous()
    save_file(dense, OUT / "deltas.safetensors")
    about = {
        "made_with": {"peft": peft.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "weights": WEIGHTS,
        "cases": CASES,
    }
    (OUT / "golden.json").write_text(json.dumps(about, indent=1) + "\n")
    print(sorted(dense), os.path.getsize(OUT / "deltas.safetensors"))


main()
