"""What runs and sweeps write down about themselves, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litvision import records


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    numbers = {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 0.5}
    records.write_result(tmp_path, numbers)
    assert records.read_result(tmp_path) == {"a": None, "b": None, "c": None, "d": 0.5}


def test_a_file_that_is_written_half_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.write_text(tmp_path / "a.json", "before")
    write = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        write(self, text[:3], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        records.write_text(tmp_path / "a.json", "something longer")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "before"


@pytest.mark.parametrize(
    ("content", "found"), [('{"a": 1}', {"a": 1}), ("[1]", {}), ('{"a": ', {}), (None, {})]
)
def test_what_is_no_whole_object_reads_as_empty(
    tmp_path: Path, content: str | None, found: dict[str, Any]
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert records.read_result(tmp_path) == found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("run_dir: logs/a", {"run_dir": "logs/a"}),
        ("run_dir: null", None),
        ("seed: 1", None),
        ("[run_dir]", None),
        ("{: not yaml", None),
    ],
)
def test_only_a_config_with_a_folder_is_that_of_a_run(
    tmp_path: Path, content: str, found: dict[str, Any] | None
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert records.read_config(tmp_path) == found


def test_a_folder_is_locked_while_it_is_trained_in_and_empty_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    with records.alone(tmp_path):
        assert records.is_taken(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not records.is_taken(tmp_path)


@pytest.mark.parametrize("name", records.RANKS)
def test_the_first_of_several_processes_has_rank_0(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for rank, further in (("0", False), ("1", True)):
        monkeypatch.setenv(name, rank)
        assert records.is_further_process() == further


def test_nested_keys_become_dotted_ones_and_an_empty_dict_is_a_value() -> None:
    nested = {"a": {"b": {"c": 1}, "d": {}}, "e": [2]}
    assert records.flat(nested) == {"a.b.c": 1, "a.d": {}, "e": [2]}
    assert records.flat({}) == {}
    assert records.at(nested, "a.b") == {"c": 1}
    for missing in ("a.x", "x.b", "a.b.c.d"):
        assert records.at(nested, missing) is None


def test_a_path_is_as_one_would_type_it_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert records.from_here(tmp_path / "logs" / "a") == Path("logs/a")
    assert records.from_here(tmp_path.parent / "b") == tmp_path.parent / "b"
