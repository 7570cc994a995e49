"""Picture files as pixels, whatever their size, mode and format."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litvision.sources.decode import decode


def gradient(height: int, width: int, dtype: type = np.uint8, top: int = 255) -> np.ndarray:
    return np.linspace(0, top, height * width).astype(dtype).reshape(height, width)


class TestDecode:
    def test_keeps_the_pixels_of_a_picture_of_the_right_size(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        decoded = decode(tmp_path / "a.png", 8)
        assert decoded.dtype == np.uint8
        assert np.array_equal(decoded, pixels)

    def test_repeats_grey_in_three_channels(self, tmp_path: Path) -> None:
        grey = gradient(8, 8)
        Image.fromarray(grey).save(tmp_path / "a.png")
        assert np.array_equal(decode(tmp_path / "a.png", 8), np.stack([grey] * 3, -1))

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
    def test_scales_16_bit_grey(self, tmp_path: Path, suffix: str) -> None:
        grey = gradient(8, 8, np.uint16, 65535)
        Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
        expected = np.round(grey / 257).astype(np.uint8)
        assert expected.max() == 255
        assert np.array_equal(decode(tmp_path / f"a.{suffix}", 8), np.stack([expected] * 3, -1))

    @pytest.mark.parametrize(
        ("dtype", "top"), [(np.float32, 100_000), (np.int32, 100_000), (np.int32, 255)]
    )
    def test_refuses_32_bits_a_pixel(self, tmp_path: Path, dtype: type, top: int) -> None:
        Image.fromarray(gradient(8, 8, dtype, top)).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=r"32 bits a pixel .* have no agreed white level"):
            decode(tmp_path / "a.tif", 8)

    def test_looks_up_a_palette(self, tmp_path: Path) -> None:
        indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
        image = Image.fromarray(indices).convert("P")
        image.putdata(indices.flatten().tolist())
        palette = np.array([[255, 0, 0], [10, 20, 30], [0, 0, 255]], np.uint8)
        image.putpalette(palette.flatten().tolist())
        image.save(tmp_path / "a.png")
        assert np.array_equal(decode(tmp_path / "a.png", 8), palette[indices])

    @pytest.mark.parametrize("suffix", ["png", "gif"])
    def test_lays_a_transparent_palette_colour_on_white(self, tmp_path: Path, suffix: str) -> None:
        indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2
        image = Image.new("P", (8, 8))
        image.putdata(indices.flatten().tolist())
        image.putpalette([255, 0, 0, 10, 20, 30])
        image.save(tmp_path / f"a.{suffix}", transparency=0)
        expected = np.array([[255, 255, 255], [10, 20, 30]], np.uint8)[indices]
        assert np.array_equal(decode(tmp_path / f"a.{suffix}", 8), expected)

    def test_lays_alpha_on_white(self, tmp_path: Path) -> None:
        rgba = np.zeros((8, 8, 4), np.uint8)
        rgba[..., 0] = 200
        rgba[:4, :, 3] = 255
        rgba[4, :, 3] = 51  # a fifth of (200, 0, 0), four fifths of white
        Image.fromarray(rgba).save(tmp_path / "a.png")
        expected = np.full((8, 8, 3), 255, np.uint8)
        expected[:4] = (200, 0, 0)
        expected[4] = (244, 204, 204)
        assert np.array_equal(decode(tmp_path / "a.png", 8), expected)

    def test_converts_cmyk(self, tmp_path: Path) -> None:
        Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.tif")
        assert np.array_equal(decode(tmp_path / "a.tif", 8), np.full((8, 8, 3), (0, 255, 255)))

    @pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
    def test_turns_as_exif_says(self, tmp_path: Path, orientation: int, turns: int) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(decode(tmp_path / "a.png", 8), np.rot90(pixels, turns))

    def test_cuts_out_the_centre(self, tmp_path: Path) -> None:
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[:, 4:12] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
        Image.fromarray(pixels).save(tmp_path / "wide.png")
        Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "tall.png")
        assert np.array_equal(decode(tmp_path / "wide.png", 8), pixels[:, 4:12])
        assert np.array_equal(decode(tmp_path / "tall.png", 8), pixels[:, 4:12].transpose(1, 0, 2))

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    def test_shrinks_without_aliasing(self, tmp_path: Path, suffix: str) -> None:
        checkers = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
        Image.fromarray(checkers).save(tmp_path / f"a.{suffix}", quality=100)
        assert np.abs(decode(tmp_path / f"a.{suffix}", 16).astype(int) - 127).max() <= 3
