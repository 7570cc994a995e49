from __future__ import annotations

import errno
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from omegaconf import OmegaConf
from torch import nn

from conftest import Compose
from litvision.assemble import assemble, total_steps
from litvision.errors import UserError
from litvision.optimizers import unfit_for_muon
from litvision.preflight import check_strategy, parts, trial_optimizer, try_optimizer
from litvision.resume import same_options


def test_assemble_builds_what_the_config_says_and_saves_it_resolved(compose_train: Compose) -> None:
    cfg = compose_train("optimizer.lr=0.3", "scheduler=cosine", "callbacks.early_stopping=null")
    run = assemble(cfg)
    assert run.classifier.network.fc.out_features == 10
    optimizer = run.classifier.optimizer(run.classifier.parameter_groups())
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert run.classifier.scheduler(optimizer).T_max == 4  # 30 pictures in batches of 16, twice
    names = [type(c).__name__ for c in run.trainer.callbacks]
    assert "EarlyStopping" not in names
    assert "ReduceLROnPlateau" not in names
    assert {"BestCheckpoint", "LearningRate", "Throughput", "Result"} <= set(names)
    assert not {"ModelSummary", "RichModelSummary"} & set(names)  # left out means left out
    saved = OmegaConf.load(Path(cfg.run_dir, "config.yaml"))
    assert saved.num_classes == saved.model.network.num_classes == 10
    assert saved.data.seed == 0
    assert "${" not in Path(cfg.run_dir, "config.yaml").read_text()
    card = run.classifier.card
    assert card["config"] == OmegaConf.to_container(saved)
    assert card["classes"] == list(run.datamodule.classes)
    assert card["image_size"] == [32, 32]


def test_classes_are_weighed_by_the_pictures_that_are_trained_on(
    compose_train: Compose,
) -> None:
    run = assemble(compose_train("model.class_weights=balanced", "data.limit_per_class=2"))
    counts = torch.tensor(run.datamodule.class_counts("train"))
    assert counts.sum() == len(run.datamodule.subsets["train"])
    expected = counts.sum() / (10 * counts.clamp(min=1))
    torch.testing.assert_close(run.classifier.loss_weights, expected)
    with pytest.raises(
        UserError, match=r"^model\.class_weights=\[1, 2\] does not fit: it takes 10 "
    ):
        assemble(compose_train("model.class_weights=[1,2]"))


@pytest.mark.parametrize(
    ("part", "overrides", "kind"),
    [
        ("callbacks.x", ["+callbacks.x={_target_: torch.nn.Identity}"], "Callback"),
        ("logger.x", ["+logger.x={_target_: torch.nn.Identity}"], "Logger"),
        ("optimizer", ["optimizer._target_=torch.nn.Identity", "optimizer.lr=0.1"], "Optimizer"),
        ("scheduler", ["scheduler=cosine", "scheduler._target_=torch.nn.Identity"], "LRScheduler"),
        ("model.network", ["model.network._target_=builtins.dict"], "Module"),
        ("model", ["model._target_=torch.nn.Identity"], "ImageClassifier"),
    ],
)
def test_a_part_of_another_kind_is_one_line(
    compose_train: Compose, part: str, overrides: list[str], kind: str
) -> None:
    with pytest.raises(UserError) as raised:
        assemble(compose_train(*overrides))
    target = "builtins.dict" if "builtins.dict" in overrides[0] else "torch.nn.Identity"
    name = target.rpartition(".")[2]
    assert str(raised.value) == (
        f"{part}._target_={target} gives {name}, which is no {kind}: name one."
    )


