"""How many operations something takes: what a GPU would launch, counted on any machine."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Counted(TorchDispatchMode):
    """Counts operations, each of which would launch one kernel or more on a GPU; no views."""

    VIEWS = ("_reshape_alias", "_unsafe_view", "alias", "detach", "expand", "permute", "select",
             "slice", "t", "transpose", "unbind", "view")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.__name__.partition(".")[0] not in self.VIEWS
        return func(*args, **(kwargs or {}))
