#!/usr/bin/env python3
"""Checks the SDKs of languages other than the host's, their examples, and every template: unit tests, types, builds.

    python3 sdk/check.py [python] [js] [ts] [c] [rust]        all of them unless some are named

Tools are installed once, at the versions of `sdk/tools`, below `target/sdk`; components are left in `target/sdk/components`.
What cannot be checked here (no Node, no registry, no wit-bindgen) is skipped, and said. Ends with 1 if something failed.
Nothing is written outside of `target`. Not here: deploying the components (`newcomer.py`, tests).
"""

import contextlib
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

from template_files import WrongPage, template_files

ROOT = Path(__file__).resolve().parent.parent
SDK = ROOT / "sdk"
TARGET = ROOT / "target" / "sdk"
WORK = TARGET / "work"
COMPONENTS = TARGET / "components"
PYTHON = TARGET / "python" / "bin" / "python"
NODE = TARGET / "node"
STARLINGMONKEY = TARGET / "starlingmonkey"
LANGUAGES = ("python", "js", "ts", "c", "rust")
PYTHON_MIN = (3, 11, 4)
NODE_MIN = 20
# What the SDK names as the other engine for JavaScript; 385 MB, so apart from what every check needs.
STARLINGMONKEY_PACKAGES = ("@bytecodealliance/componentize-js@0.23.0", "@bytecodealliance/preview2-shim@0.25.0")
WIT_BINDGEN_VERSION = "0.63.0"
COMMAND_SECONDS_MAX = 900
COMPONENT_BYTES_MAX = 32 << 20
RUST_TARGET = "wasm32-unknown-unknown"


class Failed(Exception):
    """Something does not hold."""


class Skipped(Exception):
    """Something cannot be checked here."""


class Report:
    """What was checked, with its time."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, float, str]] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One line of the report; a failure does not keep the next one from being tried."""
        started = time.monotonic()
        result, said = "ok", ""
        try:
            yield
        except Skipped as reason:
            result, said = "skipped", str(reason)
        except (Failed, WrongPage) as reason:
            result, said = "FAILED", str(reason)
        seconds = time.monotonic() - started
        self.lines.append((result, name, seconds, said))
        print(f"{result:8}{name} ({seconds:.1f} s){': ' + said if said else ''}", flush=True)

    def failures(self) -> int:
        """How many lines failed."""
        return sum(result == "FAILED" for result, _, _, _ in self.lines)


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Runs it and returns what it wrote. Raises `Failed` with that if it fails."""
    given = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    # What an outer environment says about its own packages does not hold here.
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"):
        if env is None or name not in env:
            given.pop(name, None)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=given,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS_MAX,
        )
    except OSError as error:
        raise Failed(f"cannot start {command[0]}: {error}") from error
    except subprocess.TimeoutExpired:
        raise Failed(f"`{' '.join(map(str, command))}` took longer than {COMMAND_SECONDS_MAX} s") from None
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise Failed(f"`{' '.join(map(str, command))}` ended with {done.returncode}\n{said.strip()}")
    return said


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def copied(source: Path, to: Path) -> Path:
    """A copy of a folder, without what builds leave."""
    left = shutil.ignore_patterns("node_modules", "__pycache__", "*.egg-info", "build", "target")
    shutil.copytree(source, to, ignore=left, dirs_exist_ok=True)
    return to


def once(folder: Path, wanted: str, make: Callable[[], None]) -> None:
    """Makes a folder unless it is what is wanted. An unfinished or outdated one is made again. Raises `Skipped`."""
    stamp = folder / "installed"
    wanted = f"{wanted}\n{folder}\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    fresh(folder)
    try:
        make()
    except Failed as error:
        raise Skipped(f"the tools cannot be installed (is the registry reachable?): {error}") from error
    stamp.write_text(wanted)


# Tools.


def python_tools() -> None:
    """`target/sdk/python`: an environment with what `sdk/tools/requirements.txt` names."""
    if sys.version_info < PYTHON_MIN:
        raise Skipped(f"needs Python {'.'.join(map(str, PYTHON_MIN))} or newer; this is {sys.version.split()[0]}")
    pins = SDK / "tools" / "requirements.txt"

    def make() -> None:
        try:
            venv.create(PYTHON.parents[1], with_pip=True)
        except subprocess.CalledProcessError as error:
            raise Failed(f"no virtual environment can be made (on Debian: apt-get install python3-venv): {error}") from error
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
        run(PYTHON, *pip, "--requirement", pins)

    once(PYTHON.parents[1], sys.version + pins.read_text(), make)


def node_tools() -> None:
    """`target/sdk/node`: what `sdk/tools/package-lock.json` names, and the SDK as `npm pack` packs it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Skipped(f"needs Node {NODE_MIN} or newer with npm")
    version = run("node", "--version").strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_MIN:
        raise Skipped(f"needs Node {NODE_MIN} or newer; this is {version}")
    pins = [SDK / "tools" / name for name in ("package.json", "package-lock.json")]

    def make() -> None:
        for pin in pins:
            shutil.copy(pin, NODE)
        # Not `npm ci`: componentize-qjs names optional packages that were never published, which no lock file can hold.
        run("npm", "install", "--no-save", "--loglevel", "error", "--no-audit", "--no-fund", "--ignore-scripts", cwd=NODE)

    once(NODE, version + "".join(pin.read_text() for pin in pins), make)


