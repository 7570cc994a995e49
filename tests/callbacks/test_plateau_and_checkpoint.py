"""The callbacks that watch one metric, driven by a validation loss written down beforehand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from litvision.batches import Batch
from litvision.callbacks.best_checkpoint import BestCheckpoint
from litvision.callbacks.last_checkpoint import LastCheckpoint
from litvision.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from litvision.classifier import ImageClassifier, NonFiniteLossError
from litvision.errors import UserError

NAN = float("nan")


class Scripted(ImageClassifier):
    """Logs the validation losses it is given, one an epoch, whatever it learns."""

    def __init__(self, losses: list[float], scheduler: Any = None) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        super().__init__(network, partial(torch.optim.SGD, lr=0.8), scheduler)
        self.script = losses

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.script[self.current_epoch])


class Recorder(L.Callback):
    """Remembers the learning rate that every epoch starts with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def run(
    folder: Path, losses: list[float], *callbacks: L.Callback, epochs: int | None = None,
    scheduler: Any = None, every: int = 1, **fit: Any,
) -> tuple[Recorder, L.Trainer]:  # fmt: skip
    recorder = Recorder()
    checkpoints = any(isinstance(c, BestCheckpoint) for c in callbacks)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs or len(losses),
        check_val_every_n_epoch=every,
        callbacks=[*callbacks, recorder],
        logger=False,
        enable_checkpointing=checkpoints,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    data = TensorDataset(
        torch.ones(2, 3, 2, 2), torch.tensor([0, 1]), torch.zeros(2), torch.ones(2)
    )

    def collate(rows: list[tuple[Tensor, ...]]) -> Batch:
        return Batch(torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))

    loader = DataLoader(data, batch_size=2, collate_fn=collate)
    trainer.fit(Scripted(losses, scheduler), loader, loader, **fit)
    return recorder, trainer


def test_the_rate_is_halved_after_patience_epochs_without_improvement(tmp_path: Path) -> None:
    losses = [1.0, 0.9, 1.0, 1.0, 1.0, 0.8, 0.9, 0.9, 0.9, 0.9]
    recorder, _ = run(tmp_path, losses, ReduceLROnPlateau(patience=3))
    assert recorder.rates == [0.8] * 5 + [0.4] * 4 + [0.2]


def test_an_equal_loss_is_no_worse(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, [1.0] * 6, ReduceLROnPlateau(patience=2))
    assert recorder.rates == [0.8] * 6


def test_a_metric_that_should_rise(tmp_path: Path) -> None:
    plateau = ReduceLROnPlateau(mode="max", patience=2, factor=0.1, min_lr=0.05)
    recorder, _ = run(tmp_path, [0.1, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.3], plateau)
    assert recorder.rates == pytest.approx([0.8] * 5 + [0.08] * 2 + [0.05])


def test_epochs_without_validation_are_not_counted(tmp_path: Path) -> None:
    # Validated after epochs 2, 4, 6 and 8: the two epochs that do not improve are 6 and 8.
    losses = [NAN, 1.0, NAN, 0.9, NAN, 1.0, NAN, 1.0, NAN, 1.0]
    recorder, _ = run(tmp_path, losses, ReduceLROnPlateau(patience=2), every=2)
    assert recorder.rates == [0.8] * 8 + [0.4] * 2


def test_a_resumed_run_counts_on_where_it_was_stopped(tmp_path: Path) -> None:
    losses = [1.0, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1]
    whole, _ = run(tmp_path, losses, ReduceLROnPlateau(patience=3))
    for stop in (2, 3, 4):
        folder = tmp_path / str(stop)
        options = {"dirpath": folder, "save_on_train_epoch_end": True}
        last = L.pytorch.callbacks.ModelCheckpoint(filename="last", **options)
        best = BestCheckpoint(filename="best", monitor="val/loss", **options)
        first, _ = run(folder, losses, ReduceLROnPlateau(patience=3), best, last, epochs=stop)
        second, _ = run(
            folder, losses, ReduceLROnPlateau(patience=3), ckpt_path=folder / "last.ckpt",
            weights_only=True,
        )  # fmt: skip
        assert first.rates + second.rates == whole.rates


def test_two_schedules_are_refused(tmp_path: Path) -> None:
    step = partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    with pytest.raises(UserError, match=r"Choose one: scheduler=none, or callbacks.reduce_lr"):
        run(tmp_path, [1.0], ReduceLROnPlateau(), scheduler=step)


def test_a_metric_that_nobody_logs_is_named_beside_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"monitor=val/los was not logged. Logged: .*val/loss"):
        run(tmp_path, [1.0], ReduceLROnPlateau(monitor="val/los"))


