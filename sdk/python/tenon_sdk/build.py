"""Makes a component of a module, by componentize-py. Not here: deploying it, which is `tenon deploy`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ._image import Unreadable, make_immortal

PACKAGE = Path(__file__).resolve().parent
COMPONENT_BYTES_MAX = 32 << 20
"""What a host takes, unless its operator says less."""
HOOKS = "hooks"
ENTRY = "tenon_plugin_entry"
EXPORTS = {"policy": "from tenon_sdk._component_policy import Hooks", "agent": "from tenon_sdk._component_agent import Driver"}
"""What the component is made of, by the world of the plugin."""
UNLOADABLE = 3
WORLD_OF = f"""
import importlib, sys
module, *sys.path[:0] = sys.argv[1:]
try:
    importlib.import_module(module)
except BaseException:
    sys.exit({UNLOADABLE})
from tenon_sdk._export import the_world
try:
    print(the_world())
except TypeError as error:
    sys.exit(str(error))
"""
"""Loads a module and says which world it is of."""


class BuildError(Exception):
    """Why there is no component, and what to do."""


def contract() -> Path:
    """The folder of the contract: the one that the package was built with, or the repository's that it lies in."""
    for folder in (PACKAGE / "wit", PACKAGE.parents[2] / "wit"):
        if (folder / "policy.wit").is_file():
            return folder
    raise BuildError("the package lacks its contract (`wit/`): install tenon-sdk anew")


def build(app: Path, output: Path, *, stub_wasi: bool = False, mortal: bool = False) -> int:
    """Writes the component of the module `app`, which exports a policy or an agent, to `output`, and returns its size in bytes.

    Modules beside it may be imported, and installed packages of pure Python. CPython imports WASI, of which a host lends an
    inert version; with `stub_wasi` it does not, at the price of 24 more core instances. What lasts as long as the component is immortal
    to CPython, which makes requests quicker, unless `mortal` is set. Raises `BuildError`.
    """
    app = app.resolve()
    if not app.is_file() or app.suffix != ".py":
        raise BuildError(f"{app.name} is not a Python file that is there")
    if not app.stem.isidentifier() or app.stem in (HOOKS, ENTRY, "tenon_sdk", "wit_world"):
        raise BuildError(f"{app.name} cannot be imported under this name: call it app.py")
    if (app.parent / f"{HOOKS}.py").exists():
        raise BuildError(f"{HOOKS}.py is a name that the component needs for itself: call yours something else")
    world = world_of(app)
    with tempfile.TemporaryDirectory(prefix="tenon-build-") as made:
        folder = Path(made)
        shutil.copytree(PACKAGE, folder / "tenon_sdk", ignore=shutil.ignore_patterns("__pycache__", "wit"))
        (folder / f"{ENTRY}.py").write_text(f'"""Made by tenon_sdk."""\nimport {app.stem}\n{EXPORTS[world]}\n')
        if world == "policy":
            (folder / f"{HOOKS}.py").write_text('"""Made by tenon_sdk."""\nfrom tenon_sdk._component_policy import PostProcessor\n')
        component = folder / "component.wasm"
        command = [
            tool("componentize-py"),
            *("--wit-path", str(contract()), "--world", f"{world}-wasi"),
            *("componentize", *(["--stub-wasi"] if stub_wasi else []), ENTRY, "--output", str(component)),
            *("--python-path", str(folder), "--python-path", str(app.parent)),
        ]
        run(command)
        size = component.stat().st_size
        if size > COMPONENT_BYTES_MAX:
            raise BuildError(f"the component has {size} bytes; hosts take at most {COMPONENT_BYTES_MAX}")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(component.read_bytes() if mortal else immortal(component.read_bytes()))
    return size


def immortal(component: bytes) -> bytes:
    """The component with its lasting objects immortal, or as it is, which is said, if it is not as this version knows it."""
    try:
        return make_immortal(component)[0]
    except Unreadable as reason:
        print(f"note: objects stay mortal, so that requests take longer: {reason}", file=sys.stderr)
        return component


def world_of(app: Path) -> str:
    """`policy` or `agent`, by what the module exports. Raises `BuildError` if that is neither or both."""
    command = [sys.executable, "-B", "-c", WORLD_OF, app.stem, str(app.parent), str(PACKAGE.parent)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.split()[-1]
    if done.returncode != UNLOADABLE:
        raise BuildError(f"{app.name}: {done.stderr.strip()}")
    # What cannot be loaded here may be loaded in a component, or fails there with its reason.
    return "agent" if "export_agent" in app.read_text() else "policy"


def tool(name: str) -> str:
    """The path of a program beside this interpreter, or on the path."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise BuildError(f'there is no {name}: pip install "tenon-sdk[build]"')
    return found


def run(command: list[str]) -> None:
    """Runs it. What it says is told if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # Behind the module's own traceback comes the tool's, which helps nobody here.
        said = (done.stdout + done.stderr).split("Stack backtrace:")[0].split("\nCaused by:")[0]
        raise BuildError(f"{Path(command[0]).name} failed:\n{said.partition('AssertionError: ')[2].strip() or said.strip()}")