def starlingmonkey_tools() -> None:
    """`target/sdk/starlingmonkey`: the other engine. Raises `Skipped`."""

    def make() -> None:
        (STARLINGMONKEY / "package.json").write_text('{"private": true}')
        npm = ("npm", "install", "--no-save", "--loglevel", "error", "--no-audit", "--no-fund")
        run(*npm, *STARLINGMONKEY_PACKAGES, cwd=STARLINGMONKEY)

    once(STARLINGMONKEY, " ".join(STARLINGMONKEY_PACKAGES), make)


def pack_js() -> None:
    """Packs the SDK and puts the package where `npm install` would."""
    copy = copied(SDK / "js", fresh(WORK / "js" / "sdk" / "js"))
    copied(ROOT / "wit", WORK / "js" / "wit")
    packed = json.loads(run("npm", "pack", "--json", "--silent", cwd=copy).split("npm warn")[0])
    # npm 11 answers with a list, later ones with an object.
    name = (packed[0] if isinstance(packed, list) else next(iter(packed.values())))["filename"]
    place = NODE / "node_modules" / "tenon-sdk"
    shutil.rmtree(place, ignore_errors=True)
    with tarfile.open(copy / name) as archive:
        archive.extractall(WORK / "js", filter="data")
    shutil.move(WORK / "js" / "package", place)
    same_contract(place / "wit")


def pack_python() -> None:
    """Builds the SDK's wheel and installs it."""
    copy = copied(SDK / "python", fresh(WORK / "wheel" / "sdk" / "python"))
    copied(ROOT / "wit", WORK / "wheel" / "wit")
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", copy / "dist", ".", cwd=copy)
    wheel = next((copy / "dist").glob("*.whl"))
    run(*pip, "install", "--no-deps", "--no-index", "--force-reinstall", wheel)
    installed = run(PYTHON, "-c", "import tenon_sdk.build as build; print(build.PACKAGE / 'wit')").strip()
    same_contract(Path(installed))


def same_contract(folder: Path) -> None:
    """Raises `Failed` unless the folder holds the contract of `wit/`, whole and unchanged."""
    ours = sorted(path.relative_to(ROOT / "wit") for path in (ROOT / "wit").rglob("*.wit"))
    theirs = sorted(path.relative_to(folder) for path in folder.rglob("*.wit"))
    if ours != theirs or not ours:
        raise Failed(f"{folder} holds {[str(path) for path in theirs]}, wit/ holds {[str(path) for path in ours]}")
    _, differ, missing = filecmp.cmpfiles(ROOT / "wit", folder, [str(path) for path in ours], shallow=False)
    if differ or missing:
        raise Failed(f"the contract in {folder} differs from wit/: {differ + missing}")


def wit_bindgen() -> str:
    """The program. Raises `Skipped`."""
    name = f"wit-bindgen-cli-{WIT_BINDGEN_VERSION}"
    places = [os.environ.get("WIT_BINDGEN"), ROOT / "target" / "tools" / name / "bin" / "wit-bindgen", shutil.which("wit-bindgen")]
    for place in places:
        if place and Path(place).is_file():
            return str(place)
    install = f"cargo install wit-bindgen-cli --version {WIT_BINDGEN_VERSION} --locked --no-default-features --features c"
    raise Skipped(f"there is no wit-bindgen; {install} --root target/tools/{name}")


