"""A drill's timeline as SVG: mails a second that were published and delivered, the fault, and what happened when."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from postlane.ops.drill.result import Result

_WIDTH, _HEIGHT = 900, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 34, 40
_MARKS_MAX = 9  # the numbered lines; all of them are in the list beside the plot


def timeline_svg(result: Result, ident: str) -> str:
    """A self-contained `<svg>` with a title and a description; `ident` is unique within the page."""
    span = max(result.ends_s, result.healed_s, 1.0)
    peak = max([1, *(max(s.published, s.delivered) for s in result.seconds)])

    def x(at_s: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(at_s / span, 0.0), 1.0), 1)

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / peak, 1)

    def line(kind: str, values: Sequence[tuple[float, int]]) -> str:
        points = " ".join(f"{x(at + 0.5)},{y(value)}" for at, value in values)
        return f'<polyline class="{kind}" points="{points}"/>'

    marks = "".join(
        f'<line class="mark" x1="{x(at)}" y1="{_TOP}" x2="{x(at)}" y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text x="{x(at) + 3}" y="{_TOP - 4}">{number}</text>'
        for number, (at, _) in enumerate(result.marks[:_MARKS_MAX], 1)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{ident}-t {ident}-d">'
        f'<title id="{ident}-t">{escape(result.scenario)}: mails a second over {span:.0f} seconds</title>'
        f'<desc id="{ident}-d">{escape(_description(result, peak))}</desc>'
        f'<rect class="fault" x="{x(result.fault_s)}" y="{_TOP}" '
        f'width="{max(1.0, x(result.healed_s) - x(result.fault_s)):.1f}" height="{_HEIGHT - _TOP - _BOTTOM}"/>'
        f'<line class="axis" x1="{_LEFT}" y1="{y(0)}" x2="{_WIDTH - _RIGHT}" y2="{y(0)}"/>'
        f'<line class="axis" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{y(0)}"/>'
        + "".join(
            f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>' for value in _ticks(peak)
        )
        + "".join(f'<text x="{x(at)}" y="{y(0) + 16}" text-anchor="middle">{at:g} s</text>' for at in _ticks(int(span)))
        + marks
        + line("published", [(s.at_s, s.published) for s in result.seconds])
        + line("delivered", [(s.at_s, s.delivered) for s in result.seconds])
        + f'<text x="{_LEFT}" y="{_HEIGHT - 6}">dashed: published; solid: delivered; shaded: the fault; '
        f"numbers: what happened, in the list below</text></svg>"
    )


def _ticks(last: int) -> list[int]:
    """At most about six round numbers from 0 on."""
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000) if last / s <= 6), last or 1)
    return list(range(0, last + 1, step))


def _description(result: Result, peak: int) -> str:
    rto = "no recovery was seen" if result.rto_s is None else f"recovered after {result.rto_s:.1f} seconds"
    return (
        f"The fault lasts from second {result.fault_s:.0f} to second {result.healed_s:.0f}; {rto}; the longest silence "
        f"was {result.silence_s:.1f} seconds; at most {peak} mails a second. "
        + "; ".join(f"{number}: {said} at {at:.0f} s" for number, (at, said) in enumerate(result.marks, 1))
    )
