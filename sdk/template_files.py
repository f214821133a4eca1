"""The files of a new project, as `sdk/templates/README.md` lists them. Not here: filling them in, and checking what comes of it
(`check.py`).
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "sdk" / "templates"


class WrongPage(Exception):
    """The page lists other files than there are."""


def template_files(language: str, world: str) -> Iterator[tuple[Path, str]]:
    """Files of a language's template and where each is written; an agent's come after those that they replace."""
    rows = [line for line in (TEMPLATES / "README.md").read_text().splitlines() if line.startswith("| ")]
    listed = [[cell.split(" (")[0].strip() for cell in row.strip("|").split("|")] for row in rows]
    pairs = [(row[0], row[1]) for row in listed if len(row) == 2]
    yield from below(language, pairs)
    if world == "agent":
        yield from below(f"agent/{language}", pairs)
        yield TEMPLATES / "agent" / "manifest.json", "manifest.json"
    if language == "c":
        for source, written in pairs:
            if source.startswith("../c/"):
                yield TEMPLATES / source, written
        for path in sorted((ROOT / "wit").rglob("*.wit")):
            yield path, f"wit/{path.relative_to(ROOT / 'wit').as_posix()}"


def below(folder: str, pairs: list[tuple[str, str]]) -> Iterator[tuple[Path, str]]:
    """Those in a folder of the templates, of which none may be missing on the page."""
    own = [(source, written) for source, written in pairs if source.startswith(f"{folder}/")]
    on_disk = {path.relative_to(TEMPLATES).as_posix() for path in (TEMPLATES / folder).rglob("*") if path.is_file()}
    if on_disk != {source for source, _ in own}:
        raise WrongPage(f"sdk/templates/README.md lists {sorted(source for source, _ in own)}, there are {sorted(on_disk)}")
    for source, written in own:
        yield TEMPLATES / source, written
