"""Recipes: one nested YAML file, validated by pydantic, plus `a.b=c` overrides. Unknown keys are errors."""

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from trueward.core.errors import ConfigError, nearest

__all__ = ["Config", "apply_overrides", "build", "read_yaml"]


class Config(BaseModel):
    """Base of all configuration: frozen, unknown keys refused, numbers finite, defaults checked like given
    values."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """The safe loader, which would keep the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist", remedy="`trueward recipes ls` lists those that ship"
        ) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a folder", expected="a YAML file") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", remedy="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not YAML: {' '.join(str(error).split())}", remedy="mend the file"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} does not hold a mapping", value=value, expected="`key: value` lines")
    return value


def apply_overrides(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `mapping` with each `a.b=c` set; `c` is read as YAML, so `true`, `3` and `[a, b]` mean what
    they say.

    Raises:
        ConfigError: no `=`, an empty key, or a path through something that is no mapping.
    """
    result: dict[str, Any] = {key: _copied(value) for key, value in mapping.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise ConfigError("an override is not of the form key.path=value", value=override)
        try:
            value = yaml.load(text, Loader=_Loader) if text else ""
        except yaml.YAMLError as error:
            raise ConfigError(
                f"the value of {key} is not YAML", value=text, remedy="put it in quotes"
            ) from error
        node = result
        for part in parts[:-1]:
            if node.get(part) is None:
                # A section that is off, as in `lora: null`, is turned on by setting one of its keys.
                node[part] = {}
            child = node[part]
            if not isinstance(child, dict):
                raise ConfigError(f"{key} goes through {part!r}, which is no section", value=child)
            node = child
        node[parts[-1]] = value
    return result


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def build(cls: type[C], mapping: Mapping[str, Any], *, source: str) -> C:
    """Validate `mapping` as `cls`.

    Args:
        source: where the values come from, for the message (a file name).

    Raises:
        ConfigError: the first problem in one sentence, with the nearest known key for an unknown one.
    """
    try:
        return cls.model_validate(mapping)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{source}: {where}" if where else source
        if first["type"] == "extra_forbidden":
            known = _known_keys(cls, first["loc"][:-1])
            remedy = nearest(str(first["loc"][-1]), known)
            raise ConfigError(f"{source}: unknown key {where!r}", remedy=remedy) from error
        if first["type"] == "missing":
            raise ConfigError(f"{source}: {where} is missing", remedy=f"set it: {where}=...") from error
        raise ConfigError(
            f"{what}: {first['msg'].removeprefix('Value error, ')}", value=first["input"]
        ) from error


def _known_keys(cls: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    models = [cls]
    for part in path:
        inner = [
            _models_in(model.model_fields[part].annotation) for model in models if part in model.model_fields
        ]
        # A part that is no field is an index, a mapping key or the tag of a union: the models stay the same.
        models = [model for group in inner for model in group] or models
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    arguments = typing.get_args(annotation)
    if arguments:
        return [model for argument in arguments for model in _models_in(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
