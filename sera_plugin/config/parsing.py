"""From the raw ``sera:`` value to the frozen config, with errors of one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sera_plugin.config.block import SeraConfig
from sera_plugin.config.fields import shown
from sera_plugin.config.presets import IN_SHORT
from sera_plugin.runtime.errors import SeraConfigError


def parse_block(raw: Any) -> SeraConfig | None:
    """Parse the raw value of ``sera:``.

    Returns:
        The config, or None when SeRA is off (no block, null or false).

    Raises:
        SeraConfigError: one sentence naming the key, the value and what is allowed.
    """
    if raw is None or raw is False:
        return None
    if raw is True:
        raw = dict(IN_SHORT)
    if not isinstance(raw, dict):
        raise SeraConfigError(
            f"sera: {shown(raw)} is not allowed; write a block of keys, true or false."
        )
    try:
        return SeraConfig.model_validate(_plain(raw))
    except ValidationError as error:
        raise SeraConfigError(_sentence(error)) from None


def _plain(value: Any, path: str = "sera", levels: int = 3) -> Any:
    """The value without nulls, as deep as there are blocks."""
    if not isinstance(value, dict) or levels == 0:
        return value
    for key in value:
        if not isinstance(key, str) or not key.isprintable():
            raise SeraConfigError(f"{path}: {shown(key)} is not a key of SeRA; keys are words.")
    return {
        k: _plain(v, f"{path}.{k if k.isascii() else shown(k)}", levels - 1)
        for k, v in value.items()
        if v is not None
    }


def validated(model: type[BaseModel], raw: Any, path: tuple[str, ...]) -> Any:
    """``raw`` as a block of keys that stands at ``path`` below ``sera:``.

    Raises:
        SeraConfigError: one sentence naming the key, the value and what is allowed.
    """
    try:
        return model.model_validate(_plain(raw, ".".join(["sera", *path])))
    except ValidationError as error:
        raise SeraConfigError(_sentence(error, model, path)) from None


def _model_at(
    path: tuple[str | int, ...], root: type[BaseModel] = SeraConfig
) -> type[BaseModel] | None:
    model = root
    for part in path:
        field = model.model_fields.get(str(part))
        inner = block_of(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def block_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, alone or as one branch of a union; None for a list of them."""
    if get_origin(annotation) is list:
        return None
    for branch in get_args(annotation) or (annotation,):
        if isinstance(branch, type) and issubclass(branch, BaseModel):
            return branch
    return None


def allowed_at(path: tuple[str | int, ...], root: type[BaseModel] = SeraConfig) -> str:
    """What the key at this path below a block may hold, in words."""
    model = _model_at(path[:-1], root)
    field = model.model_fields.get(str(path[-1])) if model and path else None
    if model is None or field is None:
        return "a block of keys"
    schema = model.model_json_schema()["properties"][str(path[-1])]
    if "allowed" in schema:
        return str(schema["allowed"])
    options = schema.get("anyOf", [schema])
    return " or ".join(dict.fromkeys(_describe(option, schema) for option in options))


def default_at(path: tuple[str | int, ...]) -> Any:
    """What the key at this path holds, as JSON, where it is not written; None for no key."""
    model = _model_at(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model and path else None
    value = field.get_default(call_default_factory=True) if field else None
    return value.model_dump() if isinstance(value, BaseModel) else value


def _describe(option: dict[str, Any], outer: dict[str, Any]) -> str:
    if "const" in option:
        return {True: "true", False: "false"}.get(option["const"], str(option["const"]))
    if "enum" in option:
        words = (str(v).lower() if isinstance(v, bool) else str(v) for v in option["enum"])
        return " or ".join(words)
    if "$ref" in option:
        return "a block of keys"
    names = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    text = names.get(option.get("type", ""), option.get("type", "a value"))
    bounds = {**outer, **option}
    limits = [
        f"{word} {bounds[key]:.10g}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "up to"),
            ("exclusiveMaximum", "below"),
        )
        if key in bounds
    ]
    return " ".join([text, *limits])


def _sentence(
    error: ValidationError, root: type[BaseModel] = SeraConfig, above: tuple[str, ...] = ()
) -> str:
    first = error.errors()[0]
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, SeraConfigError):
        return str(raised)
    path = _key_path(first["loc"], root)
    key = ".".join(["sera", *above, *(shown(p).strip("'") for p in path)])
    if first["type"] == "extra_forbidden":
        return f"{key}: {shown(first['input'])} is not a key of SeRA; {_hint(path, root)}"
    allowed = f"{allowed_at(path, root)}{_limit(first)}"
    return f"{key}: {shown(first['input'])} is not allowed; it must be {allowed}."


def _limit(error: Mapping[str, Any]) -> str:
    """The bound that a value broke, where the words for its key leave it out."""
    if error["type"] == "finite_number":
        return ", and finite"
    if error["type"] in ("string_too_long", "too_long"):
        unit = "characters" if error["type"] == "string_too_long" else "entries"
        return f", of at most {error['ctx']['max_length']} {unit}"
    return ""


def _key_path(location: tuple[str | int, ...], root: type[BaseModel]) -> tuple[str | int, ...]:
    """The YAML path: pydantic appends the branch of a union, as `int` or `function-before[...]`."""
    for end in range(len(location), 0, -1):
        model = _model_at(location[: end - 1], root)
        if model is not None and (location[end - 1] in model.model_fields or end == len(location)):
            return location[:end]
    return location


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """All keys with the path of their block, outer blocks last."""
    for name, field in model.model_fields.items():
        inner = block_of(field.annotation)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")
    yield from ((prefix, name) for name in model.model_fields)


def _hint(path: tuple[str | int, ...], root: type[BaseModel]) -> str:
    here = _model_at(path[:-1], root) or root
    everywhere = {name: prefix for prefix, name in _keys(SeraConfig)}
    for names in (list(here.model_fields), list(everywhere)):
        close = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.6)
        if close:
            prefix = "" if close[0] in here.model_fields else f"sera.{everywhere[close[0]]}"
            return f"did you mean {prefix}{close[0]}?"
    allowed = ", ".join(here.model_fields)
    return f"allowed are {allowed}." if allowed else "it takes none."
