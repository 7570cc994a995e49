"""What of the libraries' messages a user of this project gets to read."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from typing import Any

# What Lightning says that means nothing to a user of this project, as patterns of the beginning.
NOISE = (
    r"Precision bf16-mixed is not supported by the model summary",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*does not have many workers",  # pictures in memory need none
    r"Total length of `list` across ranks is zero",  # no validation, as data.val_fraction=0 asks
    r"The number of training batches",  # epochs are logged, not batches
    r"Experiment logs directory .* exists",  # the run's folder is there before its loggers
    r"Checkpoint directory .* exists",
    r"The dirpath has changed",  # BestCheckpoint reloads what this says is not
    r"Trainer already configured with model summary",
    r"GPU available: False",
    r"TPU available",
    r"\W*Tip: ",
    r"Restoring states from the checkpoint",
    r"Loaded model weights from the checkpoint",
    # What the finders of batch size and learning rate do to come back to where they began.
    r"Restored all states from the checkpoint at .*[/\\\\]\.(lr_find|scale_batch_size)_",
    r"`weights_only` was not set",
    r"It is recommended to use `self\.log\(.*sync_dist=True\)`",  # it is reduced already
    r"torch\.distributed\.nn\.functional\.all_gather is deprecated",  # Lightning's own call
    r"Finished batch size finder",  # whether the run goes on with that size, the callback says
)
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.tuner.batch_size_scaling",
)


def settle_logging() -> None:
    """Let Lightning's messages through once, and leave out those that say nothing here."""
    logging.getLogger("lightning").handlers.clear()  # Hydra's handlers print them too
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if _means_something not in logger.filters:
            logger.addFilter(_means_something)
    if threading.excepthook is not _say_unless_said:
        _hooks[:] = [threading.excepthook]
        threading.excepthook = _say_unless_said


_hooks: list[Any] = []  # whatever was told of failing threads before


def _say_unless_said(failed: threading.ExceptHookArgs) -> None:
    """Leave out what TensorBoard's writer meets, a full disk, say: its next write raises it."""
    if type(failed.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
        _hooks[0](failed)


def _means_something(record: logging.LogRecord) -> bool:
    return not any(re.match(pattern, record.getMessage()) for pattern in NOISE)
