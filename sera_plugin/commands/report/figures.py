"""Figures as plain plotly dictionaries; numbers are counted here, so pages stay small.

Colours are names of the style sheet, ``var(--kept)``, which the page's script looks up, so that
they change with the reader's colour scheme. Patterns and dashes say the same without colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sera_plugin.commands.report.page import Figure

KEPT, DROPPED, FILLED, BOOTSTRAPPED = (
    f"var(--{name})" for name in ("kept", "dropped", "filled", "bootstrapped")
)
OTHERS = ("var(--fifth)", "var(--sixth)", "var(--seventh)")
COLOURS = (KEPT, DROPPED, BOOTSTRAPPED, FILLED, *OTHERS)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
STATES = {"kept": KEPT, "filled": FILLED, "dropped": DROPPED}
"""What becomes of an offline pair in a round."""
HATCHES = {DROPPED: "/", FILLED: "x", BOOTSTRAPPED: ".", OTHERS[1]: "|", OTHERS[2]: "-"}
BINS = 60
IN_FULL = 6
"""Most points of a series that are all put into words."""

Trace = dict[str, Any]
Series = Mapping[str, tuple[Sequence[Any], Sequence[float]]]


def layout(x: str = "", y: str = "", **more: Any) -> dict[str, Any]:
    """The layout that all figures share: the control bar above the plot, the legend below it."""
    axis = {
        "gridcolor": "var(--line)", "zerolinecolor": "var(--axis)", "linecolor": "var(--axis)",
        "automargin": True,
    }  # fmt: skip
    base = {
        "margin": {"l": 56, "r": 16, "t": 34, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "var(--soft)"},
        "xaxis": axis | {"title": {"text": x}},
        "yaxis": axis | {"title": {"text": y}},
        "legend": {"orientation": "h", "x": 0, "y": -0.3, "yanchor": "top"},
        "colorway": list(COLOURS),
        "hovermode": "closest",
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)", "color": "var(--soft)", "activecolor": "var(--accent)",
        },
    }  # fmt: skip
    for name, value in more.items():
        known = base.get(name)
        base[name] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
    return base


def number(value: float, *, share: bool = False) -> str:
    """A number as it is read: a share in percent, thousands with commas, else four digits."""
    if share:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def course(xs: Sequence[Any], ys: Sequence[float], at: str, *, share: bool = False) -> str:
    """A series in words: every point of a short one, of a long one its ends and its extremes."""
    said = [
        f"{number(y, share=share)} {at} {x}" if at else f"{number(y, share=share)} in {x}"
        for x, y in zip(xs, ys, strict=True)
    ]
    if len(said) <= IN_FULL:
        return ", ".join(said)
    low, high = (number(y, share=share) for y in (min(ys), max(ys)))
    return f"{said[0]}, {said[-1]}, between {low} and {high} on the way"


def lines(
    name: str, title: str, caption: str, series: Series, x: str, y: str, *, share: bool = False,
    **more: Any,
) -> Figure | None:  # fmt: skip
    """Series of (x, y) as lines, or None if none has a point; ``share`` is for shares of 1."""
    there = {label: points for label, points in series.items() if len(points[0])}
    if not there:
        return None
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(xs) <= 60 else "lines",
            "name": label,
            "x": list(xs),
            "y": list(ys),
            "line": {"dash": DASHES[place % len(DASHES)]},
        }
        for place, (label, (xs, ys)) in enumerate(there.items())
    ]
    said = [f"{label}: {course(*at, f'at {x}', share=share)}." for label, at in there.items()]
    if share:
        more["yaxis"] = {"tickformat": ".0%"} | more.get("yaxis", {})
    return Figure(name, title, caption, " ".join(said), traces, layout(x, y, **more))


def bars(
    name: str, title: str, caption: str, labels: Sequence[str],
    parts: Mapping[str, Sequence[float | None]], y: str, mode: str = "stack",
    colours: Sequence[str] = COLOURS,
) -> Figure | None:  # fmt: skip
    """Bars per label, stacked or side by side, or None if all are empty."""
    traces: list[Trace] = []
    said = []
    for (part, values), colour in zip(parts.items(), colours, strict=False):
        known = [(label, v) for label, v in zip(labels, values, strict=True) if v is not None]
        if not any(v for _, v in known):
            continue
        xs, ys = [label for label, _ in known], [v for _, v in known]
        traces.append({"type": "bar", "name": part, "x": xs, "y": ys, "marker": _filled(colour)})
        said.append(f"{part}: {course(xs, ys, '')}.")
    if not traces:
        return None
    categories = {"type": "category", "categoryorder": "array", "categoryarray": list(labels)}
    shape = layout("", y, barmode=mode, xaxis=categories)
    return Figure(name, title, caption, " ".join(said), traces, shape)


def _filled(colour: str) -> dict[str, Any]:
    pattern = {
        "shape": HATCHES.get(colour, ""), "solidity": 0.2, "size": 6, "fillmode": "overlay",
        "fgcolor": "var(--card)",
    }  # fmt: skip
    return {"color": colour, "pattern": pattern, "line": {"width": 0}}


def bin_edges(values: Sequence[np.ndarray]) -> np.ndarray:
    """Edges that cover all values, or all but far outliers: the outermost thousandths."""
    finite = [v[np.isfinite(v)] for v in values]
    every = np.concatenate([*finite, np.zeros(0)])
    if not len(every):
        return np.linspace(-1.0, 1.0, BINS + 1)
    low, high = np.percentile(every, [0.1, 99.9])
    if every.max() - every.min() <= 1.5 * (high - low):
        low, high = every.min(), every.max()
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def histogram(
    name: str, title: str, caption: str, edges: np.ndarray,
    parts: Mapping[str, np.ndarray], colours: Mapping[str, str], x: str,
    line: float | None = None,
) -> Figure:  # fmt: skip
    """Stacked histograms over the same bins; what lies beyond the edges counts in the end bins.

    The caption says how many values that are, and how many are not finite and are left out.

    Args:
        name: of the figure.
        title: heading.
        caption: what it shows.
        edges: of the bins.
        parts: values by label.
        colours: by label.
        x: what the values are, with their unit.
        line: a value to mark, if any.
    """
    middles = (edges[:-1] + edges[1:]) / 2
    traces: list[Trace] = []
    said = []
    for label, values in parts.items():
        finite = values[np.isfinite(values)]
        counts, _ = np.histogram(np.clip(finite, edges[0], edges[-1]), edges)
        traces.append(
            {
                "type": "bar",
                "name": f"{label} ({len(finite):,})",
                "x": [round(float(middle), 5) for middle in middles],
                "y": counts.tolist(),
                "width": float(edges[1] - edges[0]),
                "marker": _filled(colours[label]),
                "hovertemplate": "%{x:.3f}: %{y}<extra>" + label + "</extra>",
            }
        )
        said.append(f"{label}: {spread(finite)}.")
    marks = []
    if line is not None and np.isfinite(line):
        marks.append(
            {
                "type": "line", "x0": line, "x1": line, "yref": "paper", "y0": 0, "y1": 1,
                "line": {"color": "var(--ink)", "width": 1.5, "dash": "dot"},
            }
        )  # fmt: skip
        said.append(f"The line is at {number(line)}.")
    beyond = _beyond(np.concatenate([*parts.values(), np.zeros(0)]), edges)
    shape = layout(x, "pairs", barmode="stack", bargap=0, shapes=marks)
    return Figure(name, title, f"{caption}{beyond}", " ".join(said), traces, shape)


def _beyond(values: np.ndarray, edges: np.ndarray) -> str:
    """What of the values the bins don't show as it is, as a sentence with a space before it."""
    finite = values[np.isfinite(values)]
    below, above = finite[finite < edges[0]], finite[finite > edges[-1]]
    said = []
    if len(below):
        said.append(
            f"{len(below):,} below {number(edges[0])} (the lowest {number(below.min())}) in the "
            "first bin"
        )
    if len(above):
        said.append(
            f"{len(above):,} above {number(edges[-1])} (the highest {number(above.max())}) in the "
            "last bin"
        )
    found = f" Outliers stand in the end bins: {', '.join(said)}." if said else ""
    if len(values) > len(finite):
        found += f" Left out, because no finite numbers: {len(values) - len(finite):,}."
    return found


