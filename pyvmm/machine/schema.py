"""The JSON schema of machine files (``pyvmm.machine.file``), for editors and for programs that write them.

https://json-schema.org/draft/2020-12.  What depends on several keys (a disk that is ``ro`` has no ``overlay``) is left
to pyvmm itself.
"""

from __future__ import annotations

from pyvmm.machine.attachments import KINDS, attachment
from pyvmm.machine.attachments.base import Key, size
from pyvmm.machine.file import SETTINGS, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIZE = r"^\s*[0-9]+\s*[kmgtKMGT]?([iI]?[bB])?\s*$"
_TYPES: dict[str, dict[str, object]] = {
    "text": {"type": "string"},
    "path": {"type": "string", "minLength": 1},
    "size": {"type": ["string", "integer"], "pattern": _SIZE, "minimum": 1},
    "int": {"type": "integer", "minimum": 0},
    "number": {"type": "number", "exclusiveMinimum": 0},
    "flag": {"type": "boolean"},
    "texts": {"type": "array", "items": {"type": "string", "minLength": 1}},
}


def schema() -> dict[str, Any]:
    """The schema."""
    properties: dict[str, Any] = {name: _setting(setting) for name, setting in SETTINGS.items()}
    for kind, _, _, help in KINDS:
        properties[kind] = {"type": "array", "description": help, "items": _attachment(attachment(kind).KEYS)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A machine of pyvmm",
        "description": "What pyvmm boot --machine FILE takes; paths are relative to the file's directory",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _setting(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {"description": setting.help, **_TYPES[setting.kind]}
    if setting.choices:
        found["enum"] = list(setting.choices)
    return found


def _attachment(keys: dict[str, Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _key(key) for name, key in keys.items()},
        "required": [name for name, key in keys.items() if key.required],
        "additionalProperties": False,
    }


def _key(key: Key) -> dict[str, Any]:
    found: dict[str, Any]
    if key.type is bool:
        found = {"type": "boolean"}
    elif key.type is int:
        found = {"type": "integer"}
    elif key.type is size:
        found = {"type": ["string", "integer"], "pattern": _SIZE, "minimum": 0}
    else:
        found = {"type": "string"}
    if key.choices:
        found["enum"] = list(key.choices)
    if key.many:
        found = {"type": "array", "items": found}
    elif key.default is not None:
        found["default"] = key.default
    return {"description": key.help, **found}