# What is checked.


def check_component(component: Path, *, may_import_wasi: bool = False, export: str = "hooks") -> None:
    """Raises `Failed` unless it imports what a host lends, exports what its world does and is small enough for an upload."""
    text = run(PYTHON.parent / "wasm-tools", "component", "wit", component)
    world = text.split("package ", 2)[1]
    imports = [line.split()[1].rstrip(";") for line in world.splitlines() if line.startswith("  import ")]
    allowed = ("tenon:plugin/", "wasi:") if may_import_wasi else ("tenon:plugin/",)
    foreign = [name for name in imports if not name.startswith(allowed)]
    if foreign:
        raise Failed(f"{component.name} imports {', '.join(foreign)}")
    exported = [line.split()[1].split("@")[0] for line in world.splitlines() if line.startswith("  export tenon:plugin/")]
    if exported != [f"tenon:plugin/{export}"]:
        raise Failed(f"{component.name} is to export tenon:plugin/{export}; it exports {', '.join(exported) or 'nothing'}")
    size = component.stat().st_size
    if size > COMPONENT_BYTES_MAX:
        raise Failed(f"{component.name} has {size} bytes; hosts take {COMPONENT_BYTES_MAX}")


def check_python_project(folder: Path, component: Path) -> None:
    """Unit tests, types, build."""
    run(PYTHON, "-m", "unittest", "--quiet", cwd=folder)
    run(PYTHON, "-m", "mypy", "--strict", "--cache-dir", TARGET / "mypy", ".", cwd=folder)
    run(PYTHON, "-m", "tenon_sdk", "build", "app.py", "-o", component, cwd=folder)
    export = "driver" if "@export_agent" in (folder / "app.py").read_text() else "hooks"
    check_component(component, may_import_wasi=True, export=export)


def check_js_project(folder: Path, source: str, component: Path) -> None:
    """Unit tests, build. Types are checked for all at once."""
    run("node", sdk_js(), "test", cwd=folder)
    written = (folder / source).read_text()
    if "tenon-sdk/http" in written:
        # Refused by the one engine, with what to do; built by the other.
        try:
            run("node", sdk_js(), "build", source, "-o", component, cwd=folder)
        except Failed as refused:
            if "--engine starlingmonkey" not in str(refused):
                raise
        else:
            raise Failed("componentize-qjs took a plugin with tenon-sdk/http: say so in docs/plugins-js.md")
        starlingmonkey_tools()
        engine = ("--engine", "starlingmonkey")
        run("node", sdk_js(), "build", (folder / source).resolve(), "-o", component, *engine, cwd=STARLINGMONKEY)
        check_component(component, may_import_wasi=True)
        return
    run("node", sdk_js(), "build", source, "-o", component, cwd=folder)
    # With buckets the engine's own imports stay too, which a host answers with nothing.
    export = "driver" if "tenon-sdk/agent" in written else "hooks"
    check_component(component, may_import_wasi="tenon-sdk/kv" in written, export=export)


def sdk_js() -> Path:
    """The command of the packed SDK."""
    return NODE / "node_modules" / "tenon-sdk" / "bin" / "tenon-sdk.js"


def with_node_modules(folder: Path) -> Path:
    """A project that finds what is installed in `target/sdk/node`."""
    (folder / "node_modules").symlink_to(NODE / "node_modules")
    return folder


def tsc(folder: Path) -> None:
    """Raises `Failed` unless the types hold."""
    run("node", NODE / "node_modules" / "typescript" / "bin" / "tsc", "-p", ".", cwd=folder)


