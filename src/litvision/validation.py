"""Check a composed config against the annotations of what its values are passed to.

A class says once, in its signature, what its options are and what they take; a node of the config
that names the class by `_target_` is checked against that before any data are read. So a new
network, callback or source is checked without another line.
"""

from __future__ import annotations

import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Container, Iterator
from typing import Any

import annotated_types
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from litvision.configs import nearest
from litvision.errors import UserError

# What these are given as objects when they are built.
BUILT = {"model": ("optimizer", "scheduler"), "trainer": ("callbacks", "logger")}
# Keys that Hydra itself reads.
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def check(cfg: DictConfig) -> None:
    """Check every value that is passed to a `_target_`, in the whole config.

    Raises:
        UserError: a target cannot be imported, an option does not exist, or a value does not fit;
            the message names the key and says what it takes.
    """
    for path, node in targets(cfg):
        check_node(path, node)


def targets(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Yield every node with a `_target_`, and its dotted path, outermost first."""
    if isinstance(node, DictConfig) and not node._is_none():
        if "_target_" in node:
            yield path, node
        keys: Any = node  # of callbacks' own options, numbers too
        for key in keys:
            yield from targets(node[key], f"{path}.{key}" if path else str(key))
    elif isinstance(node, ListConfig) and not node._is_none():
        for index, item in enumerate(node):
            yield from targets(item, f"{path}[{index}]")


def check_node(path: str, node: DictConfig) -> None:
    """Check one node's options against the signature of its target."""
    target, partial = locate(path, node._target_), node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise UserError(f"{path}._partial_={partial} does not fit: it takes true or false.")
    options, any_other = options_of(target)
    given = {*map(str, node), *BUILT.get(path, ())}
    missing = [] if partial or "_args_" in node else required(target, given)
    if missing:
        raise UserError(
            f"{path}: {node._target_} needs {', '.join(missing)}: give {path}.{missing[0]}, or "
            "_partial_: true where it is called later."
        )
    if any_other:
        # What a callable takes as **options goes on to its partial children, if it has any.
        for child_path, child in targets(node, path):
            if child_path != path and child.get("_partial_"):
                more, any_other = options_of(locate(child_path, child._target_))
                options |= more
    for key in map(str, node):
        if key in HYDRA_KEYS:
            continue
        full = f"{path}.{key}"
        if key not in options:
            if any_other:
                continue
            near = nearest(key, options)
            hint = f"Nearest: {', '.join(near)}" if near else f"It takes {', '.join(options)}"
            raise UserError(f"{full}: {node._target_} has no option {key!r}. {hint}.")
        check_value(full, node[key], options[key])
        check_function(full, node[key], options[key])


def check_function(path: str, value: Any, annotation: Any) -> None:
    """Refuse an object where a function is taken, such as a source that is built too early."""
    wanted = any(
        typing.get_origin(a) is Callable for a in (annotation, *typing.get_args(annotation))
    )
    if not wanted or not isinstance(value, DictConfig) or value.get("_partial_", False):
        return
    target = locate(path, value.get("_target_")) if "_target_" in value else None
    calls = inspect.isclass(target) and any("__call__" in vars(c) for c in target.__mro__[:-1])
    if inspect.isclass(target) and not calls:
        raise UserError(f"{path}._partial_=false does not fit: it takes true, to be built later.")


def locate(path: str, target: Any) -> Callable[..., Any]:
    """Import what a `_target_` names."""
    if not isinstance(target, str):
        shown = "null" if target is None else target
        raise UserError(
            f"{path}._target_={shown} does not fit: it takes the name of a class or function."
        )
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}._target_ names {target!r}, which cannot be imported ({error}). "
            "Correct the name, or install its package."
        ) from error
    if not callable(found):
        raise UserError(f"{path}._target_ names {target!r}, which is not a class or function.")
    return found


def options_of(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Return option -> annotation of a callable, and whether it takes any other option as well."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        return {}, True
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # annotations for type checkers only
        hints = {}
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    options = {p.name: hints.get(p.name, Any) for p in parameters if p.kind not in variadic}
    options.pop("self", None)
    return options, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def required(target: Callable[..., Any], given: Container[Any]) -> list[str]:
    """Return the arguments without a default of a callable that are not among those given."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        p.name
        for p in parameters
        if p.kind in named and p.default is inspect.Parameter.empty and p.name not in given
    ]


def check_keys(cfg: DictConfig, options: type) -> None:
    """Check the plain keys of a config, which no class takes as they are.

    Args:
        cfg: has them all.
        options: a `TypedDict` of what they take.
    """
    for key, annotation in typing.get_type_hints(options, include_extras=True).items():
        check_value(key, cfg[key], annotation)


def check_value(path: str, value: Any, annotation: Any) -> None:
    """Check one value, and say which key it is and what it takes if it does not fit."""
    if isinstance(value, DictConfig) and any(True for _ in targets(value)):
        return  # an object by then; its own node is checked by itself
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    # Strict, so that "3" is no number and 1 no truth; but a YAML list may still be a tuple, and a
    # string a path.
    lax = isinstance(value, list | dict) or (isinstance(value, str) and "Path" in str(annotation))
    try:
        adapter = _adapter(annotation)
    except PydanticUserError:
        return  # an annotation that says nothing at run time
    try:
        adapter.validate_python(value, strict=not lax)
    except ValidationError as error:
        shown = "null" if value is None else repr(value)
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"] if isinstance(part, int))
        reason = f" (item {where}: {problem['msg'].lower()})" if where else ""
        if problem["type"] == "finite_number":
            reason = " (not finite)"
        raise UserError(
            f"{path}={shown} does not fit{reason}: it takes {describe(annotation)}."
        ) from error


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        # Neither an infinite number nor one that is none trains anything.
        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        return TypeAdapter(annotation, config=config)
    except PydanticUserError:  # a model brings its own settings and refuses others
        return TypeAdapter(annotation)


def describe(annotation: Any) -> str:
    """Say in words what an annotation takes: `an integer from 1`, `one of zero, reflect`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe(arguments[0]) + "".join(_bounds(arguments[1:]))
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        plain = [a for a in arguments if getattr(a, "__name__", "") != "Tensor"]  # none in YAML
        return " or ".join(dict.fromkeys(describe(a) for a in plain or arguments))
    if origin in (list, tuple, set):
        inner = [describe(a) for a in arguments if a is not Ellipsis]
        return f"a list of {', '.join(dict.fromkeys(inner))}" if inner else "a list"
    if annotation is type(None):
        return "null"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    flat: list[Any] = []
    for item in metadata:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    for item in flat:
        if isinstance(item, annotated_types.Ge):
            yield f" from {item.ge}"
        elif isinstance(item, annotated_types.Gt):
            yield f" above {item.gt}"
        elif isinstance(item, annotated_types.Le):
            yield f" up to {item.le}"
        elif isinstance(item, annotated_types.Lt):
            yield f" below {item.lt}"
