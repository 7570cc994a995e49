from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import Field
from torch import Tensor

from litvision.errors import UserError
from litvision.validation import check, check_value, describe


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, int),
        (3, float),
        (None, int | None),
        ([0.9, 0.99], tuple[float, float]),
        ("zero", Literal["zero", "reflect"]),
        (["a"], list[str] | None),
        (OmegaConf.create([1, 2]), list[int]),
        ("anything", Any),
    ],
)
def test_values_that_fit(value: Any, annotation: Any) -> None:
    check_value("key", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("abc", int, "key='abc' does not fit: it takes an integer."),
        ("3", int, "key='3' does not fit: it takes an integer."),
        (1, bool, "key=1 does not fit: it takes true or false."),
        (2.5, int, "key=2.5 does not fit: it takes an integer."),
        (0, Annotated[int, Field(ge=1)], "key=0 does not fit: it takes an integer from 1."),
        (
            1.0,
            Annotated[float, Field(gt=0, lt=1)],
            "key=1.0 does not fit: it takes a number above 0 below 1.",
        ),
        (None, int, "key=null does not fit: it takes an integer."),
        (math.nan, float, "key=nan does not fit (not finite): it takes a number."),
        (math.inf, float | Tensor, "key=inf does not fit (not finite): it takes a number."),
        (
            "wrap",
            Literal["zero", "reflect"],
            "key='wrap' does not fit: it takes one of zero, reflect.",
        ),
        (
            [1, "x"],
            list[int],
            "key=[1, 'x'] does not fit (item 1: input should be a valid integer, unable to parse "
            "string as an integer): it takes a list of an integer.",
        ),
    ],
)
def test_values_that_do_not_fit(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_value("key", value, annotation)
    assert str(error.value) == message


def test_describe_joins_alternatives() -> None:
    assert describe(Annotated[int, Field(ge=0, le=9)] | None) == "an integer from 0 up to 9 or null"
    assert describe(list[float]) == "a list of a number"


def node(**content: Any) -> Any:
    return OmegaConf.create({"part": content})


def test_an_option_that_does_not_exist_names_the_nearest() -> None:
    message = "part.momentun: torch.optim.SGD has no option 'momentun'. Nearest: momentum."
    with pytest.raises(UserError, match=re.escape(message)):
        check(node(_target_="torch.optim.SGD", _partial_=True, momentun=0.9))


def test_an_option_like_none_lists_them_all() -> None:
    with pytest.raises(UserError, match=r"has no option 'xyz'\. It takes params, lr, momentum, "):
        check(node(_target_="torch.optim.SGD", _partial_=True, xyz=1))


def test_options_of_others_are_checked_by_their_own_annotations() -> None:
    check(node(_target_="torch.optim.AdamW", _partial_=True, lr=1, betas=[0.9, 0.99]))
    with pytest.raises(
        UserError, match=r"part.nesterov='yes' does not fit: it takes true or false"
    ):
        check(node(_target_="torch.optim.SGD", _partial_=True, nesterov="yes"))
    with pytest.raises(UserError, match=r"part.max_epochs='ten' .* takes an integer or null"):
        check(node(_target_="lightning.Trainer", max_epochs="ten"))


def test_a_target_that_cannot_be_imported() -> None:
    with pytest.raises(UserError, match=r"part._target_ names 'torch.optim.SDG', which cannot be"):
        check(node(_target_="torch.optim.SDG"))
    with pytest.raises(UserError, match="which is not a class or function"):
        check(node(_target_="math.pi"))


def takes_any(first: int = 0, child: Any = None, **others: Any) -> None: ...


def test_a_callable_with_open_options_takes_any() -> None:
    check(node(_target_="test_validation.takes_any", first=1, other="x"))
    with pytest.raises(UserError, match=r"part\.first='x' does not fit"):
        check(node(_target_="test_validation.takes_any", first="x"))


def part(size: Annotated[int, Field(ge=1)]) -> None: ...


def test_open_options_that_go_on_to_a_partial_child_are_checked_against_it() -> None:
    child = {"_target_": "test_validation.part", "_partial_": True}
    check(node(_target_="test_validation.takes_any", child=child, size=3))
    with pytest.raises(UserError, match=r"part.size=0 does not fit: it takes an integer from 1"):
        check(node(_target_="test_validation.takes_any", child=child, size=0))
    with pytest.raises(UserError, match=r"part.siz: .* has no option 'siz'. Nearest: size"):
        check(node(_target_="test_validation.takes_any", child=child, siz=3))


def test_keys_that_are_numbers_are_keys() -> None:
    target = "lightning.pytorch.callbacks.GradientAccumulationScheduler"
    check(node(callbacks={"accumulate": {"_target_": target, "scheduling": {1: 4}}}))


def test_nested_nodes_and_lists_are_checked_with_their_whole_path() -> None:
    wrong = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": "fast"}
    with pytest.raises(UserError, match=r"part.items\[1\].lr='fast'"):
        check(node(items=[{"x": 1}, wrong]))


@pytest.mark.parametrize("partial", ["2", "null", "'true'"])
def test_partial_is_true_or_false(partial: str) -> None:
    cfg = OmegaConf.create(f"a: {{_target_: torch.nn.Linear, _partial_: {partial}}}")
    with pytest.raises(
        UserError, match=r"^a\._partial_=.* does not fit: it takes true or false\.$"
    ):
        check(cfg)


def test_what_a_target_needs_is_named_unless_it_is_called_later() -> None:
    cfg = OmegaConf.create({"a": {"_target_": "torch.nn.Linear", "in_features": 3}})
    with pytest.raises(UserError) as error:
        check(cfg)
    assert str(error.value) == (
        "a: torch.nn.Linear needs out_features: give a.out_features, or _partial_: true where it "
        "is called later."
    )
    cfg.a._partial_ = True
    check(cfg)
    del cfg.a._partial_
    cfg.a.out_features = 2
    check(cfg)


@pytest.mark.parametrize("target", ["null", "3", "[a]"])
def test_a_target_that_is_no_name(target: str) -> None:
    with pytest.raises(
        UserError, match=r"^a\._target_=.* it takes the name of a class or function"
    ):
        check(OmegaConf.create(f"a: {{_target_: {target}}}"))


class Takes:
    def __init__(self, function: Callable[..., Any]) -> None:
        pass


class Gives:
    def __call__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("function", "fits"),
    [
        ({"_target_": "fractions.Fraction"}, False),
        ({"_target_": "fractions.Fraction", "_partial_": True}, True),
        ({"_target_": f"{__name__}.Gives"}, True),
        ({"_target_": "torch.nn.ReLU"}, True),
        ({"_target_": "operator.itemgetter", "_args_": [1]}, True),
        ({"_target_": "functools.partial", "_args_": [1]}, True),
    ],
)
def test_what_is_called_has_to_be_a_function_by_then(function: dict[str, Any], fits: bool) -> None:
    cfg = OmegaConf.create({"a": {"_target_": f"{__name__}.Takes", "function": function}})
    if fits:
        check(cfg)
        return
    with pytest.raises(UserError) as error:
        check(cfg)
    assert str(error.value) == (
        "a.function._partial_=false does not fit: it takes true, to be built later."
    )


class Mine:
    def __init__(self, network: Any, optimizer: Any, scheduler: Any) -> None:
        pass


def test_what_a_model_is_given_when_it_is_built_need_not_be_in_its_config() -> None:
    cfg = OmegaConf.create({"model": {"_target_": f"{__name__}.Mine"}})
    with pytest.raises(UserError, match=r"^model: .*Mine needs network: give model\.network"):
        check(cfg)
    cfg.model.network = None
    check(cfg)
