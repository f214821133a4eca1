"""What oras does with a registry, for `tests/it/registry.rs`: `push FILE CONFIG REFERENCE`, run in the files' folder, or
`pull REFERENCE FOLDER`, which prints the manifest and the file's name. Not here: what is expected."""

import json
import sys

import oras.client

LAYER = "application/wasm"
CONFIG = "application/vnd.wasm.config.v0+json"


def main() -> None:
    client = oras.client.OrasClient(insecure=True)
    if sys.argv[1] == "push":
        file, config, reference = sys.argv[2:]
        answer = client.push(target=reference, files=[f"{file}:{LAYER}"], manifest_config=f"{config}:{CONFIG}")
        answer.raise_for_status()
        print(json.dumps({"status": answer.status_code}))
    else:
        reference, folder = sys.argv[2:]
        files = client.pull(target=reference, outdir=folder)
        print(json.dumps({"manifest": client.get_manifest(reference), "files": files}))


main()
