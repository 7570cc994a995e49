"""Standard output and error that outlive whoever reads them."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


def outlive_readers() -> None:
    """Let what this process prints go nowhere once nobody can read it, instead of ending it.

    A training on a remote machine, or with its output in a pipe, goes on when the connection or
    the other command ends; its metrics are in files. Every other failure to write still raises.
    """
    if os.name != "posix":
        return
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Not what a notebook or a test has put there.
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = _Outliving(stream.fileno(), "w", closefd=False)
            # A pipe whose reader has ended, and a terminal that was closed; of a disk, a fault.
            raw.gone = (errno.EPIPE, errno.EIO) if stream.isatty() else (errno.EPIPE,)
            unbuffered = stream.write_through  # python -u
            replaced = io.TextIOWrapper(
                raw if unbuffered else io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=unbuffered,
            )
            setattr(sys, name, replaced)


class _Outliving(io.FileIO):
    gone: tuple[int, ...] = ()

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self.gone:
                raise
            return memoryview(data).nbytes
