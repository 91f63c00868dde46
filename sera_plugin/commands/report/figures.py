"""Figures as plain plotly dictionaries; numbers are counted here, so pages stay small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sera_plugin.commands.report.page import Figure

KEPT, DROPPED, FRESH, FILLED = "#2f8f6b", "#d0735f", "#3157c9", "#b9a14a"
COLOURS = (FRESH, KEPT, DROPPED, FILLED, "#7a4fb0", "#3f9fb5", "#8a8f99")
BINS = 60

Trace = dict[str, Any]


def layout(x: str = "", y: str = "", **more: Any) -> dict[str, Any]:
    """The layout that all figures share."""
    axis = {"gridcolor": "#e8ebf0", "zerolinecolor": "#c5cbd5", "linecolor": "#c5cbd5"}
    base = {
        "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#3b4456"},
        "xaxis": axis | {"title": {"text": x}},
        "yaxis": axis | {"title": {"text": y}},
        "legend": {"orientation": "h", "x": 0, "y": 1.12},
        "colorway": list(COLOURS),
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#b4bcc9", "activecolor": "#3157c9"},
    }
    for name, value in more.items():
        known = base.get(name)
        base[name] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
    return base


def lines(
    name: str, title: str, caption: str, series: Mapping[str, tuple[Sequence[Any], Sequence[Any]]],
    x: str, y: str, **more: Any,
) -> Figure | None:  # fmt: skip
    """Series of (x, y) as lines, or None if none has a point."""
    traces: list[Trace] = []
    for label, (xs, ys) in series.items():
        if len(xs):
            mode = "lines+markers" if len(xs) <= 60 else "lines"
            traces.append(
                {"type": "scatter", "mode": mode, "name": label, "x": list(xs), "y": list(ys)}
            )
    if not traces:
        return None
    return Figure(name, title, caption, traces, layout(x, y, **more))


def bars(
    name: str, title: str, caption: str, labels: Sequence[str],
    parts: Mapping[str, Sequence[float | None]], y: str, mode: str = "stack",
    colours: Sequence[str] = COLOURS,
) -> Figure | None:  # fmt: skip
    """Bars per label, stacked or side by side, or None if all are empty."""
    traces: list[Trace] = [
        {
            "type": "bar",
            "name": part,
            "x": list(labels),
            "y": list(values),
            "marker": {"color": colour},
        }
        for (part, values), colour in zip(parts.items(), colours, strict=False)
        if any(value for value in values)
    ]
    if not traces:
        return None
    shape = layout("", y, barmode=mode, xaxis={"type": "category"})
    return Figure(name, title, caption, traces, shape)


def bin_edges(values: Sequence[np.ndarray]) -> np.ndarray:
    """Edges that cover all but the outermost thousandths of all values together."""
    finite = [v[np.isfinite(v)] for v in values]
    every = np.concatenate([*finite, np.zeros(0)])
    if not len(every):
        return np.linspace(-1.0, 1.0, BINS + 1)
    low, high = np.percentile(every, [0.1, 99.9])
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def histogram(
    name: str, title: str, caption: str, edges: np.ndarray,
    parts: Mapping[str, np.ndarray], colours: Sequence[str], line: float | None = None,
) -> Figure:  # fmt: skip
    """Stacked histograms over the same bins; what lies beyond the edges counts in the last bin.

    Args:
        name: of the figure.
        title: heading.
        caption: what it shows.
        edges: of the bins.
        parts: values by label.
        colours: one per part.
        line: a value to mark, if any.
    """
    middles = (edges[:-1] + edges[1:]) / 2
    traces: list[Trace] = []
    for (label, values), colour in zip(parts.items(), colours, strict=False):
        inside = np.clip(values[np.isfinite(values)], edges[0], edges[-1])
        counts, _ = np.histogram(inside, edges)
        traces.append(
            {
                "type": "bar",
                "name": f"{label} ({len(values):,})",
                "x": [round(float(x), 5) for x in middles],
                "y": counts.tolist(),
                "width": float(edges[1] - edges[0]),
                "marker": {"color": colour, "line": {"width": 0}},
                "hovertemplate": "%{x:.3f}: %{y}<extra>" + label + "</extra>",
            }
        )
    marks = []
    if line is not None and np.isfinite(line):
        marks.append(
            {
                "type": "line",
                "x0": line,
                "x1": line,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "#1c2330", "width": 1.5, "dash": "dot"},
            }
        )
    shape = layout("margin", "pairs", barmode="stack", bargap=0, shapes=marks)
    return Figure(name, title, caption, traces, shape)


def boxes(
    name: str, title: str, caption: str, groups: Mapping[str, np.ndarray], y: str
) -> Figure | None:
    """Box plots from quantiles: 5, 25, 50, 75 and 95%."""
    traces: list[Trace] = []
    for (label, values), colour in zip(groups.items(), COLOURS, strict=False):
        if len(values):
            low, q1, median, q3, high = np.percentile(values, [5, 25, 50, 75, 95]).tolist()
            traces.append(
                {
                    "type": "box",
                    "name": label,
                    "x": [label],
                    "lowerfence": [low],
                    "q1": [q1],
                    "median": [median],
                    "q3": [q3],
                    "upperfence": [high],
                    "mean": [float(np.mean(values))],
                    "marker": {"color": colour},
                    "showlegend": False,
                }
            )
    if not traces:
        return None
    return Figure(name, title, caption, traces, layout("", y))