def check_python(report: Report) -> None:
    """The SDK in Python and its examples."""
    with report.step("python: the package, with the contract"):
        pack_python()
    with report.step("python: unit tests"):
        # From a copy, so that what is installed is what is tested.
        tests = copied(SDK / "python" / "tests", fresh(WORK / "python-tests"))
        run(PYTHON, "-m", "unittest", "discover", "--quiet", "--start-directory", ".", cwd=tests)
    with report.step("python: types"):
        # This world's imports are the other's and more, and of the exports the SDK names only this one's.
        bindings = fresh(WORK / "python-bindings")
        shutil.rmtree(bindings)
        run(PYTHON.parent / "componentize-py", "-d", ROOT / "wit", "-w", "agent-wasi", "bindings", bindings)
        path = os.pathsep.join([str(SDK / "python"), str(bindings)])
        mypy = ("-m", "mypy", "--cache-dir", TARGET / "mypy-sdk", "--config-file", "pyproject.toml")
        run(PYTHON, *mypy, "tenon_sdk", "tests", cwd=SDK / "python", env={"MYPYPATH": path})
        run(PYTHON, "-m", "mypy", "--strict", "--cache-dir", TARGET / "mypy", SDK / "check.py", SDK / "newcomer.py", SDK / "c" / "build.py")
    for example in examples("python"):
        with report.step(f"python: example {example.name}"):
            folder = copied(example, fresh(WORK / "python" / example.name))
            check_python_project(folder, COMPONENTS / f"python-{example.name}.wasm")


def check_js(report: Report) -> None:
    """The SDK in JavaScript and its examples."""
    with report.step("js: the package, with the contract"):
        pack_js()
    with report.step("js: unit tests and types"):
        folder = with_node_modules(WORK / "js" / "sdk" / "js")
        run("node", "--test", *sorted((folder / "test").glob("*.test.js")), cwd=folder)
        tsc(folder)
    with report.step("js: which world a module is of"):
        check_js_worlds()
    with report.step("js: types of the examples"):
        tsc(with_node_modules(copied(ROOT / "plugins" / "examples-js", fresh(WORK / "examples-js"))))
    for example in examples("js"):
        with report.step(f"js: example {example.name}"):
            source = next((example / "src").glob("plugin.*")).name
            check_js_project(WORK / "examples-js" / example.name, f"src/{source}", COMPONENTS / f"js-{example.name}.wasm")


def check_js_worlds() -> None:
    """What a module imports and exports decides its world; what is neither or both is refused."""
    folder = with_node_modules(fresh(WORK / "js-worlds"))
    agent = 'import { Agent, Answer } from "tenon-sdk/agent";\nimport { open } from "tenon-sdk/kv";\nexport default class extends Agent {\n'
    run_ = 'run() { return Answer(String(open("seen").increment("n"))); }\n'
    (folder / "agent.js").write_text(f"{agent}{run_}}}")
    run("node", sdk_js(), "build", "agent.js", "-o", folder / "agent.wasm", cwd=folder)
    check_component(folder / "agent.wasm", may_import_wasi=True, export="driver")
    (folder / "both.js").write_text(f"{agent}{run_}compose() {{}}\n}}")
    (folder / "policy.js").write_text('import "tenon-sdk/agent";\nexport default { compose() {} }')
    (folder / "neither.js").write_text("export default { run() {} }")
    for name, said in (("both", "an agent (`run`) and a policy (`compose`)"), ("policy", "must be an agent"), ("neither", "must be a policy")):
        try:
            run("node", sdk_js(), "build", f"{name}.js", "-o", folder / "x.wasm", cwd=folder)
        except Failed as refused:
            if said not in str(refused):
                raise
        else:
            raise Failed(f"{name}.js was built")


def check_c(report: Report) -> None:
    """The example in C."""
    for example in examples("c"):
        with report.step(f"c: example {example.name}"):
            check_c_project(example, COMPONENTS / f"c-{example.name}.wasm", SDK / "c" / "build.py", "--wit", ROOT / "wit")


def check_c_project(folder: Path, component: Path, build: Path, *more: str | Path) -> None:
    """Unit tests, build."""
    env = {"WIT_BINDGEN": wit_bindgen(), "ZIG_GLOBAL_CACHE_DIR": str(TARGET / "zig")}
    run(PYTHON, build, "--test", "test_rules.c", cwd=folder, env=env)
    run(PYTHON, build, "plugin.c", "-o", component, *more, cwd=folder, env=env)
    check_component(component)


