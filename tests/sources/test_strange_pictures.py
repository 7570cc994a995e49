"""Pictures that are not what they seem, or are at the edge of what a picture can be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import litvision
from litvision.sources.decode import DecodedBatches, decode


@pytest.mark.parametrize(("width", "height"), [(1, 50_000), (50_000, 1), (1, 1)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_narrowest_are_pictures(tmp_path: Path, width: int, height: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (width, height), "white").save(path)
    assert (decode(path, 32) == 255).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_a_moving_one_the_first_is_taken(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    first, *others = (Image.new("RGB", (40, 40), colour) for colour in ("white", "blue", "red"))
    first.save(path, save_all=True, append_images=others)
    assert (decode(path, 32) >= 250).all()


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, format="PNG")
    assert np.array_equal(decode(path, 32), pixels)


@pytest.mark.parametrize("header", [b"P6\n0 0\n255\n", b"P6\n0 5\n255\n"])
def test_one_without_pixels_is_none(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.ppm").write_bytes(header)
    pixels, errors = DecodedBatches(["a.ppm"], 32, tmp_path)[0]
    assert len(pixels) == 0
    assert errors == {"a.ppm": "not a picture that Pillow knows"}


def test_a_small_file_of_a_huge_picture_is_refused(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 100_000
    pixels, errors = DecodedBatches(["a.png"], 32, tmp_path)[0]
    assert len(pixels) == 0
    assert "decompression bomb" in errors["a.png"]


def test_a_large_picture_is_read_in_silence(tmp_path: Path) -> None:
    Image.new("RGB", (120, 100), "white").save(tmp_path / "a.png")
    code = """
from PIL import Image
from litvision.sources.decode import decode

Image.MAX_IMAGE_PIXELS = 10_000  # Pillow warns above it, and refuses at twice as many
print(decode("a.png", 32).min())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(litvision.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("255\n", "")


def test_no_program_is_started_for_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow gives PostScript to Ghostscript, which runs it."""
    marker, program = tmp_path / "ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked up anew
    path = tmp_path / "a.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n%%EOF\n")
    with pytest.raises(OSError), Image.open(path) as image:
        image.load()
    assert marker.exists()

    marker.unlink()
    with pytest.raises(UnidentifiedImageError):
        decode(path, 32)
    assert not marker.exists()
