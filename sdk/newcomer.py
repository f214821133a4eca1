#!/usr/bin/env python3
"""The newcomer's path in each language, on a real host: `tenon new`, `build`, `deploy`, `invoke`, each timed. Then the agents among the
examples that `sdk/check.py` has built, on the same host.

    python3 sdk/newcomer.py TENON BASE [rust] [python] [js] [ts] [c]        all of them unless some are named

TENON is the program, BASE the model that it serves. The tools are those that `sdk/check.py` installed below `target/sdk`: this shows
the path, not the downloads. What cannot be done here (no Node, no wit-bindgen) is skipped, and said. Ends with 1 if something failed.
Not here: whether the SDKs are right, which `sdk/check.py` checks.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import check
from check import COMPONENTS, LANGUAGES, NODE, PYTHON, ROOT, RUST_TARGET, SDK, TARGET, Failed, Report, Skipped

STAMP = ".tenon-installed"
# An unoptimised host on a machine that has others to serve starts an interpreter in seconds, and compiles one in minutes.
CONFIG = """
[limits]
plugin_start_cpu_ms_max = 30000
plugin_call_cpu_ms_max = 30000
plugin_call_wall_ms_max = 60000
plugin_run_cpu_ms_max = 30000
plugin_compile_cpu_seconds_max = 600
plugin_compile_wall_ms_max = 600000
"""
READY_SECONDS_MAX = 120
# The example that is an agent, by the language that it is written in.
AGENTS = {"python": "python-best-of.wasm", "ts": "js-best-of.wasm"}
SLOW_AGENTS = {"python"}
# More than a request may have sessions at once (`plugin_sessions_max`), so that each must be given back.
DRAWS = 9
DRAW_TOKENS = 4


@contextlib.contextmanager
def host(tenon: Path, base: Path, data: Path) -> Iterator[dict[str, str]]:
    """A host for development; what its clients need in their environment."""
    config = data.parent / "host.toml"
    config.write_text(CONFIG)
    command = [tenon, "serve", "--json", "--dev", "--listen", "127.0.0.1:0", "--log", "warn"]
    command += ["--config", config, "--base", base, "--data", data]
    with subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        # A host that says nothing is not waited for either.
        timer = threading.Timer(READY_SECONDS_MAX, child.kill)
        timer.start()
        try:
            url, started = "", time.monotonic()
            while child.stdout and (line := child.stdout.readline()):
                event = json.loads(line)
                url = event.get("url", url)
                if event["event"] == "ready":
                    break
                if time.monotonic() - started > READY_SECONDS_MAX:
                    raise Failed("the host does not become ready")
            if child.poll() is not None or not url:
                raise Failed("the host did not start; what it said is above")
            timer.cancel()
            yield {"TENON_URL": url, "TENON_KEY_FILE": str(data / "dev.key")}
        finally:
            timer.cancel()
            child.terminate()
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()


def with_python(folder: Path) -> dict[str, str]:
    """The project's environment is the one that `sdk/check.py` filled."""
    if not PYTHON.is_file():
        raise Skipped("its tools are not there: run `python3 sdk/check.py python`")
    (folder / ".venv").symlink_to(PYTHON.parents[1])
    shutil.copy(folder / "requirements.txt", PYTHON.parents[1] / STAMP)
    return {}


def with_node(folder: Path) -> dict[str, str]:
    """The project's packages are those that `sdk/check.py` installed."""
    modules = NODE / "node_modules"
    if not (modules / "tenon-sdk").is_dir():
        raise Skipped("its tools are not there: run `python3 sdk/check.py js`")
    (folder / "node_modules").symlink_to(modules)
    shutil.copy(folder / "package.json", modules / STAMP)
    command = modules / ".bin" / "tenon-sdk"
    command.unlink(missing_ok=True)
    command.symlink_to(Path("..") / "tenon-sdk" / "bin" / "tenon-sdk.js")
    return {}


def with_c(folder: Path) -> dict[str, str]:
    """Zig is in the environment for Python; wit-bindgen is where `sdk/check.py` finds it."""
    with_python(folder)
    return {"WIT_BINDGEN": check.wit_bindgen(), "ZIG_GLOBAL_CACHE_DIR": str(TARGET / "zig")}


def with_rust(folder: Path) -> dict[str, str]:
    """Locked versions of plugins/, a target folder that is kept, and a compiler that knows the target."""
    if shutil.which("cargo") is None:
        raise Skipped("there is no cargo")
    shutil.copy(ROOT / "plugins" / "Cargo.lock", folder)
    try:
        exports = check.run("bash", ROOT / "scripts" / "guest-toolchain.sh", RUST_TARGET)
    except Failed as error:
        raise Skipped(f"no toolchain for {RUST_TARGET}: {error}") from error
    pairs = [line.removeprefix("export ").split("=", 1) for line in exports.splitlines() if line.startswith("export ")]
    return {"CARGO_TARGET_DIR": str(TARGET / "rust-template"), **{name: value.strip("'\"") for name, value in pairs}}