def check_rust_project(folder: Path, component: Path) -> None:
    """Unit tests, build. Takes the locked versions of plugins/, whose packages `cargo xtask guests` has fetched."""
    if shutil.which("cargo") is None:
        raise Skipped("there is no cargo")
    shutil.copy(ROOT / "plugins" / "Cargo.lock", folder)
    env = {"CARGO_TARGET_DIR": str(TARGET)}
    run("cargo", "test", "--quiet", cwd=folder, env=env)
    exports = run("bash", ROOT / "scripts" / "guest-toolchain.sh", RUST_TARGET)
    pairs = [line.removeprefix("export ").split("=", 1) for line in exports.splitlines() if line.startswith("export ")]
    env = {"CARGO_TARGET_DIR": str(TARGET / "rust-template"), **{name: value.strip("'\"") for name, value in pairs}}
    run("cargo", "build", "--quiet", "--release", "--target", RUST_TARGET, cwd=folder, env=env)
    core = TARGET / "rust-template" / RUST_TARGET / "release" / "plugin.wasm"
    run(PYTHON.parent / "wasm-tools", "component", "new", core, "-o", component)
    export = "driver" if "export_agent!" in (folder / "src" / "lib.rs").read_text() else "hooks"
    check_component(component, export=export)


def examples(language: str) -> list[Path]:
    """The folders of `plugins/examples-LANGUAGE`."""
    folders = ROOT / "plugins" / f"examples-{language}"
    return sorted(path for path in folders.iterdir() if path.is_dir() and path.name != "node_modules")


# Templates.


def rendered(language: str, world: str) -> Path:
    """A project of the template, as `tenon new my-plugin --sdk sdk --world WORLD` writes it."""
    sdk = {
        "rust": f'{{ path = "{SDK / "rust"}" }}',
        "python": f"tenon-sdk[build] @ file://{SDK / 'python'}",
        "js": f"file:{SDK / 'js'}",
        "ts": f"file:{SDK / 'js'}",
        "c": "",
    }[language]
    folder = fresh(WORK / "templates" / world / language / "my-plugin")
    for source, written in template_files(language, world):
        text = source.read_text().replace("{{name}}", "my-plugin").replace("{{sdk}}", sdk)
        if "{{" in text:
            raise Failed(f"{source.name} has a placeholder that nothing fills")
        (folder / written).parent.mkdir(parents=True, exist_ok=True)
        (folder / written).write_text(text)
    return folder


def check_template(language: str, world: str = "policy") -> None:
    """Makes a project, tests it, builds it."""
    folder = rendered(language, world)
    component = COMPONENTS / f"template-{language}{'-agent' if world == 'agent' else ''}.wasm"
    match language:
        case "python":
            check_python_project(folder, component)
        case "js" | "ts":
            with_node_modules(folder)
            if language == "ts":
                tsc(folder)
            check_js_project(folder, f"src/plugin.{language}", component)
        case "c":
            check_c_project(folder, component, folder / "build.py")
        case "rust":
            check_rust_project(folder, component)


def main() -> int:
    """Runs what is asked; 1 if something failed."""
    wanted = sys.argv[1:] or list(LANGUAGES)
    unknown = [name for name in wanted if name not in LANGUAGES]
    if unknown:
        print(f"not a language: {', '.join(unknown)}; there are {', '.join(LANGUAGES)}", file=sys.stderr)
        return 2
    started = time.monotonic()
    report = Report()
    COMPONENTS.mkdir(parents=True, exist_ok=True)
    ready = {"python": False, "node": False}
    with report.step("tools: python"):
        python_tools()
        ready["python"] = True
    if {"js", "ts"} & set(wanted):
        with report.step("tools: node"):
            node_tools()
            ready["node"] = True
    for language in wanted:
        if not ready["python"] or (language in ("js", "ts") and not ready["node"]):
            with report.step(language):
                raise Skipped("its tools are not there (see above)")
            continue
        if language == "python":
            check_python(report)
        elif language == "js" or (language == "ts" and "js" not in wanted):
            check_js(report)
        elif language == "c":
            check_c(report)
        with report.step(f"{language}: template"):
            check_template(language)
        if language != "c":
            with report.step(f"{language}: template of an agent"):
                check_template(language, "agent")
    print(f"\nsdk: {time.monotonic() - started:.0f} s in all")
    for component in sorted(COMPONENTS.glob("*.wasm")):
        print(f"  {component.name}: {component.stat().st_size / 1000:.0f} KB")
    skipped = [name for result, name, _, _ in report.lines if result == "skipped"]
    if skipped:
        print(f"skipped: {', '.join(skipped)}")
    failures = report.failures()
    print(f"{failures} failed" if failures else "all that could be checked holds")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
