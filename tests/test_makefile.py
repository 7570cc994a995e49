"""The Makefile: what it lists, what it runs, and that it installs once and only what is asked for.

Nothing is installed here: a stand-in for uv on the PATH writes down how it was called.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "make", "cat", "rm", "touch", "mkdir", "awk", "chmod", "find")
OLD_PYTHON = f"""#!/bin/sh
exec '{sys.executable}' -c '
import sys
sys.version_info = (3, 10, 13, "final", 0)
exec(sys.argv[2])' "$@"
"""

pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="make is not here")


class Project:
    """A copy of the files that the Makefile needs, and a PATH on which nothing else is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a project"  # a space, as in many a home
        self.bin = folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copyfile(ROOT / name, self.folder / name)
        for name in TOOLS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.program("python3", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
        self.uv(status=0)

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def uv(self, status: int) -> None:
        """Put a stand-in for uv on the PATH, whose installs end with `status`."""
        self.program(
            "uv",
            f"""#!/bin/sh
            echo "uv $*" >> '{self.folder}/calls'
            case "$1" in
                venv) mkdir -p .venv/bin
                      printf '#!/bin/sh\\n' > .venv/bin/python; chmod +x .venv/bin/python ;;
                pip) [ "$2" != install ] || exit {status} ;;
            esac
            """,
        )

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Only the PATH: what `make test ARGS=…` exports would otherwise reach this make too.
        return subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env={"PATH": str(self.bin)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, *words: str) -> list[str]:
        """What uv was asked for since the last look, of the calls that begin with `words`."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if line.startswith(" ".join(("uv", *words)))]

    def installs(self) -> list[str]:
        return self.calls("pip", "install")

    @property
    def stamp(self) -> Path:
        return self.folder / ".venv/.installed"

    def age(self, name: str, seconds: float) -> None:
        """Date a file `seconds` after the stamp."""
        moment = self.stamp.stat().st_mtime + seconds
        os.utime(self.folder / name, (moment, moment))

    def pretend_installed(self, **programs: str) -> None:
        """Make .venv as an install leaves it, with these programs in it."""
        (self.folder / ".venv/bin").mkdir(parents=True)
        for name, text in programs.items():
            (self.folder / ".venv/bin" / name).write_text(text)
            (self.folder / ".venv/bin" / name).chmod(0o755)
        self.stamp.touch()
        (self.folder / ".venv/.torch").write_text("default\n")
        for name in ("pyproject.toml", "requirements.lock"):
            self.age(name, seconds=-10)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def phony_targets() -> set[str]:
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared
    return set(declared[1].split()) - {"help", "FORCE"}


# ---- the list ------------------------------------------------------------------------------------


def test_make_alone_lists_every_target_with_a_line(project):
    result = project.make()
    listed = dict(re.findall(r"^  make (\S+) +(\S.*)$", result.stdout, re.MULTILINE))
    assert result.returncode == 0
    assert set(listed) == phony_targets()
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    assert project.calls() == []


def test_every_target_has_a_rule():
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(rules) == sorted(phony_targets() | {"help"})


# ---- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("train", ".venv/bin/python -m litvision.train seed=1"),
        ("demo", ".venv/bin/python -m litvision.train experiment=demo seed=1"),
        ("evaluate", ".venv/bin/python -m litvision.evaluate seed=1"),
        ("predict", ".venv/bin/python -m litvision.predict seed=1"),
        ("export", ".venv/bin/python -m litvision.export seed=1"),
        ("tensorboard", ".venv/bin/tensorboard --logdir logs seed=1"),
        (
            "test",
            "PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv/bin/pytest "
            "-n logical --maxprocesses 8 --dist loadfile seed=1",
        ),
        ("test-slow", "PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -m slow seed=1"),
    ],
)
def test_command_of_a_target(project, target, command):
    project.pretend_installed()
    assert project.make("-n", target, "ARGS=seed=1").stdout.splitlines() == [command]


def test_check_changes_nothing_and_format_does(project):
    project.pretend_installed()
    check = project.make("-n", "check").stdout.splitlines()
    assert check == [
        ".venv/bin/ruff format --check",
        ".venv/bin/ruff check",
        ".venv/bin/mypy",
        ".venv/bin/python .ci/audit.py",
    ]
    assert project.make("-n", "format").stdout.splitlines() == [
        ".venv/bin/ruff format",
        ".venv/bin/ruff check --fix",
    ]


@pytest.mark.parametrize(
    ("typed", "received"),
    [
        ("data.classes=[airplane,automobile]", ["data.classes=[airplane,automobile]"]),
        ('trainer.max_epochs=1 +a="b c"', ["trainer.max_epochs=1", "+a=b c"]),
        ("'+a={b: 1, c: [2, 3]}' d=e", ["+a={b: 1, c: [2, 3]}", "d=e"]),
        ("'lr=${optimizer.lr}'", ["lr=${optimizer.lr}"]),
        ("'a=#b' c=d%e", ["a=#b", "c=d%e"]),
    ],
)
def test_arguments_arrive_as_typed(project, typed, received):
    project.pretend_installed(python='#!/bin/sh\nprintf "%s\\n" "$@" > received\n')
    result = project.make("train", f"ARGS={typed}")
    assert result.returncode == 0, result.stderr
    arguments = (project.folder / "received").read_text().splitlines()
    assert arguments == ["-m", "litvision.train", *received]


def test_clean_keeps_data_and_logs(project):
    project.pretend_installed()
    for name in ("data/a", "logs/b", "src/c.py", "src/__pycache__/c.pyc"):
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / name).touch()

    assert project.make("clean").returncode == 0
    left = {str(path.relative_to(project.folder)) for path in project.folder.rglob("*")}
    assert {"data/a", "logs/b", "src/c.py"} <= left
    assert not {".venv", "src/__pycache__"} & left


def test_lock_pins_for_every_platform_and_names_no_address(project):
    project.make("lock", "ARGS=--upgrade")
    (call,) = project.calls("pip", "compile")
    for option in ("--universal", "--python-version 3.11", "--all-extras", "--generate-hashes",
                   "--upgrade"):  # fmt: skip
        assert option in call
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert not re.search(r"\(/|^-", lock, re.MULTILINE)


def test_every_version_of_the_lock_has_its_hashes():
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"^[a-z0-9][^ ]*==.*$", lock, re.MULTILINE)
    assert len(pinned) > 100
    assert all(line.endswith("\\") for line in pinned)
    assert len(re.findall(r"==.*\\\n    --hash=sha256:[0-9a-f]{64}", lock)) == len(pinned)


# ---- check ---------------------------------------------------------------------------------------

GOOD, SKIPPED = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "unknown"}
WEAK = {"name": "c", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["2.1"]}]}


@pytest.mark.parametrize(
    ("found", "error", "code", "words"),
    [
        ([GOOD], "", 0, "No known weakness in 1 dependencies."),
        ([GOOD, WEAK], "Found 1 known vulnerability", 1, "c 2: X-1, mended in 2.1"),
        ([GOOD, SKIPPED], "", 0, "Not audited, as the database does not know them: b."),
        ([SKIPPED, SKIPPED], "", 0, "not audited: the database knows none of them"),
        (None, "ConnectionError: Failed to resolve", 0, "not audited: the database cannot be"),
        (None, "ERROR: requirements.lock: invalid", 1, "requirements.lock: invalid"),
    ],
)
def test_check_fails_where_a_weakness_is_known_or_nobody_looked(
    tmp_path, found, error, code, words
):
    answer = "" if found is None else json.dumps({"dependencies": found})
    stand_in = tmp_path / "pip-audit"
    stand_in.write_text(
        f"#!/bin/sh\necho $* > '{tmp_path}/asked'\nprintf '%s' '{answer}'\n"
        f"echo '{error}' >&2\nexit {int(bool(error))}\n"
    )
    stand_in.chmod(0o755)
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    code_of = (
        f"import runpy, sys; sys.executable = '{python}'; "
        "runpy.run_path('.ci/audit.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code_of], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--requirement requirements.lock --disable-pip")


# ---- install -------------------------------------------------------------------------------------


def test_install_runs_once(project):
    assert project.make("install").returncode == 0
    (call,) = project.installs()
    assert "--python .venv/bin/python --constraint requirements.lock -e .[dev,sweep,export]" in call
    assert "--torch-backend" not in call
    assert project.stamp.exists()

    again = project.make("install")
    assert again.returncode == 0
    assert project.calls() == []
    assert "uv" not in project.make("-n", "install").stdout


def test_every_command_installs_first(project):
    for target in phony_targets() - {"lock", "clean"}:
        assert "uv pip install" in project.make("-n", target).stdout.replace("$uv", "uv"), target


def test_another_build_of_torch_has_other_hashes_and_the_rest_the_same(project):
    project.make("install", "TORCH=cpu")
    (call,) = project.installs()
    assert "--constraint .venv/.lock --torch-backend cpu -e" in call
    pinned = r"^([a-z0-9-]+)==(\S+)[^\n]*\n((?:    --hash=\S+[^\n]*\n)*)"
    before, after = (
        {name: (version, hashes) for name, version, hashes in re.findall(pinned, text, re.M)}
        for text in (
            (ROOT / "requirements.lock").read_text(),
            (project.folder / ".venv/.lock").read_text(),
        )
    )
    assert before.keys() == after.keys()
    changed = {name for name, pin in before.items() if pin != after[name]}
    assert {"torch", "torchvision", "triton"} <= changed
    assert all(re.match("torch$|torchvision$|triton$|nvidia-|cuda-", name) for name in changed)
    assert all(after[name] == (before[name][0], "") for name in changed)
    assert not re.search(r"\\\n(?!    --hash)", (project.folder / ".venv/.lock").read_text())


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.lock"])
def test_install_follows_the_files_it_reads(project, name):
    project.make("install")
    project.installs()
    project.age(name, seconds=10)
    project.make("install")
    assert len(project.calls("pip", "install")) == 1


def test_install_that_fails_is_done_again(project):
    project.make("install")
    project.age("requirements.lock", seconds=10)
    project.uv(status=1)
    assert project.make("install").returncode != 0
    assert not project.stamp.exists()

    project.uv(status=0)
    project.installs()
    assert project.make("install").returncode == 0
    assert len(project.installs()) == 1


def test_a_build_of_torch_stays_until_another_is_named(project):
    project.make("install", "TORCH=cpu")
    assert "--torch-backend cpu" in project.installs()[0]
    project.make("install")
    project.make("install", "TORCH=cpu")
    assert project.calls() == []

    project.age("requirements.lock", seconds=10)
    project.make("install")
    calls = project.calls("pip")
    assert len(calls) == 1
    assert "--torch-backend cpu" in calls[0]
    project.age("requirements.lock", seconds=-10)

    project.make("install", "TORCH=default")
    uninstall, install = project.calls("pip")
    assert uninstall.endswith("torch torchvision")
    assert "--torch-backend" not in install


def test_a_build_of_torch_stays_after_an_install_cut_short(project):
    project.make("install", "TORCH=cpu")
    project.installs()
    project.stamp.unlink()
    project.make("install")
    assert "--torch-backend cpu" in project.installs()[0]


def test_a_build_of_torch_that_cannot_be_had(project):
    project.uv(status=2)
    result = project.make("install", "TORCH=cpu")
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("TORCH=cpu")]
    assert "could not be reached" in line
    assert "run plain 'make install'" in line
    assert not project.stamp.exists()

    project.uv(status=0)
    project.installs()
    assert project.make("install").returncode == 0
    assert "--torch-backend" not in project.installs()[0]


def test_extras_stay_until_others_are_named(project):
    project.make("install")
    assert project.installs()[0].endswith("-e .[dev,sweep,export]")
    project.make("install", "EXTRAS=ray")
    assert project.installs()[0].endswith("-e .[dev,sweep,export,ray]")
    project.make("install")
    project.make("install", "EXTRAS=ray")
    assert project.calls() == []

    project.age("requirements.lock", seconds=10)
    project.make("install")
    assert project.installs()[0].endswith("-e .[dev,sweep,export,ray]")
    project.age("requirements.lock", seconds=-10)

    project.make("install", "EXTRAS=wandb,ray")
    assert project.installs()[0].endswith("-e .[dev,sweep,export,wandb,ray]")


def test_options_beside_args_are_refused(project):
    result = project.make("train", "model=vgg16", "hydra/launcher=joblib")
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert "error: options go into ARGS: make train ARGS=" in line
    assert "model=vgg16" in line
    assert "hydra/launcher=joblib" in line
    assert project.calls() == []


def test_a_report_is_of_the_folder_given(project):
    result = project.make("-n", "report", "RUN=logs/demo/a b")
    assert ".venv/bin/python -m litvision.report logs/demo/a b" in result.stdout


def test_the_pages_of_mlflow_need_the_whole_of_it(project):
    project.make("install")
    python = project.folder / ".venv" / "bin" / "python"
    for status, expected in ((1, 2), (0, 0)):  # what `import flask` ends with
        python.write_text(f"#!/bin/sh\nexit {status}\n")
        mlflow = python.with_name("mlflow")
        mlflow.write_text('#!/bin/sh\necho "called mlflow $*"\n')
        mlflow.chmod(0o755)
        result = project.make("mlflow", "ARGS=--port 7000")
        assert result.returncode == expected
        if status:
            assert "make install EXTRAS=mlflow" in result.stderr
        else:
            call = "called mlflow ui --backend-store-uri sqlite:///logs/mlflow.db --port 7000"
            assert call in result.stdout.splitlines()


# ---- the Python and the uv it finds --------------------------------------------------------------


def test_without_uv_pip_installs_one(project):
    (project.bin / "uv").rename(project.bin / "uv-to-be")
    # python3 names the interpreter to use: one that makes no real environment here.
    project.program(
        "interpreter",
        f"""#!/bin/sh
        echo "python $*" >> '{project.folder}/python-calls'
        case "$2" in
            venv) mkdir -p .venv/bin; cat "$0" > .venv/bin/python; chmod +x .venv/bin/python ;;
            pip) cat '{project.bin}/uv-to-be' > .venv/bin/uv; chmod +x .venv/bin/uv ;;
        esac
        """,
    )
    project.program("python3", f"#!/bin/sh\necho '{project.bin}/interpreter'\n")

    result = project.make("install")
    assert result.returncode == 0, result.stderr
    calls = (project.folder / "python-calls").read_text().splitlines()
    assert calls[0] == "python -m venv --clear .venv"
    assert "python -m pip install --quiet uv" in calls
    assert len(project.installs()) == 1


def test_too_old_a_python_is_said_in_one_line(project):
    project.program("python3", OLD_PYTHON)
    result = project.make("install")
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("make: ***")]
    assert "needs Python 3.11 or newer, and python3 is not" in line
    assert project.calls("venv") == []


def test_a_newer_python_beside_an_old_python3_is_found(project):
    project.program("python3", OLD_PYTHON)
    project.program("python3.14", "#!/bin/sh\nexit 127\n")  # a version manager's stand-in
    project.program("python3.13", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    assert project.make("install").returncode == 0
    assert project.calls("venv") == [f"uv venv --quiet --clear --python {sys.executable} .venv"]


def test_python_can_be_named(project, tmp_path):
    project.program("python3", OLD_PYTHON)
    named = tmp_path / "my python"
    named.symlink_to(sys.executable)
    assert project.make("install", f"PYTHON={named}").returncode == 0
    assert len(project.calls("venv")) == 1

    result = project.make("clean", "install", "PYTHON=no-such-python")
    assert result.returncode != 0
    assert "and no-such-python is not" in result.stderr


# ---- what has to pass before a merge -------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_ci_run_tests_and_checks_from_the_root_without_stdin(project):
    script = project.folder / ".ci/run"
    script.parent.mkdir()
    shutil.copy(ROOT / ".ci/run", script)
    (project.bin / "make").unlink()
    project.program("make", f"""#!/bin/sh\necho "$PWD $*" >> '{project.folder}/made'\n""")
    for name in ("bash", "dirname", "env"):
        (project.bin / name).symlink_to(str(shutil.which(name)))

    def run() -> int:
        return subprocess.run(
            ["sh", "-c", 'exec "$0" <&-', str(script)],
            cwd="/",
            env={"PATH": str(project.bin)},
            timeout=60,
        ).returncode

    assert run() == 0
    made = project.folder / "made"
    assert made.read_text().splitlines() == [f"{project.folder} test", f"{project.folder} check"]

    made.unlink()
    project.program("make", f"#!/bin/sh\necho \"$*\" >> '{made}'\nexit 2\n")
    assert run() == 2
    assert made.read_text().splitlines() == ["test"]
