"""Makes tests/fixtures/signatures: a small adapter for the demo base, signed by the `model-signing` package of PyPI with a
key that is thrown away, its public key, and the public key of somebody else.

    python -m venv VENV && VENV/bin/pip install -r tests/signatures/requirements.txt
    VENV/bin/python tests/signatures/make.py

Run once, by hand; the tests read what it wrote. The package itself is asked in the end whether the signature holds.
"""

import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "signatures"
HIDDEN = 576


def weights() -> bytes:
    """Rank 1 on q of the first layer, f16, waves for values."""
    header, data = {}, b""
    for factor, shape in [("A", [1, HIDDEN]), ("B", [HIDDEN, 1])]:
        values = struct.pack(f"<{HIDDEN}e", *(0.01 * math.sin(at + len(data)) for at in range(HIDDEN)))
        name = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{factor}.weight"
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def model_signing(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "model_signing", *arguments], check=True)


def main() -> None:
    shutil.rmtree(OUT / "adapter", ignore_errors=True)
    adapter = OUT / "adapter"
    adapter.mkdir(parents=True)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 2, "bias": "none",
        "target_modules": ["model.layers.0.self_attn.q_proj"],
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (adapter / "adapter_model.safetensors").write_bytes(weights())
    (adapter / "README.md").write_text("An adapter of waves, to be signed.\n")
    signer, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (OUT / "signer.pub").write_bytes(public_pem(signer))
    (OUT / "other.pub").write_bytes(public_pem(other))
    signature = str(adapter / "model.sig")
    with tempfile.NamedTemporaryFile(suffix=".pem") as private:
        private.write(signer.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ))
        private.flush()
        model_signing("sign", "key", str(adapter), "--private_key", private.name, "--signature", signature)
    model_signing("verify", "key", str(adapter), "--signature", signature, "--public_key", str(OUT / "signer.pub"))


if __name__ == "__main__":
    main()
