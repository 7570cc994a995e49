"""Write checkpoints whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from litvision.errors import UserError, os_error


class WholeCheckpointIO(TorchCheckpointIO):
    """Write to a file beside the checkpoint, which then takes its name.

    Lightning builds the file in memory, writes it to the folder for temporary files, and moves it:
    a copy where that is another disk, which a kill or a full disk leaves half done. Here the bytes
    are on the disk before the name is theirs; until then the checkpoint before is untouched.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save to a file of this machine; whatever has another address is Lightning's to save.

        Raises:
            UserError: it cannot be written, because the disk is full, say.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            _flush_folder(target.parent)
        except (OSError, RuntimeError) as error:
            cause = os_error(error)
            if cause is None:
                raise
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise UserError(
                f"cannot write the checkpoint {target} ({cause.strerror or cause}). The one before "
                "it is untouched. Make room, then go on with the same command and "
                f"resume={target.parent.parent}."
            ) from error


def _flush_folder(folder: Path) -> None:
    """See to it that the new name, too, outlives a power cut."""
    if os.name != "posix":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
