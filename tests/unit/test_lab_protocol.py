"""The lab's wire: frames come out as they went in, however the stream was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.lab.protocol import HEADER, LARGEST, Decoder, Kind, ProtocolError, frame, message

frames = st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=300)), max_size=8)


@given(frames, st.integers(1, 64))
def test_frames_survive_any_cutting(sent: list[tuple[Kind, bytes]], piece: int) -> None:
    stream = b"".join(frame(kind, payload) for kind, payload in sent)
    decoder = Decoder()
    received = []
    for start in range(0, len(stream), piece):
        received += decoder.feed(stream[start : start + piece])
    assert received == sent


def test_an_incomplete_frame_waits_for_its_rest() -> None:
    decoder = Decoder()
    whole = frame(Kind.STDOUT, b"hello")
    assert decoder.feed(whole[:-1]) == []
    assert decoder.feed(whole[-1:]) == [(Kind.STDOUT, b"hello")]


def test_a_header_out_of_step_is_refused() -> None:
    with pytest.raises(ProtocolError, match="announces"):
        Decoder().feed(HEADER.pack(3, LARGEST + 1))


def test_messages_are_json() -> None:
    assert message(Kind.SIGNAL, {"signal": 15}) == frame(Kind.SIGNAL, b'{"signal":15}')