def test_initial_weights_depend_on_the_seed_alone(compose_train: Compose) -> None:
    def weights(*overrides: str) -> torch.Tensor:
        return assemble(compose_train(*overrides)).classifier.network.conv.weight

    first = weights()
    torch.rand(7)
    assert torch.equal(weights("data.train_size=60"), first)
    assert not torch.equal(weights("seed=1"), first)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("seed=-1", "seed=-1 does not fit: it takes an integer from 0 below 4294967296."),
        (
            "monitor=val/los",
            "monitor='val/los' does not fit: it takes train/loss or train/acc or val/loss",
        ),
        ("monitor=val/acc", "monitor=val/acc with mode=min keeps the worst: give mode=max too."),
        (
            "callbacks.early_stopping.monitor=val/los",
            "callbacks.early_stopping.monitor='val/los' does not fit: it takes train/loss or train",
        ),
        (
            "callbacks.best_checkpoint.monitor=val/acc",
            "callbacks.best_checkpoint.monitor=val/acc with callbacks.best_checkpoint.mode=min "
            "keeps the worst: give callbacks.best_checkpoint.mode=max too.",
        ),
        ("trainer.precision=64-true", "precision=64-true does not fit: .* 16-mixed: give 32-true."),
        ("trainer.precision=float32", "precision=float32 does not fit: .* give 32-true."),
        ("trainer.precision=16-true", "precision=16-true does not fit: .* give 16-mixed."),
        ("trainer.precision=bf16-true", "precision=bf16-true does not fit: .* give bf16-mixed."),
        ("+scheduler.T_0=4", "scheduler has options but no _target_: no schedule is chosen. Add "),
        (
            "+scheduler._target_=torch.optim.lr_scheduler.StepLR +scheduler._partial_=true "
            "+scheduler.step_size=2",
            "Two schedules would set the learning rate: the scheduler group and the callback ",
        ),
        (
            "scheduler=linear scheduler.start_factor=0",
            "scheduler: Starting multiplicative factor .* Change its options.$",
        ),
        ("trainer.max_epochs=0", "trainer.max_epochs=0 trains nothing: give more, or test what is"),
        ("trainer.max_steps=0", "trainer.max_steps=0 trains nothing"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 trains nothing"),
        ("callbacks.best_checkpoint.save_top_k=3", "save_top_k=3 does not fit: it takes one of 1"),
        ("callbacks.best_checkpoint.filename=top", "filename='top' does not fit: it takes one of"),
        ("mode=lowest", "mode='lowest' does not fit: it takes one of min, max."),
        ("~callbacks.result._target_", "callbacks.result has options but no _target_"),
        ("trainer.accelerator=abacus", "trainer: .*abacus"),
        ("data.val_fraction=1", "data.val_fraction=1 does not fit: it takes a number from 0 below"),
        (
            "model.compile=reduce-overhead trainer.accumulate_grad_batches=2",
            "model.compile=reduce-overhead replays a recorded step, whose gradients do not outlive",
        ),
        (
            "trainer.accumulate_grad_batches=0",
            "trainer.accumulate_grad_batches=0 does not fit: it ",
        ),
        ("data.train_size=few", "data.train_size='few' does not fit: it takes an integer"),
        ("callbacks.early_stopping.patience=x", "callbacks.early_stopping.patience='x' does not"),
        ("+model.network.depth=3", "model.network.depth: tiny.TinyNet has no option 'depth'."),
        ("+trainer.sync_batchnorm=true", "trainer.sync_batchnorm=true works on GPUs only."),
        (
            "+model.network.norm_pictures=100 +trainer.sync_batchnorm=true",
            r"model\.network\.norm_pictures=100 over parts of one device's: leave one out\.",
        ),
        ("resume=nowhere/last.ckpt", "There is no checkpoint at nowhere/last.ckpt"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_before_data_are_read(
    compose_train: Compose, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    def unexpected(self: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("litvision.sources.shapes.Shapes.prepare", unexpected)
    monkeypatch.setattr("litvision.sources.shapes.Shapes.read", unexpected)
    with pytest.raises(UserError, match=message) as error:
        assemble(compose_train(*override.split()))
    assert "\n" not in str(error.value)


def test_a_picture_too_small_for_the_network_is_refused_before_training(
    compose_train: Compose,
) -> None:
    network = "model.network._target_=litvision.networks.vgg.VGG16"
    with pytest.raises(UserError, match=r"^model.network refuses .*32x32 pixels, not 16x16"):
        assemble(compose_train(network, "data.image_size=16"))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, OSError), (errno.EROFS, OSError), (errno.ENOENT, UserError)],
)
def test_a_disk_that_takes_no_more_is_no_mistake_in_the_config(
    number: int, expected: type[Exception]
) -> None:
    package = compile(f"raise OSError({number}, 'so it is')", "/site-packages/some.py", "exec")
    with pytest.raises(expected, match="so it is"), parts("logger"):
        exec(package)


def test_a_network_with_another_number_of_classes_is_refused(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"gives \[1, 7\] for one picture, not .* \[1, 10\]"):
        assemble(compose_train("model.network.num_classes=7"))


@pytest.mark.parametrize("scheduler", ["cosine", "one_cycle"])
def test_a_schedule_needs_an_end(compose_train: Compose, scheduler: str) -> None:
    with pytest.raises(UserError, match=r"^scheduler: this schedule needs to know when"):
        assemble(compose_train(f"scheduler={scheduler}", "trainer.max_epochs=-1"))


def test_a_run_too_short_for_its_schedule_is_refused(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"^scheduler: .*for 4 steps"):
        assemble(compose_train("scheduler=one_cycle", "trainer.max_steps=4"))


def test_resuming_with_other_data_is_refused_before_these_are_read(
    compose_train: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = assemble(compose_train("logger=none"))
    run.trainer.fit(run.classifier, run.datamodule)
    monkeypatch.setattr("litvision.assemble.build_datamodule", pytest.fail)
    with pytest.raises(UserError) as caught:
        assemble(compose_train(f"resume={tmp_path}/run", "data.val_fraction=0.2"))
    assert str(caught.value) == (
        "resume: the checkpoint was trained with data.val_fraction=0.1, and this command says 0.2: "
        "give the same options as then."
    )


def test_another_source_is_named_before_its_options(compose_train: Compose) -> None:
    cfg = compose_train()
    before = OmegaConf.to_container(cfg, resolve=True)
    before["data"]["source"]["_target_"] = "another.Source"
    before["data"] |= {"seed": 7, "batch_size": 3}
    with pytest.raises(UserError, match=r"with data\.source\._target_=another\.Source, and this"):
        same_options(before, cfg)


def test_resuming_with_other_options_is_refused(compose_train: Compose) -> None:
    made = assemble(compose_train("logger=none", "trainer.max_epochs=1"))
    made.trainer.fit(made.classifier, made.datamodule)
    resume = f"resume={made.cfg.run_dir}"
    assert assemble(compose_train(resume, "data.num_workers=1")).resume_from is not None
    for override, key in (
        ("optimizer.lr=0.5", "optimizer.lr=0.01, and this command says 0.5"),
        ("data.batch_size=8", "data.batch_size=16, and this command says 8"),
        ("scheduler=cosine", "scheduler._target_=None, and this command says torch.optim"),
        ("model.network._target_=tiny.TinyLinear", "model.network._target_=tiny.TinyNet, and"),
    ):
        with pytest.raises(UserError, match=r"^resume: the checkpoint was trained with ") as error:
            assemble(compose_train(resume, override))
        assert key in str(error.value)


def test_a_schedule_refuses_its_own_bad_values(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"scheduler: .*pct_start"):
        assemble(compose_train("scheduler=one_cycle", "scheduler.pct_start=3"))


MUON = ["optimizer=muon", "optimizer.lr_linear=0.5"]


@pytest.mark.parametrize("options", [[], ["scheduler.cycle_momentum=false"]])
def test_a_schedule_of_one_rate_is_refused_where_there_are_several(
    compose_train: Compose, options: list[str]
) -> None:
    message = r"scheduler: this schedule sets one learning rate, and .* has 0\.01, 0\.05, 0\.5: "
    with pytest.raises(UserError, match=message):
        assemble(compose_train(*MUON, "scheduler=one_cycle", *options))


def test_a_schedule_may_name_each_rate(compose_train: Compose) -> None:
    one_cycle = ["scheduler=one_cycle", "scheduler.cycle_momentum=false"]
    cfg = compose_train(*MUON, *one_cycle, "scheduler.max_lr=[0.05,0.5,0.01]")
    cfg.total_steps = 100
    try_optimizer(cfg)


FILTERS = nn.Conv2d(3, 4, 3)


@pytest.mark.parametrize(
    ("network", "options", "sentence"),
    [
        (nn.Linear(3, 2), [], r"optimizer\.lr is the learning rate of filters, and .* has none: "),
        (
            FILTERS,
            [],
            r"optimizer\.keep_norm=true scales filters down, .* give optimizer\.keep_norm",
        ),
        (FILTERS, ["optimizer.keep_norm=false"], None),
        (FILTERS, ["optimizer=sgd"], None),
        (nn.Sequential(FILTERS, nn.GroupNorm(2, 4)), [], None),
    ],
)
def test_what_muon_does_nothing_for_is_said(
    compose_train: Compose, network: nn.Module, options: list[str], sentence: str | None
) -> None:
    said = unfit_for_muon(network, trial_optimizer(compose_train("optimizer=muon", *options)))
    assert len(said) == (sentence is not None)
    assert not sentence or re.match(sentence, said[0])


def test_the_start_of_a_run_says_it(
    compose_train: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    network = "model.network._target_=tiny.TinyLinear"
    assemble(compose_train("optimizer=muon", network))
    assert "rate of filters, and the network has none" in caplog.text


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["optimizer=muon"], "optimizer Muon"),
        (["callbacks=whitening"], "callbacks.whitening"),
        (["callbacks=whitening", "optimizer=muon"], "optimizer Muon and callbacks.whitening"),
    ],
)
def test_pieces_of_filters_are_not_enough(
    compose_train: Compose, options: list[str], what: str
) -> None:
    with pytest.raises(UserError, match=f"a piece of the weights, and {what} needs whole filters"):
        check_strategy(FSDPStrategy(), compose_train(*options))


def test_pieces_are_enough_for_what_takes_each_weight_by_itself(compose_train: Compose) -> None:
    check_strategy(FSDPStrategy(), compose_train())
    check_strategy(SingleDeviceStrategy(), compose_train("optimizer=muon"))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 3, "limit_train_batches": 4}, 12),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 15),
        ({"max_epochs": 3, "accumulate_grad_batches": 4}, 9),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": -1}, None),
    ],
)
def test_total_steps(options: dict[str, float], steps: int | None) -> None:
    defaults = {"limit_train_batches": 1.0, "accumulate_grad_batches": 1, "max_steps": -1}
    trainer = SimpleNamespace(**{**defaults, **options})
    assert total_steps(trainer, SimpleNamespace(steps_per_epoch=10)) == steps
