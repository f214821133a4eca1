"""`python -m tenon_sdk build app.py -o plugin.wasm`."""

import argparse
import sys
from pathlib import Path

from .build import BuildError, build


def main() -> int:
    """Runs the command; 1 if it fails."""
    parser = argparse.ArgumentParser(prog="tenon_sdk", description="Builds Tenon plugins written in Python.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("build", help="make a component of a module that exports a policy or an agent")
    command.add_argument("app", type=Path, help="the module, e.g. app.py")
    command.add_argument("-o", "--output", type=Path, default=Path("plugin.wasm"), help="default: %(default)s")
    command.add_argument("--stub-wasi", action="store_true", help="import no WASI: clocks and os.urandom then trap")
    command.add_argument("--mortal", action="store_true", help="count references to what lasts as long as the component")
    given = parser.parse_args()
    try:
        size = build(given.app, given.output, stub_wasi=given.stub_wasi, mortal=given.mortal)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.output}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
