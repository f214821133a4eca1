"""Puts the contract into the built package: it is read from the repository's `wit/`, of which there is one copy."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
CONTRACT = HERE.parent.parent / "wit"


class BuildWithContract(build_py):
    """An ordinary build, then `tenon_sdk/wit`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the package lies in the repository and finds the contract there
        if not CONTRACT.is_dir():
            raise SystemExit("the contract is not there: build the package from its repository")
        place = Path(self.build_lib) / "tenon_sdk" / "wit"
        shutil.rmtree(place, ignore_errors=True)  # an earlier build's
        shutil.copytree(CONTRACT, place)


setup(cmdclass={"build_py": BuildWithContract})
