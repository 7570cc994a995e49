"""Give the project another name: `make rename NAME=my_project`."""

from __future__ import annotations

import importlib.util
import keyword
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent
OLD = PACKAGE.name
# What is not the project's text, where there is no git to say so; conf/data is.
ASIDE = {".git", ".venv", "data", "logs", "build", "dist"}


def main(arguments: list[str] | None = None) -> None:
    """Rename the package, and its name in every file of the project; leave data and runs alone."""
    given = sys.argv[1:] if arguments is None else arguments
    new = given[0] if len(given) == 1 else ""
    if reason := unfit(new):
        sys.exit(f"error: NAME={new}: {reason}. Give for example NAME=my_project.")
    root = PACKAGE.parents[1]
    # The licence asks for its notice to stay as it is.
    changed = [path for path in files(root) if path.name != "LICENSE" and rewrite(path, new)]
    PACKAGE.rename(PACKAGE.with_name(new))
    print(
        f"{OLD} is {new} now: {len(changed)} files changed. Checkpoints that {OLD} saved name its "
        "classes, and are not read any more.\nLICENSE stays: add a line for what you write."
        "\nNext: make test, and a commit."
    )


def unfit(name: str) -> str | None:
    """Say why a package cannot have this name; None if it can."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        return (
            "a package is named by lower-case letters, digits and underscores, a letter first, "
            "and no word of Python itself"
        )
    if name == OLD:
        return "that is its name already"
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        return "another package that is installed has this name"
    return None


def files(root: Path) -> Iterator[Path]:
    """Yield the files of the project: those that git tracks, or would."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run(
            [*command, "--exclude-standard"], capture_output=True, text=True, check=True
        )
        names = [name for name in done.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = (path.relative_to(root) for path in root.rglob("*"))
        names = [
            str(path)
            for path in found
            if path.parts[0] not in ASIDE and "__pycache__" not in path.parts
        ]
    yield from (root / name for name in names if (root / name).is_file())


def rewrite(path: Path, new: str) -> bool:
    """Put the new name for the old in one file, as it is written there; say whether it was."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:  # a picture
        return False
    words = {
        f"{OLD}-": f"{new.replace('_', '-')}-",  # commands, and folders of temporary files
        OLD: new,
        OLD.upper(): new.upper(),
        OLD.capitalize(): new.replace("_", " ").capitalize(),
    }
    pattern = "|".join(map(re.escape, words))
    changed = re.sub(pattern, lambda found: words[found[0]], text)
    if changed != text:
        path.write_bytes(changed.encode())
    return changed != text


if __name__ == "__main__":
    main()