def saved_epochs(
    folder: Path, losses: list[float], every: int = 1, **options: Any
) -> tuple[list[int], Any]:
    """Return the epochs at which best.ckpt was written, and the callback."""
    epochs: list[int] = []

    class Spy(BestCheckpoint):
        def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
            super()._save_checkpoint(trainer, filepath)
            epochs.append(trainer.current_epoch)

    spy = Spy(
        dirpath=folder, filename="best", monitor="val/loss", enable_version_counter=False, **options
    )  # fmt: skip
    run(folder, losses, spy, every=every)
    return epochs, spy


def test_the_best_checkpoint_is_saved_whenever_the_loss_does_not_rise(tmp_path: Path) -> None:
    epochs, best = saved_epochs(tmp_path, [1.0, 1.0, 1.2, 0.9, 0.9, 1.1])
    assert epochs == [0, 1, 3, 4]
    assert best.best_epoch == 4
    assert float(best.best_model_score) == pytest.approx(0.9)
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["best.ckpt"]
    content = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert content["epoch"] == 4
    (state,) = [v for k, v in content["callbacks"].items() if "Spy{" in k]
    assert state["best_epoch"] == 4


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/loss")
    assert not best.check_monitor_top_k(L.Trainer(accelerator="cpu"), torch.tensor(NAN))
    assert best.check_monitor_top_k(L.Trainer(accelerator="cpu"), torch.tensor(3.0))


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/loss")
    with pytest.raises(NonFiniteLossError) as error:
        run(tmp_path, [1.0, NAN, 0.5], best)
    assert str(error.value).startswith(
        "The validation loss is not finite at epoch 1, after step 1. What was saved before is"
    )
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 0


def test_a_run_resumed_in_another_folder_remembers_the_best_so_far(tmp_path: Path) -> None:
    def callbacks(folder: Path) -> tuple[BestCheckpoint, L.Callback]:
        last = L.pytorch.callbacks.ModelCheckpoint(
            dirpath=folder, filename="last", save_on_train_epoch_end=True
        )
        return BestCheckpoint(dirpath=folder, filename="best", monitor="val/loss"), last

    losses = [1.0, 0.5, 0.9, 0.8]
    run(tmp_path, losses, *callbacks(tmp_path / "a"), epochs=2)
    best, last = callbacks(tmp_path / "b")
    run(
        tmp_path, losses, best, last, ckpt_path=tmp_path / "a" / "last.ckpt", weights_only=True
    )  # fmt: skip
    assert not (tmp_path / "b" / "best.ckpt").exists()
    assert best.best_model_path == str(tmp_path / "a" / "best.ckpt")
    assert float(best.best_model_score) == 0.5
    assert best.best_epoch == 1
    better, last = callbacks(tmp_path / "c")
    run(
        tmp_path, [1.0, 0.5, 0.4], better, last, ckpt_path=tmp_path / "a" / "last.ckpt",
        weights_only=True,
    )  # fmt: skip
    assert better.best_model_path == str(tmp_path / "c" / "best.ckpt")
    assert (tmp_path / "a" / "best.ckpt").exists()


def test_a_last_epoch_without_validation_does_not_pass_for_the_best(tmp_path: Path) -> None:
    best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/loss")
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, callbacks=[best], logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    content = [Batch(torch.ones(2, 3, 2, 2), torch.tensor([0, 1]))] * 2
    loader = DataLoader(content, batch_size=None)  # two steps an epoch: the third is alone
    trainer.fit(Scripted([1.0, 1.0]), loader, loader)
    assert trainer.current_epoch == 2
    assert best.best_epoch == 0


def test_an_epoch_that_was_not_validated_is_never_the_best(tmp_path: Path) -> None:
    epochs, _ = saved_epochs(tmp_path, [NAN, 1.0, NAN, 0.5, NAN], every=2)
    assert epochs == [1, 3]


def test_the_highest_is_best_where_the_metric_should_rise(tmp_path: Path) -> None:
    epochs, _ = saved_epochs(tmp_path, [0.1, 0.3, 0.2, 0.3], mode="max")
    assert epochs == [0, 1, 3]


def test_early_stopping_sees_the_same_numbers(tmp_path: Path) -> None:
    stopping = EarlyStopping("val/loss", patience=3)
    recorder, trainer = run(tmp_path, [1.0, 0.5, 0.6, 0.7, 0.8, 0.1], stopping)
    assert len(recorder.rates) == 5
    assert trainer.current_epoch == 5


def test_nothing_is_counted_while_it_cools_down(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path, [1.0, *[1.1] * 6], ReduceLROnPlateau(patience=1, cooldown=2))
    assert recorder.rates == [0.8] * 2 + [0.4] * 3 + [0.2] * 2


@pytest.mark.parametrize(
    ("given", "rates"), [({"min_lr": 0.4}, [0.8, 0.4, 0.4]), ({"factor": 0.25}, [0.8, 0.2, 0.05])]
)
def test_a_resumed_run_goes_by_the_options_given_now(
    tmp_path: Path, given: dict[str, float], rates: list[float]
) -> None:
    losses = [1.0, 1.1, 1.1, 1.1]
    best = BestCheckpoint(monitor="val/loss", dirpath=tmp_path)
    last = L.pytorch.callbacks.ModelCheckpoint(
        filename="last", dirpath=tmp_path, save_on_train_epoch_end=True
    )
    run(tmp_path, losses, ReduceLROnPlateau(patience=1), best, last, epochs=1)
    resumed = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": False}
    recorder, _ = run(tmp_path, losses, ReduceLROnPlateau(patience=1, **given), **resumed)
    assert recorder.rates == rates


