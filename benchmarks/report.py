"""JSON, tables and plots of a benchmark, and its results in docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.summary import Ratio, bars

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "sera"
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Write ``NAME.json``, ``NAME.md`` and, if growth was measured, ``NAME.svg``.

    Returns:
        The table's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = results["name"]
    table = [bar.as_dict() for bar in bars(results)]
    text = json.dumps({**results, "table": table}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if "growth" in results:
        plot(results["growth"], folder / f"{name}.svg")
    path = folder / f"{name}.md"
    path.write_text(markdown(results), encoding="utf-8")
    return path


def into_docs(page: Path, table: Path, name: str, with_plot: bool) -> None:
    """Put a table of results between the two marks of ``page``."""
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    body = table.read_text(encoding="utf-8")
    if with_plot:
        body += f"\n![Time against size](../benchmarks/results/{name}.svg)\n"
    page.write_text(f"{head}{BEGIN}\n\n{body}\n{END}{tail}", encoding="utf-8")


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    machine = results["machine"]
    setting = results.get("setting", {})
    parts = [
        f"{results['date']}, {machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, "
        f"{machine['threads']} thread(s) per process; torch {machine['torch']}, transformers "
        f"{machine['transformers']}, trl {machine['trl']}, axolotl {machine['axolotl']}. "
        f"`{results['command']}`, {results['minutes']:.1f} minutes.",
    ]
    if setting:
        parts.append(
            f"Model: {setting['parameters'] / 1e6:.2f} million parameters. Data: {setting['data']};"
            f" {setting['training_pairs']} pairs trained on in rounds of "
            f"{setting['training_tokens']:,} tokens, {setting['scored_pairs']} scored; a row has "
            f"{setting['median_tokens']:.0f} tokens in the median."
        )
    if rows := _bar_rows(results):
        parts.append(_table(rows, ["what", "bar", "found", ""]))
    if "runs" in results:
        parts += ["### Runs", _runs_table(results)]
        parts.append(_gc_sentence(results["runs"]))
    if "profile" in results.get("steps", {}):
        parts += ["### Where the time of an update goes", _profile_table(results["steps"])]
    if "passes" in results:
        parts += ["### Passes", _passes_table(results["passes"])]
        parts.append(_utilisation(results))
    if "growth" in results:
        parts += ["### Growth", _growth_table(results["growth"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bar_rows(results: Mapping[str, Any]) -> list[list[str]]:
    return [
        [bar.what, "" if bar.limit is None else f"≤ {bar.limit:g}", bar.text, bar.verdict]
        for bar in bars(results)
    ]


def _table(rows: list[list[str]], header: list[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _median(values: Any) -> float:
    return float(np.median(list(values)))


def _phase(turn: Mapping[str, Any], name: str) -> float:
    return sum(entry.get(f"seconds_{name}") or 0.0 for entry in turn["rounds"])


def _runs_table(results: Mapping[str, Any]) -> str:
    rows = []
    for name, turns in results["runs"].items():
        seconds = _median(turn["seconds"] for turn in turns)
        phases = {
            phase: _median(_phase(turn, phase) for turn in turns)
            for phase in ("training", "scoring", "generation")
        }
        if not turns[0]["rounds"]:
            phases["training"] = seconds
        rest = seconds - sum(phases.values())
        speed = _median(turn["tokens"] for turn in turns) / phases["training"]
        low, high = (f(turn["seconds"] for turn in turns) for f in (min, max))
        rows.append(
            [
                name,
                f"{seconds:.1f} ({low:.1f} to {high:.1f})",
                *(f"{value:.1f}" for value in (*phases.values(), rest)),
                f"{_median(turn['collection_seconds'] for turn in turns):.1f}",
                f"{_median(turn['process_seconds'] for turn in turns):.1f}",
                f"{speed:,.0f}",
                f"{_median(turn['rss_peak_gib'] for turn in turns):.2f}",
                _cuda(turns),
            ]
        )
    header = [
        *("run", "train() s", "training s", "reviews: scoring s", "sampling s", "rest s"),
        *("of it collecting s", "whole process s", "tokens/s training", "peak RSS GiB"),
        "peak CUDA GiB, steps / all",
    ]
    return _table(rows, header)


def _profile_table(steps: Mapping[str, Any]) -> str:
    """Seconds of one update by kind of work, and how far its gradient is from float64's."""
    profile, whole = steps["profile"], sum(steps["profile"]["host"].values())
    exact = steps["gradients_exact"]
    rows = [
        [
            way,
            *(f"{seconds:.2f}" for seconds in kinds.values()),
            f"{sum(kinds.values()):.2f}",
            f"{sum(kinds.values()) / whole:.2f}",
            *(f"{exact[loss][way]:.1e}" for loss in exact),
        ]
        for way, kinds in profile.items()
    ]
    losses = [f"gradient to float64's, {loss}" for loss in exact]
    return _table(rows, ["way", *profile["host"], "all, s", "of the host's", *losses])


def _cuda(turns: list[dict[str, Any]]) -> str:
    if "cuda_peak_gib" not in turns[0]:
        return "no GPU"
    step, peak = (
        _median(t[name] for t in turns) for name in ("cuda_step_peak_gib", "cuda_peak_gib")
    )
    return f"{step:.2f} / {peak:.2f}"


