"""The control socket's language: what is a request, and what is said of what is none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.control import protocol
from pyvmm.control.protocol import RequestError, parse
from pyvmm.errors import PyvmmError


def test_a_request_with_its_parameters():
    request = parse(b'{"id": 7, "command": "stop", "force": true}')
    assert (request.id, request.command, request.arguments) == (7, "stop", {"force": True})


def test_absent_parameters_have_their_defaults():
    request = parse(b'{"command": "console"}')
    assert (request.id, request.arguments) == (None, {"bytes": 4096, "follow": False})


@pytest.mark.parametrize(
    ("line", "id", "message", "hint"),
    [
        (b"garbage", None, "not JSON", '{"id": 1'),
        (b"\xff\xfe", None, "not JSON", '{"id": 1'),
        (b"[" * 60000, None, "not JSON", '{"id": 1'),
        (b"9" * 5000, None, "not JSON", '{"id": 1'),
        (b"[1, 2]", None, "not a JSON object", '{"id": 1'),
        (b'{"id": 1}', 1, "names no command", "status"),
        (b'{"id": 1, "command": ["status"]}', 1, "names no command", "status"),
        (b'{"id": 1.5, "command": "status"}', None, "id", "number the commands"),
        (b'{"id": true, "command": "status"}', None, "id", "number the commands"),
        (b'{"id": {}, "command": "status"}', None, "id", "number the commands"),
        (b'{"id": "' + b"x" * 101 + b'", "command": "status"}', None, "id", "number the commands"),
        (b'{"id": "a", "command": "statsu"}', "a", "no command 'statsu'", "is 'status' meant?"),
        (b'{"id": 2, "command": "\\u001b[2J"}', 2, "no command", "it knows status, "),
        (b'{"id": 2, "command": "stop", "forced": true}', 2, "stop has no 'forced'", "is 'force' meant?"),
        (b'{"id": 2, "command": "status", "x": 1}', 2, "status has no 'x'", "it takes no parameters"),
        (b'{"id": 2, "command": "stop", "force": 1}', 2, "stop: force is 1", "true or false"),
        (b'{"id": 2, "command": "console", "bytes": true}', 2, "bytes is true", "a whole number"),
        (b'{"id": 2, "command": "console", "bytes": -1}', 2, "bytes is -1", "0 or more"),
        (b'{"id": 2, "command": "balloon", "target": 1.5}', 2, "target is 1.5", "a whole number"),
        (b'{"id": 2, "command": "balloon", "target": null}', 2, "target is null", "a whole number"),
    ],
)
def test_what_is_no_request(line: bytes, id: object, message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(line)
    assert caught.value.id == id
    assert message in caught.value.message and hint in caught.value.hint
    assert "\n" not in caught.value.message and "\x1b" not in caught.value.message
    assert len(caught.value.message) < 250


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    try:
        parse(line)
    except RequestError as error:
        assert json.loads(protocol.failure(error.id, error))["ok"] is False


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["id", "command", "force", "bytes"]), inner)
        ),
    )
)
def test_any_json_is_a_request_or_refused(value: object) -> None:
    try:
        parse(json.dumps(value).encode())
    except RequestError:
        pass


def test_answers_are_lines_of_json_whatever_is_in_them():
    for line in (
        protocol.reply("a", {"data": "one\ntwo\x00\u2028ä"}),
        protocol.failure(None, PyvmmError("no\nnever", "")),
        protocol.event(3, "console", data="\r\n"),
    ):
        assert line.count(b"\n") == 1 and line.endswith(b"\n")
        json.loads(line)
