"""Picture files as pixels, whatever their size, mode and format."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from litvision.errors import UserError, one_line

EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
# What these extensions stand for, and all that is opened, whatever a file's name says: for some
# formats (EPS) Pillow would start another program that runs what is in the file.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
BATCH = 64  # pictures that a worker decodes before it hands them over
FEW_BYTES = 16 * 2**20  # of picture files: below this, starting workers costs more than it saves

Decoded = tuple[np.ndarray, dict[str, str]]

# Pillow warns from 89 million pixels, which cameras reach, and refuses from 179 million.
# Behind whatever a program asks for itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)


def decode(path: str | Path, image_size: int | tuple[int, int]) -> np.ndarray:
    """Read one picture of any size and mode, the first of several, as RGB pixels of one size.

    It is turned as its EXIF orientation says and brought to that size as `fit` does. A JPEG many
    times too large is decoded at a half, a quarter or an eighth of its size, which is much faster,
    and still at least twice the size that it is then resized to.

    Args:
        path: the file.
        image_size: side of the result in pixels, or height and width.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        Exception: whatever Pillow makes of a file that is damaged, too large or no picture;
            ValueError for a mode without an agreed white level (32-bit integers, floats).
    """
    side = 2 * max(_height_width(image_size))
    with Image.open(path, formats=FORMATS) as file:
        file.draft(None, (side, side))
        return fit(file, image_size)


def fit(image: Image.Image, image_size: int | tuple[int, int]) -> np.ndarray:
    """Return an open picture as RGB pixels of one size.

    It is turned as its EXIF orientation says, laid on white where it is transparent, resized
    (antialiased) so that it covers the size, and its centre cut out. A picture that already has
    that size keeps its exact pixels. 16-bit grey is divided by 257, so that white stays white.

    Args:
        image: of any size and mode.
        image_size: side of the result in pixels, or height and width.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        ValueError: a mode without an agreed white level (32-bit integers, floats).
    """
    height, width = _height_width(image_size)
    image = _to_rgb(ImageOps.exif_transpose(image), image.format)
    size = (width, height)
    return np.asarray(image if image.size == size else ImageOps.fit(image, size))


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Return colour pixels as a network takes them.

    Args:
        pixels: uint8 `[..., 3]`, RGB.
        channels: 3 for the same; 1 for grey, by Pillow's weights (ITU-R BT.601), which leave grey
            pixels as they are.

    Returns:
        uint8 `[..., channels]`.

    Raises:
        UserError: another number of channels, which a picture file does not have.
    """
    if channels == 3:
        return pixels
    if channels != 1:
        raise UserError(
            f"the classifier takes pictures of {channels} channels, and files have 3 or 1: call "
            "its network with tensors of your own, from litvision.load(…).network."
        )
    grey = (pixels.int() * torch.tensor([19595, 38470, 7471])).sum(-1, keepdim=True)
    return ((grey + 32768) >> 16).to(torch.uint8)


def _height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


class DecodedBatches(Dataset[Decoded]):
    """Decode files a batch at a time: the pixels of those that can be read, why for the others.

    Args:
        files: paths.
        image_size: as `decode` takes it.
        root: the folder that `files` are relative to.
        batch_size: files a batch.
    """

    def __init__(
        self,
        files: list[str],
        image_size: int | tuple[int, int],
        root: str | Path = "",
        batch_size: int = BATCH,
    ) -> None:
        self.files = files
        self.batch_size = batch_size
        self.image_size = image_size
        self.root = Path(root)

    def __len__(self) -> int:
        return -(-len(self.files) // self.batch_size)

    def __getitem__(self, index: int) -> Decoded:
        """Return uint8 `[n, height, width, 3]` and file -> why it cannot be read."""
        pixels, errors = [], {}
        for path in self.files[index * self.batch_size :][: self.batch_size]:
            try:
                pixels.append(decode(self.root / path, self.image_size))
            except UnidentifiedImageError:  # its text is the path again
                errors[path] = "not a picture that Pillow knows"
            except Exception as error:  # Pillow raises whatever the damaged bytes lead it to
                errors[path] = one_line(error)
        shape = (-1, *_height_width(self.image_size), 3)
        return np.array(pixels, np.uint8).reshape(shape), errors

    def loader(self, num_workers: int | None, size: int) -> DataLoader[Decoded]:
        """Return a loader of these batches, in order.

        Args:
            num_workers: processes that decode; None: one a core, or none for few pictures.
            size: of all files, in bytes.
        """
        if num_workers is None:
            num_workers = 0 if size < FEW_BYTES else os.cpu_count() or 1
        collate: Any = _as_is
        return DataLoader(
            self,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=collate,
            generator=torch.Generator(),  # else it would draw from, and so shift, the global one
        )


def _as_is(batch: Decoded) -> Decoded:
    """Keep the batch a numpy array: as a tensor, it would need shared memory, often scarce."""
    return batch


def visible(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what a folder holds, but for hidden entries.

    Raises:
        UserError: it may not be listed.
        FileNotFoundError: it is not there.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError as error:
        raise UserError(f"{folder} may not be listed ({error.strerror}): allow it") from error


def pictures(
    folder: Path | str, name: str, above: tuple[Path, ...] = ()
) -> Iterator[tuple[str, int, int]]:
    """Yield (`name`/path, bytes, modification time in ns) of the pictures below `folder`.

    Args:
        folder: to look through.
        name: what it is called in the paths.
        above: the folders that led here, resolved; a link may lead to none of them.

    Raises:
        UserError: one does, or a folder may not be listed.
    """
    here = Path(folder).resolve()
    for entry in visible(folder):
        if entry.name.lower().endswith(EXTENSIONS):
            try:
                stat = entry.stat()
            except OSError:  # a link to nowhere: it counts as a picture that cannot be read
                stat = entry.stat(follow_symlinks=False)
            yield f"{name}/{entry.name}", stat.st_size, stat.st_mtime_ns
        elif entry.is_dir():
            target = Path(entry.path).resolve() if entry.is_symlink() else None
            if target and any(place.is_relative_to(target) for place in (here, *above)):
                raise UserError(f"{entry.path} is a link to a folder that holds it: remove it")
            yield from pictures(entry.path, f"{name}/{entry.name}", (here, *above))


def others(folder: Path, outside: str | None = None) -> str:
    """Count the files that are no pictures by their names; "" where there are none.

    Args:
        folder: with what is below it.
        outside: what to call any file that lies in the folder itself, where none should.
    """
    counts: Counter[str] = Counter()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini"):
                continue
            if outside and Path(place) == folder:
                counts[outside] += 1
            elif not name.lower().endswith(EXTENSIONS):
                counts[Path(name).suffix.lower() or "without an ending"] += 1
    return ", ".join(f"{count} {what}" for what, count in counts.most_common(10))


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        # PNG and PGM come in this mode with 16 bits, which TIFF has modes of their own for.
        wide = image.mode == "F" or (image.mode == "I" and file_format == "TIFF")
        if wide or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32 bits a pixel (mode {image.mode}) have no agreed white level")
        # Pillow's own conversion would clip everything above 255 to white.
        grey = (values.astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
