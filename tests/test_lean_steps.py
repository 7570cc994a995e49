"""A step is spared what nobody asked for, and nothing else."""

from __future__ import annotations

import pickle

import lightning as L
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.profilers import SimpleProfiler

from conftest import Compose
from litvision.assemble import assemble
from litvision.lean_steps import STEP_HOOKS, _leave_out_empty_hooks


def test_a_profiler_that_is_asked_for_is_kept_and_none_costs_nothing(
    compose_train: Compose,
) -> None:
    without = assemble(compose_train()).trainer.profiler
    assert without.profile("a") is without.profile("b")
    assert without.summary() == ""
    asked = assemble(compose_train("debug=profile")).trainer.profiler
    assert isinstance(asked, SimpleProfiler)


def test_state_keys_are_lightnings_own_and_are_written_once(compose_train: Compose) -> None:
    trainer = assemble(compose_train()).trainer
    settled = [c for c in trainer.callbacks if "_generate_state_key" in c.__dict__]
    assert {"BestCheckpoint", "EarlyStopping"} <= {type(c).__name__ for c in settled}
    for callback in settled:
        key = callback.state_key
        assert callback.state_key is key  # not only equal
        assert pickle.loads(pickle.dumps(callback)).state_key == key
        del callback.__dict__["_generate_state_key"]
        assert callback.state_key == key
        assert callback.state_key is not key


def test_step_hooks_that_do_nothing_are_not_called(compose_train: Compose) -> None:
    def called(callback: L.Callback) -> set[str]:
        return {name for name in STEP_HOOKS if callable(getattr(callback, name))}

    def written(callback: L.Callback) -> set[str]:
        own = set(dir(callback)) & set(STEP_HOOKS)
        return {name for name in own if getattr(type(callback), name) != getattr(L.Callback, name)}

    trainer = assemble(compose_train()).trainer
    assert any(written(callback) for callback in trainer.callbacks)
    for callback in trainer.callbacks:
        assert called(callback) == written(callback)
        assert called(pickle.loads(pickle.dumps(callback))) == written(callback)
    for callback in assemble(compose_train("debug=profile")).trainer.callbacks:
        assert called(callback) == set(STEP_HOOKS)  # and all in the profile
    given = LambdaCallback(on_after_backward=lambda trainer, module: None)
    _leave_out_empty_hooks(given)
    assert called(given) == {"on_after_backward"}