TOOLS = {"rust": with_rust, "python": with_python, "js": with_node, "ts": with_node, "c": with_c}


def walk(tenon: Path, language: str, into: Path, client: dict[str, str]) -> str:
    """The four commands; what each took."""
    name = f"hello-{language}"
    times = []

    def step(what: str, *arguments: str | Path, env: dict[str, str] | None = None) -> str:
        started = time.monotonic()
        said = check.run(tenon, what, *arguments, env={**client, **(env or {})})
        times.append(f"{what} {time.monotonic() - started:.1f} s")
        return said

    step("new", name, "--lang", language, "--sdk", SDK, "--into", into)
    folder = into / name
    component = folder / "plugin.wasm"
    step("build", folder, env=TOOLS[language](folder))
    step("deploy", name, "--plugin", component)
    said = step("invoke", name, "What is the ocean?", "--max-tokens", "8")
    if "receipt rcpt_" not in said:
        raise Failed(f"an answer has a receipt; this came: {said}")
    return f"{', '.join(times)}; {component.stat().st_size / 1000:.0f} KB"


def agent(tenon: Path, language: str, into: Path, client: dict[str, str]) -> str:
    """Deploys the example `best-of`, asks it, and looks at what it says and at its receipt."""
    name = f"best-of-{language}"
    component = COMPONENTS / AGENTS[language]
    if not component.is_file():
        raise Skipped(f"there is no {component.name}: run `python3 sdk/check.py {language}`")
    manifest = into / f"{name}.json"
    config = {"draws": str(DRAWS), "tokens": str(DRAW_TOKENS)}

    def deployed(grants: dict[str, bool]) -> None:
        manifest.write_text(json.dumps({"grants": grants, "config": config}))
        check.run(tenon, "deploy", name, "--plugin", component, "--manifest", manifest, "--promote", env=client)

    def asked() -> str:
        return check.run(tenon, "--json", "invoke", name, "What is the ocean?", env=client)

    deployed({})
    try:
        raise Failed(f"nothing is granted, and yet it answered {asked()}")
    except Failed as refused:
        if "grants.generations" not in str(refused):
            raise
    deployed({"generations": True})
    started = time.monotonic()
    answer = json.loads(asked())
    seconds = time.monotonic() - started
    metadata, usage = answer["metadata"], answer["usage"]
    if metadata["draws"] != str(DRAWS) or not int(metadata["mean_logprob_thousandths"]) < 0 or not answer["output"]:
        raise Failed(f"this is not the best of {DRAWS}: {answer}")
    receipt = json.loads(check.run(tenon, "--json", "receipt", "show", answer["receipt"], env=client))["receipt"]
    generations = receipt["outcome"]["generations"]
    seeds = {one["sampling"]["seed"] for one in generations}
    if len(generations) != DRAWS or len(seeds) != DRAWS:
        raise Failed(f"{DRAWS} draws with a seed each are to be in the receipt; there are {generations}")
    if usage["completion_tokens"] != sum(one["tokens"]["completion"] for one in generations):
        raise Failed(f"the usage {usage} is not the sum of {generations}")
    return f"{DRAWS} draws in {seconds:.1f} s; {component.stat().st_size / 1000:.0f} KB"


def main() -> int:
    """Walks the paths that are asked for; 1 if one ends early."""
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    tenon, base, wanted = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3:] or list(LANGUAGES)
    report = Report()
    COMPONENTS.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="newcomer-", dir=COMPONENTS.parent) as scratch:
        os.environ.pop("TENON_SDK", None)
        with host(tenon, base, Path(scratch) / "data") as client:
            for language in wanted:
                said: list[str] = []
                with report.step(f"newcomer: {language}"):
                    said.append(walk(tenon, language, Path(scratch), client))
                print(*(f"        {line}" for line in said), sep="\n", flush=True)
            for language in (one for one in wanted if one in AGENTS):
                said = []
                with report.step(f"agent: {language}"):
                    if language in SLOW_AGENTS and language not in sys.argv[3:]:
                        raise Skipped(f"a host in the dev profile compiles it for a minute: name {language} to have it")
                    said.append(agent(tenon, language, Path(scratch), client))
                print(*(f"        {line}" for line in said), sep="\n", flush=True)
    return 1 if report.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
