"""One picture file as pixels, whatever its size, mode and format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def decode(path: str | Path, image_size: int) -> np.ndarray:
    """Read one picture of any size and mode as a square of RGB pixels.

    It is turned as its EXIF orientation says, laid on white where it is transparent, its shorter
    side resized to `image_size` (antialiased), and its centre cut out. A picture that already has
    that size keeps its exact pixels. 16-bit grey is divided by 257, so that white stays white.

    Args:
        path: the file.
        image_size: side of the result in pixels.

    Returns:
        uint8 `[image_size, image_size, 3]`.

    Raises:
        Exception: whatever Pillow makes of a file that is damaged, too large or no picture;
            ValueError for a mode without an agreed white level (32-bit integers, floats).
    """
    size = (image_size, image_size)
    with Image.open(path) as file:
        # A JPEG many times too large is decoded at a half, a quarter or an eighth of its size,
        # which is much faster, and still at least twice the size that it is then resized to.
        file.draft(None, (2 * image_size, 2 * image_size))
        ImageOps.exif_transpose(file, in_place=True)
        image = _to_rgb(file)
        return np.asarray(image if image.size == size else ImageOps.fit(image, size))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32 bits a pixel (mode {image.mode}) have no agreed white level")
        # Pillow's own conversion would clip everything above 255 to white.
        grey = (values.astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
