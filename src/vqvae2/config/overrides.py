"""Settings as nested dictionaries: reading YAML, assigning by dotted keys, comparing and merging."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args

from pydantic import BaseModel

from vqvae2.config.models import Config, ConfigError, LevelPriorConfig, with_present_names
from vqvae2.config.training import PriorTrainConfig
from vqvae2.config.yaml_text import YamlError, parse_yaml

_SIZE = 2**22  # bytes of a YAML file, at most


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The dictionary in a YAML file.

    The key `run` in the file of a run folder is its record and no setting: the caller removes it.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_SIZE + 1)
        if len(text) > _SIZE:
            raise YamlError(f"expected at most {_SIZE:,} bytes, found more")
        value = parse_yaml(text.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except ValueError as error:  # no YAML, or no UTF-8
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"expected a mapping in {path}, found {type(value).__name__}")
    return value


def override(value: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of nested dictionaries with `KEY=VALUE` assignments applied, the last of which counts.

    Keys are dotted, an item of a list is named by its number, and `*` stands for all items. Values are YAML; a mapping assigns
    to the settings that it names. Example: `override(value, ["train_prior.*.steps=10", "data.size=32"])`.

    Raises:
        ConfigError: an assignment without `=`, a value that is not YAML, or a key that does not exist.
    """
    result = renamed(copy.deepcopy(value))
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign:
            raise ConfigError(f"expected KEY=VALUE, found {assignment!r}")
        try:
            parsed = parse_yaml(text)
        except YamlError:
            raise ConfigError(f"{key}: {text!r} is not a YAML value") from None
        _assign(result, _present(key.strip().split(".")), parsed, key)
    return result


def renamed(value: dict[str, Any]) -> dict[str, Any]:
    """A copy of `value` in which settings that had another name in former versions have the one of today.

    Raises:
        ConfigError: a setting is there under both names.
    """
    try:
        return {
            key: with_present_names(inner) if key == "autoencoder" else inner for key, inner in value.items()
        }
    except ValueError as error:
        raise ConfigError(f"autoencoder: {error}") from None


def _present(keys: list[str]) -> list[str]:
    """The dotted key's parts, a former name of a setting replaced."""
    if len(keys) == 2 and keys[0] == "autoencoder":
        return [keys[0], *with_present_names({keys[1]: None})]
    return keys


def settings(model: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, default, description); `*` in a key stands for every level of a list."""
    rows: list[tuple[str, Any, str]] = []
    for name, field in model.model_fields.items():
        inner = next((t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)), None)
        if inner is None:
            rows.append((prefix + name, field.get_default(), field.description or ""))
        else:
            rows += settings(inner, prefix + name + (".*." if get_args(field.annotation) else "."))
    return rows


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """One line `key: old -> new` for every setting in which two nested dictionaries differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    if (
        isinstance(old, list)
        and isinstance(new, list)
        and len(old) == len(new)
        and old
        and isinstance(old[0], dict)
    ):
        return [
            line
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for line in differences(a, b, f"{prefix}.{i}")
        ]
    return [] if old == new else [f"{prefix}: {old} -> {new}"]


def _assign(node: Any, keys: list[str], value: Any, full: str) -> None:
    """Set the item at `keys` below `node` to `value`; `full` is the whole key, for messages."""
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if key == "*":
            chosen: Sequence[Any] = range(len(node))
        elif key.isdecimal() and int(key) < len(node):
            chosen = [int(key)]
        else:
            raise ConfigError(
                f"no such setting {full!r}: expected a level 0..{len(node) - 1} or * instead of {key!r}"
            )
    elif isinstance(node, dict) and key in node:
        chosen = [key]
    else:
        known = ", ".join(sorted(map(str, node))) if isinstance(node, dict) else "nothing below it"
        raise ConfigError(f"no such setting {full!r}: at {key!r}, expected one of: {known}")
    for item in chosen:
        if rest:
            _assign(node[item], rest, value, full)
        elif isinstance(node[item], dict) and isinstance(value, dict):
            node[item] = merge(node[item], renamed({item: value})[item])  # what is not named stays
        else:
            node[item] = value


def complete(value: dict[str, Any]) -> dict[str, Any]:
    """A copy of `value` in which every level of `prior.levels` and `train_prior` has all settings, missing ones at their default.

    `override` assigns only to settings that exist, so this is needed where a file names some settings of a level.
    """
    result = dict(value)
    prior = result.get("prior")
    if isinstance(prior, dict) and "levels" in prior:
        result["prior"] = {**prior, "levels": _complete_items(prior["levels"], LevelPriorConfig())}
    if "train_prior" in result:
        result["train_prior"] = _complete_items(result["train_prior"], PriorTrainConfig())
    return result


def _complete_items(items: Any, default: BaseModel) -> Any:
    if not isinstance(items, list):
        return items
    plain = default.model_dump(mode="json")
    return [plain | item if isinstance(item, dict) else item for item in items]


def merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` in which the settings of `patch` replace its own; a list is replaced as a whole."""
    result = dict(base)
    for key, value in patch.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
