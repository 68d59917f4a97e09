"""The results as JSON, for programs.  :data:`SCHEMA` is what a file conforms to (JSON Schema 2020-12)::

version       1; grows when a field changes its meaning or goes, not when one comes
name          of the run
started       seconds since the epoch            elapsed      seconds
exit_code     of the run, made for git bisect run: 0 good, 1 bad, 125 cannot be tested
counts        how many results have each status
environment   text by name: host, versions, ...
results       in the order of the matrix, with the fields of pyvmm.testing.result.CaseResult:
  id, kernel, machine, case                      "KERNEL/MACHINE/CASE" and its parts
  status        pass, fail, timeout, error (the host's doing or the user's), skip
  reason        one line; empty for a plain pass
  outcome       how the machine ended; empty if none ran
  guest_status  of the command or test in the guest, or null
  exit_code     what a run of this case alone exits with
  started, elapsed, attempts, attempt_reasons
  timeline      [seconds from the start, event] each
  console       the last part of it              console_log   path of all of it, or null
  splats        kind, line, text, allowed, offset
  subtests      name, status, directive, reason, diagnostics, children (the same again)
  exits         total, by_device
  stdout, stderr, worker ("HOST/PID")
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pyvmm.ktap.result import STATUSES as TEST_STATUSES
from pyvmm.testing.result import STATUSES, RunReport

VERSION = 1

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}
_TEXTS = {"type": "array", "items": _TEXT}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Results of a run of pyvmm test",
    "$defs": {
        "test": _object(
            {"name": _TEXT, "status": {"enum": list(TEST_STATUSES)}},
            {
                "directive": _TEXT,
                "reason": _TEXT,
                "diagnostics": _TEXTS,
                "children": {"type": "array", "items": {"$ref": "#/$defs/test"}},
            },
        ),
        "splat": _object(
            {"kind": _TEXT, "line": _TEXT}, {"text": _TEXT, "allowed": {"type": "boolean"}, "offset": _COUNT}
        ),
        "result": _object(
            {
                "id": _TEXT,
                "kernel": _TEXT,
                "machine": _TEXT,
                "case": _TEXT,
                "status": {"enum": list(STATUSES)},
                "reason": _TEXT,
                "outcome": _TEXT,
                "guest_status": {"type": ["integer", "null"]},
                "exit_code": {"type": "integer"},
                "started": _NUMBER,
                "elapsed": _NUMBER,
                "attempts": _COUNT,
                "attempt_reasons": _TEXTS,
                "timeline": {
                    "type": "array",
                    "items": {"type": "array", "prefixItems": [_NUMBER, _TEXT], "items": False},
                },
                "console": _TEXT,
                "console_log": {"type": ["string", "null"]},
                "splats": {"type": "array", "items": {"$ref": "#/$defs/splat"}},
                "subtests": {"type": "array", "items": {"$ref": "#/$defs/test"}},
                "exits": _object(
                    {}, {"total": _COUNT, "by_device": {"type": "object", "additionalProperties": _COUNT}}
                ),
                "stdout": _TEXT,
                "stderr": _TEXT,
                "worker": _TEXT,
            }
        ),
    },
    **_object(
        {
            "version": {"const": VERSION},
            "name": _TEXT,
            "started": _NUMBER,
            "elapsed": _NUMBER,
            "exit_code": {"type": "integer"},
            "counts": {"type": "object", "additionalProperties": _COUNT, "required": list(STATUSES)},
            "environment": {"type": "object", "additionalProperties": _TEXT},
            "results": {"type": "array", "items": {"$ref": "#/$defs/result"}},
        }
    ),
}


def as_data(report: RunReport) -> dict[str, Any]:
    """``report`` as what JSON has: dictionaries, lists, text and numbers."""
    return {
        "version": VERSION,
        "name": report.name,
        "started": report.started,
        "elapsed": report.elapsed,
        "exit_code": report.exit_code,
        "counts": report.counts(),
        "environment": dict(report.environment),
        "results": [asdict(result) for result in report.results],
    }


def write(report: RunReport) -> str:
    """``report`` as a JSON file of ASCII; what else a guest printed is escaped."""
    return json.dumps(as_data(report), indent=2) + "\n"