def spread(values: np.ndarray) -> str:
    """Values in words: how many, their median, and from where to where they reach."""
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100]).tolist()
    return f"{len(values):,}, median {number(middle)}, {number(low)} to {number(high)}"


def boxes(
    name: str, title: str, caption: str, groups: Mapping[str, np.ndarray], y: str
) -> Figure | None:
    """Box plots from quantiles: 5, 25, 50, 75 and 95%; a label ends with what the pairs are."""
    colours = STATES | {"bootstrapped": BOOTSTRAPPED}
    traces: list[Trace] = []
    said = []
    for label, values in groups.items():
        if not len(values):
            continue
        low, q1, median, q3, high = np.percentile(values, [5, 25, 50, 75, 95]).tolist()
        traces.append(
            {
                "type": "box",
                "name": label,
                "x": [label.replace(" ", "<br>", 1)],
                "lowerfence": [low],
                "q1": [q1],
                "median": [median],
                "q3": [q3],
                "upperfence": [high],
                "mean": [float(np.mean(values))],
                "marker": {"color": colours.get(label.split()[-1], KEPT)},
                "showlegend": False,
            }
        )
        said.append(
            f"{label}: median {number(median)}, middle half {number(q1)} to {number(q3)}, 5 to 95% "
            f"{number(low)} to {number(high)}."
        )
    if not traces:
        return None
    return Figure(name, title, caption, " ".join(said), traces, layout("", y))