def test_the_rule_and_the_best_checkpoint_forget(tmp_path: Path) -> None:
    plateau = ReduceLROnPlateau(patience=2)
    best = BestCheckpoint(monitor="val/loss", dirpath=tmp_path)
    _, trainer = run(tmp_path, [0.1, 0.2], plateau, best)
    assert plateau.schedule.best == pytest.approx(0.1)
    assert not best.check_monitor_top_k(trainer, torch.tensor(9.0))
    plateau.forget()
    best.forget()
    assert (plateau.schedule.best, plateau.schedule.num_bad_epochs) == (float("inf"), 0)
    assert best.check_monitor_top_k(trainer, torch.tensor(9.0))
    assert best.best_epoch is None


def test_an_infinite_metric_is_never_the_best(tmp_path: Path) -> None:
    best = BestCheckpoint(monitor="val/loss", dirpath=tmp_path, mode="max")
    _, trainer = run(tmp_path, [0.1], best)
    assert not best.check_monitor_top_k(trainer, torch.tensor(float("inf")))
    assert best.check_monitor_top_k(trainer, torch.tensor(0.2))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("old", "new"), "old"),  # the old one is still the best
        (("new",), "new"),  # the folder was moved
        ((), "old"),
    ],
)
def test_the_best_is_looked_for_where_it_is_now(
    tmp_path: Path, there: tuple[str, ...], expected: str
) -> None:
    old, new = (BestCheckpoint(tmp_path / name, monitor="val/loss") for name in ("old", "new"))
    path = str(tmp_path / "old" / "best.ckpt")
    old.best_model_path = old.kth_best_model_path = path
    old.best_model_score = old.kth_value = torch.tensor(0.5)
    old.best_k_models = {path: torch.tensor(0.5)}
    old._best_epoch = 3
    for name in there:
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.ckpt").touch()
    new.load_state_dict(old.state_dict())
    found = str(tmp_path / expected / "best.ckpt")
    assert (new.best_model_path, new.kth_best_model_path) == (found, found)
    assert new.best_k_models == {found: torch.tensor(0.5)}
    assert (new.best_model_score, new.kth_value, new.best_epoch) == (0.5, 0.5, 3)


@pytest.mark.parametrize(
    ("cut", "validates", "batches", "saves"),
    [
        (False, True, [2], True),
        (True, True, [2], False),  # `last.ckpt` goes on within the epoch
        (False, True, [0], False),  # the data have nothing to validate
        (False, False, [0], True),  # nothing shall be validated
    ],
)
def test_only_a_whole_epoch_can_be_the_best(
    monkeypatch: pytest.MonkeyPatch, cut: bool, validates: bool, batches: list[int], saves: bool
) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(ModelCheckpoint, "on_train_epoch_end", lambda *a: saved.append(a))
    monkeypatch.setattr(BestCheckpoint, "is_of_this_epoch", lambda *_: True)
    last = LastCheckpoint()
    last.cut = cut
    trainer: Any = SimpleNamespace(
        callbacks=[last], enable_validation=validates, num_val_batches=batches
    )
    BestCheckpoint(monitor="train/loss").on_train_epoch_end(trainer, Scripted([]))
    assert bool(saved) == saves


def test_the_best_by_training_is_saved_at_an_epochs_end_however_often_it_is_validated() -> None:
    trainer: Any = SimpleNamespace(val_check_interval=0.5, check_val_every_n_epoch=1)
    assert BestCheckpoint(monitor="train/loss")._should_save_on_train_epoch_end(trainer)


@pytest.mark.parametrize(
    ("ends", "can", "saved"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_run_that_ends_within_an_epoch_is_saved_there_if_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, can: bool, saved: bool
) -> None:
    paths: list[Path] = []
    steps: list[int] = []
    monkeypatch.setattr("litvision.callbacks.last_checkpoint.ends_here", lambda _: ends)
    monkeypatch.setattr("litvision.callbacks.last_checkpoint.can_save", lambda _: can)
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", lambda *a: steps.append(a[-1]))
    last = LastCheckpoint(tmp_path, "last")
    trainer: Any = SimpleNamespace(save_checkpoint=paths.append)
    last.on_train_batch_end(trainer, Scripted([]), None, None, 7)
    assert paths == ([tmp_path / "last.ckpt"] if saved else [])
    assert last.cut == saved
    assert steps == [7]  # `every_n_train_steps` counts on
    last.on_train_epoch_start(trainer, Scripted([]))
    assert not last.cut
