"""Every choice in conf/ composes, is checked, and means what the docs say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from litvision.configs import CONF, groups
from litvision.preflight import build
from litvision.scaling import scale_learning_rate
from litvision.validation import check

CHOICES = [
    f"{group}={file.stem}"
    for group in groups()
    for file in sorted((CONF / group).glob("*.yaml"))
    if file.stem != "base"
]


def composed(*overrides: str) -> DictConfig:
    fixed = ["run_dir=run", "overrides=[]"]
    with initialize_config_dir(str(CONF)):
        return compose("train", overrides=[*fixed, *overrides])


def plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("choice", [c for c in CHOICES if not c.startswith("callbacks=")])
def test_every_choice_composes_and_fits_what_it_is_passed_to(choice: str) -> None:
    root = ["data.root=pictures"] if "image_folder" in choice else []
    cfg = composed(choice, *root, "num_classes=10", "total_steps=100")
    cfg.trainer.precision = "32-true"
    scale_learning_rate(cfg)
    check(cfg)


def test_the_groups_that_people_are_promised() -> None:
    promised = {
        "data": {"cifar10", "cifar100", "image_folder", "shapes"},
        "model": {"resnet18", "vgg16", "two_layer"},
        "optimizer": {"sgd", "adamw"},
        "scheduler": {"none", "cosine", "one_cycle"},
        "trainer": {"default", "cpu", "gpu", "ddp"},
        "logger": {"tensorboard", "csv", "none"},
        "debug": {"fast", "overfit", "profile"},
        "experiment": {"seed", "demo", "batch_size", "normalization", "finetune"},
    }
    for group, names in promised.items():
        assert {f"{group}={name}" for name in names} <= set(CHOICES)


def test_every_callback_of_the_default_stands_alone_under_its_file_name() -> None:
    default = plain(composed())["callbacks"]
    assert set(default) == DEFAULT


DEFAULT = set(OmegaConf.load(CONF / "callbacks" / "default.yaml").defaults)
OPTIONAL = {f.stem for f in (CONF / "callbacks").glob("*.yaml")} - DEFAULT - {"default"}


@pytest.mark.parametrize("name", sorted(OPTIONAL))
@pytest.mark.parametrize("form", ["callbacks={}", "callbacks=[default,{}]"])
def test_any_other_callback_is_one_override_and_comes_beside_those(name: str, form: str) -> None:
    cfg = composed(form.format(name), "num_classes=10", "total_steps=100")
    cfg.trainer.precision = "32-true"
    assert set(cfg.callbacks) == DEFAULT | {name}
    check(cfg)


def test_several_of_them_can_be_chosen_at_once() -> None:
    callbacks = composed("callbacks=[lr_finder,finetuning]")["callbacks"]
    assert set(callbacks) == DEFAULT | {"lr_finder", "finetuning"}


@pytest.mark.parametrize("model", ["resnet18", "vgg16"])
def test_the_seed_recipe_to_the_letter(model: str) -> None:
    cfg = plain(composed("experiment=seed", f"model={model}"))
    assert cfg["optimizer"] == {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": False,
        "fused": True,
    }
    assert cfg["data"]["batch_size"] == 128
    assert cfg["trainer"]["max_epochs"] == 250
    plateau = cfg["callbacks"]["reduce_lr_on_plateau"]
    assert (plateau["monitor"], plateau["factor"], plateau["patience"]) == ("val/loss", 0.5, 10)
    assert cfg["scheduler"] is None


@pytest.mark.parametrize("scheduler", ["cosine", "one_cycle"])
def test_a_schedule_by_batch_takes_the_place_of_the_plateau_rule(scheduler: str) -> None:
    cfg = plain(composed(f"scheduler={scheduler}"))
    assert cfg["callbacks"]["reduce_lr_on_plateau"] is None
    assert cfg["scheduler"]["_partial_"] is True


@pytest.mark.parametrize("experiment", ["seed", "demo"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("scheduler", ["none", "cosine", "one_cycle"])
def test_a_recipe_leaves_room_for_other_choices(
    experiment: str, optimizer: str, scheduler: str
) -> None:
    choices = [f"experiment={experiment}", f"optimizer={optimizer}", f"scheduler={scheduler}"]
    cfg = composed(*choices, "num_classes=10", "total_steps=100")
    cfg.trainer.precision = "32-true"
    check(cfg)
    plateau = cfg.callbacks.reduce_lr_on_plateau
    assert plateau is None if scheduler != "none" else "_target_" in plateau


def test_monitor_and_mode_are_written_once() -> None:
    callbacks = plain(composed("monitor=val/acc", "mode=max"))["callbacks"]
    for name in ("reduce_lr_on_plateau", "early_stopping", "best_checkpoint"):
        assert (callbacks[name]["monitor"], callbacks[name]["mode"]) == ("val/acc", "max")


FUSED = [c.stem for c in (CONF / "optimizer").glob("*.yaml") if "fused: true" in c.read_text()]


@pytest.mark.parametrize("choice", FUSED)
def test_a_fused_optimizer_makes_the_update_of_the_one_that_it_replaces(choice: str) -> None:
    node = composed(f"optimizer={choice}").optimizer
    assert node.fused is True
    after = []
    for fused in (True, False):
        weights = torch.linspace(-1, 1, 50).requires_grad_()
        optimizer = build(node, fused=fused)([weights])
        for step in range(5):
            weights.grad = torch.sin(torch.arange(50.0) + step)
            optimizer.step()
        after.append(weights.detach())
    torch.testing.assert_close(*after)
