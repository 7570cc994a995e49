"""A clone under another name is a whole project of that name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from litvision import rename

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the project's files, those of git where it is there, without its history."""
    copy = tmp_path / "clone"
    for path in rename.files(ROOT):
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return copy


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


def renamed(clone: Path, name: str) -> None:
    done = python(clone, "-m", "litvision.rename", name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"litvision is {name} now: ")


def left(folder: Path) -> list[str]:
    """Where the old name still stands, but for the licence's notice, before anything is run."""
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in str(path) and path.name != "LICENSE"
    ]
    texts = {path: path.read_bytes().lower() for path in found}
    names = [str(path) for path in texts if "litvision" in str(path.relative_to(folder)).lower()]
    return names + [str(path) for path, text in texts.items() if b"litvision" in text]


def test_nothing_of_the_old_name_is_left(clone: Path) -> None:
    renamed(clone, "my_project")
    assert left(clone) == []
    assert (clone / "README.md").read_text().startswith("# My project\n")
    assert 'name = "my_project"' in (clone / "pyproject.toml").read_text()
    assert (clone / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert 'my-project-train = "my_project.train:main"' in (clone / "pyproject.toml").read_text()


@pytest.mark.slow
def test_a_renamed_project_trains_and_classifies(clone: Path) -> None:
    renamed(clone, "my_project")
    options = ["experiment=demo", "data.train_size=40", "data.test_size=20", "trainer.max_epochs=1"]
    done = python(clone, "-m", "my_project.train", *options, "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    (checkpoint,) = clone.glob("logs/demo/*/checkpoints/best.ckpt")
    script = f"import my_project; print(my_project.load({str(checkpoint)!r}).classes[0])"
    done = python(clone, "-c", script)
    assert done.stdout == "bar\n", done.stderr


@pytest.mark.slow
def test_the_tests_of_the_renamed_project_pass(clone: Path) -> None:
    renamed(clone, "my_project")
    # Not this one, which would go on for ever; the docs' commands are the same as here.
    left_out = ["--ignore=tests/test_rename.py", "--ignore=tests/test_docs.py"]
    done = python(clone, "-m", "pytest", *left_out, "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_checks_of_a_project_renamed_by_make_pass(clone: Path) -> None:
    """With a long name, so that lines become longer than allowed."""
    tools = clone / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("python", "ruff", "mypy", "pytest"):
        (tools / name).symlink_to(Path(sys.executable).with_name(name))
    stub = tools / "uv"  # renaming uninstalls the package under its old name: not from here
    stub.write_text("#!/bin/sh\nexit 0\n")
    stub.chmod(0o755)
    audit = tools / "pip-audit"  # what is known of dependencies has nothing to do with a name
    audit.write_text("""#!/bin/sh\nprintf '{"dependencies": []}'\n""")
    audit.chmod(0o755)
    (tools.parent / ".installed").touch()
    environment = {
        **os.environ, "PYTHONPATH": str(clone / "src"), "PATH": f"{tools}:{os.environ['PATH']}",
    }  # fmt: skip
    command = ["make", "rename", "NAME=pictures_of_mushrooms"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert left(clone) == []
    (tools.parent / ".installed").touch()
    command = ["make", "check", "--old-file=.venv/.installed"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "a package is named by lower-case letters"),
        ("My-Project", "a package is named by lower-case letters"),
        ("class", "a package is named by lower-case letters"),
        ("litvision", "that is its name already"),
        ("json", "another package that is installed has this name"),
        ("torch", "another package that is installed has this name"),
    ],
)
def test_a_name_that_does_not_do_changes_nothing(name: str, reason: str) -> None:
    before = {path: path.read_bytes() for path in rename.files(ROOT)}
    with pytest.raises(SystemExit, match=f"error: NAME={name}: {reason}"):
        rename.main([name])
    assert {path: path.read_bytes() for path in rename.files(ROOT)} == before


def test_only_text_is_rewritten(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG litvision \xff")
    assert not rename.rewrite(picture, "my_project")
    assert picture.read_bytes() == b"\x89PNG litvision \xff"
    text = tmp_path / "a.txt"
    text.write_bytes(b"litvision-train LITVISION_X Litvision's\r\nlitvision.load")
    assert rename.rewrite(text, "my_project")
    assert text.read_bytes() == b"my-project-train MY_PROJECT_X My project's\r\nmy_project.load"
