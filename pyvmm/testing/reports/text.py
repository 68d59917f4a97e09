"""What guests printed, made fit for a file that others read: XML, HTML."""

from __future__ import annotations

import re

#: Characters that XML 1.0 (section 2.2) or a reader's eyes cannot take: controls, surrogates, non-characters, and those
#: that turn the direction of the text around them.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    """``text`` with line ends as \\n, without colours, and with every other control character as a picture of it."""
    if "\r" in text and "\n" in text:  # by hand: a regular expression takes the square of many \r in a row
        first, *lines = text.split("\n")
        *lines, last = (line.lstrip("\r") for line in lines)
        text = "\n".join([first.rstrip("\r"), *(line.rstrip("\r") for line in lines), last])
    return _UNFIT.sub(_picture, _COLOUR.sub("", text))


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"<U+{code:04X}>"


def duration(seconds: float) -> str:
    """``seconds`` for people: 12 ms, 1.23 s, 2 min 3 s."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