def _gc_sentence(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """Whether the switch that leaves the host's collection in did so, in words."""

    def each(name: str) -> float:
        turns = runs[name]
        return _median(turn["collection_seconds"] / max(1, turn["steps"]) for turn in turns)

    if "plain" not in runs or "select-host-gc" not in runs:
        return ""
    plain, host = each("plain"), each("select-host-gc")
    text = (
        f"Garbage collection per update: {plain:.2f} s in plain DPO, {host:.2f} s with the host's"
    )
    if "select" in runs:
        text += f", {each('select'):.3f} s as shipped"
    if host < 0.5 * plain:
        text += "; the switch had no effect, so the lines with the host's collection don't hold"
    return text + "."


def _passes_table(passes: Mapping[str, Any]) -> str:
    rows = []
    scoring, generation = passes["scoring"], passes["generation"]
    tokens = {
        "scoring": {side: [scoring["tokens"]] for side in ("fast", "naive")},
        "generation": {side: generation[f"{side}_tokens"] for side in _sides(generation)},
    }
    for name in ("scoring", "generation"):
        for side in _sides(passes[name]):
            seconds = passes[name][f"{side}_seconds"]
            speed = _median(tokens[name][side]) / _median(seconds)
            spread = f"{_median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            share = f"{scoring[f'{side}_padding']:.1%}" if name == "scoring" else ""
            title = name if side == "fast" else f"{name}, {side}"
            rows.append(
                [title, spread, f"{_median(tokens[name][side]):,.0f}", f"{speed:,.0f}", share]
            )
    return _table(rows, ["pass", "seconds", "tokens", "tokens/s", "padding"])


def _utilisation(results: Mapping[str, Any]) -> str:
    """Shares of the machine's matrix and memory rates."""
    passes = results["passes"]
    hardware, flops = passes["hardware"], passes["flops"]
    matrix, memory = hardware["matrix_flops_per_second"], hardware["memory_bytes_per_second"]
    parts = [
        f"The machine's matrix rate is {matrix / 1e12:.3g} TFLOP/s, its memory's "
        f"{memory / 1e9:.3g} GB/s.",
        f"Scoring makes {flops['scoring_pass'] / 1e12:.3g} TFLOP, so it uses "
        f"{flops['scoring_pass'] / _median(passes['scoring']['fast_seconds']) / matrix:.0%} of the "
        "matrix rate.",
    ]
    runs = results.get("runs", {})
    if "select" in runs:
        turn = runs["select"]
        rate = _median(t["tokens"] / max(1e-9, _phase(t, "training")) for t in turn)
        share = 3 * flops["per_token"] * rate / matrix
        parts.append(f"Training, forward and backward, uses {share:.0%}.")
    parts += _decoding(passes["generation"], memory / passes["weight_bytes"])
    return " ".join(parts)


def _decoding(generation: Mapping[str, Any], readings: float) -> list[str]:
    """Tokens per second against what reading all weights once per decoding step allows."""
    found = []
    for side in _sides(generation):
        title = _GENERATION[side]
        speed = Ratio.of(generation[f"{side}_tokens"], generation[f"{side}_seconds"]).median
        batch = generation[f"{side}_batch"]
        text = f"{title} gives {speed:,.0f} tokens/s"
        if batch:
            most = batch * readings
            text += (
                f" in batches of {batch:.0f} answers on average, for which reading the weights "
                f"once per step would allow {most:,.0f}: {speed / most:.1%}"
            )
        found.append(text + ".")
    return found


def _sides(done: Mapping[str, Any]) -> list[str]:
    return [side for side in _GENERATION if f"{side}_seconds" in done]


_GENERATION = {
    "fast": "Generation",
    "paged": "Generation by continuous batching",
    "naive": "Naive generation",
}


def _growth_table(growth: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            ", ".join(f"{size:,}" for size in done["sizes"]),
            ", ".join(f"{seconds:.3g}" for seconds in done["seconds"]),
            f"{done['slope']:.2f}",
            f"{1e6 * done['seconds_per_item']:.3g}",
            f"{max(done['mib']):.0f}" if "mib" in done else "",
        ]
        for name, done in growth.items()
    ]
    header = ["what", "size", "seconds", "exponent", "µs per item", "memory of the largest, MiB"]
    return _table(rows, header)


def plot(growth: Mapping[str, Any], path: Path) -> None:
    """Seconds against size on logarithmic axes; the dashed lines grow linearly."""
    figure, axes = plt.subplots(1, len(growth), figsize=(3.2 * len(growth), 3.0))
    for axis, (name, done) in zip(np.atleast_1d(axes), growth.items(), strict=True):
        sizes = np.array(done["sizes"], dtype=float)
        axis.loglog(sizes, done["seconds"], "o-", color="tab:blue")
        linear = done["seconds"][-1] * sizes / sizes[-1]
        axis.loglog(sizes, linear, "--", color="tab:gray", linewidth=1)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{name}, exponent {done['slope']:.2f}", fontsize=9)
        axis.set_xlabel("prompts" if name == "generation" else "pairs")
    np.atleast_1d(axes)[0].set_ylabel("seconds")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
