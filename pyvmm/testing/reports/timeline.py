"""The timeline of a boot as SVG: a row for each event, a bar from the one before it, the seconds along the top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pyvmm.testing.reports.text import duration, visible

#: Rows drawn; of more events the first and the last are.
MOST_ROWS = 60

_WIDTH, _ROW, _TOP = 900, 21, 24
_LEFT, _RIGHT = 250, 90  # room for the events' names and for the times
_NAME = 36  # characters of a name


def draw(events: Sequence[tuple[float, str]], elapsed: float) -> str:
    """An <svg> element of ``events``, (seconds from the start, name) each, in a run of ``elapsed`` seconds.

    "" without events, or with times that are no numbers.
    """
    known = [(max(0.0, when), str(name)) for when, name in events if math.isfinite(when)]
    rows = sorted(known, key=lambda event: event[0])
    if rows and elapsed > rows[-1][0] * 1.02 and math.isfinite(elapsed):
        rows.append((elapsed, "end"))
    if len(rows) > MOST_ROWS:
        left_out = len(rows) - MOST_ROWS
        middle = (rows[MOST_ROWS // 2][0], f"... {left_out + 1} events ...")
        rows = [*rows[: MOST_ROWS // 2], middle, *rows[len(rows) - MOST_ROWS // 2 + 1 :]]
    whole = max([elapsed, *(when for when, _ in rows)], default=0.0)
    if not rows or not math.isfinite(whole):
        return ""
    whole = max(whole, 1e-3)
    height = _TOP + _ROW * len(rows) + 4
    scale = (_WIDTH - _LEFT - _RIGHT) / whole
    parts = [
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="timeline of {len(rows)} events">'
    ]
    for tick in _ticks(whole):
        x = _LEFT + tick * scale
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{height}"/>')
        parts.append(f'<text class="dim" x="{x:.1f}" y="13" text-anchor="middle">{_tick(tick)}</text>')
    before = 0.0
    for index, (when, name) in enumerate(rows):
        y = _TOP + index * _ROW
        text = visible(name).replace("\n", " ")
        short = text if len(text) <= _NAME else text[: _NAME - 1] + "…"
        x, width = _LEFT + before * scale, max(2.0, (when - before) * scale)
        last = ' class="end"' if index == len(rows) - 1 else ""
        parts.append(
            f"<g><title>{escape(text)}: {duration(when)}, {duration(when - before)} after the one before</title>"
        )
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 14}" text-anchor="end">{escape(short)}</text>')
        parts.append(f'<rect{last} x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="13" rx="2"/>')
        parts.append(f'<text class="dim" x="{x + width + 6:.1f}" y="{y + 14}">{duration(when)}</text></g>')
        before = when
    return "\n".join([*parts, "</svg>"])


def _ticks(whole: float) -> list[float]:
    """Round numbers from 0 to at most ``whole``, some five of them."""
    step = 10.0 ** math.floor(math.log10(whole / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if whole / (step * factor) <= 6)
    return [step * index for index in range(int(whole / step + 1e-9) + 1)]


def _tick(seconds: float) -> str:
    return "0" if not seconds else f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
