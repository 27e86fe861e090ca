"""Settings: frozen pydantic objects that refuse unknown keys, and their YAML form.

A recipe is a YAML file. Reading one gives either a complete, valid object or a
:class:`~voco.errors.ConfigError` that names the file, the key, the value and what is allowed.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from voco.errors import ConfigError


class Config(BaseModel):
    """Base of all settings: frozen, complete, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:  # noqa: ANN401 (as pydantic has it)
        """Describe each field in one line of plain text: what ``--help`` and editors show."""
        for field in cls.model_fields.values():
            if field.description:
                field.description = " ".join(field.description.replace("``", "").split())


ConfigT = TypeVar("ConfigT", bound=Config)


def parse(kind: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Settings of a kind from plain values.

    Args:
        kind: Which settings.
        values: Nested mapping, as read from YAML or JSON.
        source: Where the values came from; named in the error.

    Raises:
        ConfigError: Naming every wrong key or value, and the nearest valid key.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"{source}: {line}" for line in explain(error, kind)]
        raise ConfigError("\n".join(lines)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: If the file is missing, is not YAML, or holds something else than keys.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file ({error}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}.")
    return values


def to_yaml(config: Config) -> str:
    """Settings as YAML, complete, in the order of declaration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested keys as ``outer.inner``, with their values."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def explain(error: ValidationError, kind: type[Config] | None = None) -> Iterator[str]:
    """One line for each thing that is wrong: key, rule, value, and the nearest valid key.

    Args:
        error: What pydantic found.
        kind: The settings that were wanted; needed to suggest keys.
    """
    for problem in error.errors(include_url=False):
        # pydantic puts the tag of a union between the keys; users never typed it.
        keys = [part for part in problem["loc"] if isinstance(part, str)]
        name = ".".join(keys) or "(top level)"
        if problem["type"] == "extra_forbidden":
            valid = _keys_near(kind, keys) if kind else []
            nearest = difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.5)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
            yield f"unknown key '{name}'{hint}"
        elif problem["type"] == "missing":
            yield f"key '{name}' is missing"
        else:
            yield f"{name}: {problem['msg']} (got {problem['input']!r})"


def _keys_near(kind: type[Config], keys: list[str]) -> list[str]:
    """Names of fields that may stand where the last of ``keys`` stands."""
    kinds: list[type[BaseModel]] = [kind]
    for key in keys[:-1]:
        deeper = [
            model
            for parent in kinds
            if key in parent.model_fields
            for model in _models_in(parent.model_fields[key].annotation)
        ]
        kinds = deeper or kinds
    return [name for model in kinds for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 (annotations are Any)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
