"""Tables and plots: ``docs/evidence.md`` from the stored runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence import frontier, sections, told
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.bars import bars
from benchmarks.evidence.plan import FILLS, JUDGES, MORE, PLAN, RULES, SEEDS, planned
from benchmarks.evidence.regimes import BATCH, REGIMES
from benchmarks.evidence.runs import Results, Settings, report_runs, tuned, tuning_runs
from benchmarks.evidence.summary import VERDICTS, ArmRuns, Summary, pooled, spread
from benchmarks.evidence.tables import table

HERE = Path(__file__).parent
PLOTTED = ("dpo", "ipo", "random", "select", "full", "full-ipo", "oracle")
MOST_ROUNDS = 6
UNTUNED = (
    "**Preliminary.** The arms on this page are not tuned: all have the same learning rate and β. "
    "Arms differ in KL for that reason alone, so nothing here is a verdict on a bar."
)


def write(
    results: Results, settings: Settings, page: Path, plots: Path, reading: Path | None = None
) -> None:
    """Write the page and its plots.

    Args:
        results: stored runs.
        settings: sizes they were made with.
        page: Markdown file.
        plots: folder for PNG and SVG files, beside the page or below it.
        reading: Markdown that says what was seen in the numbers.
    """
    summary = Summary(results, settings)
    parts = [_intro(summary)]
    if not settings.tuned:
        parts.append(UNTUNED)
    else:
        parts.append("**State.** " + _state(summary))
    if summary.regimes:
        parts.append(sections.all_regimes(summary))
    if reading is not None:
        parts.append(reading.read_text(encoding="utf-8").rstrip())
    parts.extend(sections.signals(summary))
    parts.extend(told.section(summary))
    parts.extend(frontier.section(summary))
    parts.extend(sections.gates(summary))
    parts.extend(sections.terms(summary))
    parts.append("## What was to be reached\n\n" + _bars(summary))
    parts.extend(_side_by_side(summary))
    parts.extend(_filling(summary))
    plots.mkdir(parents=True, exist_ok=True)
    for regime in summary.regimes:
        arms = summary.of(regime)
        plot(regime, arms, plots)
        link = f"{plots.relative_to(page.parent).as_posix()}/{regime}"
        parts.append(_regime(regime, arms, summary, link))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _intro(summary: Summary) -> str:
    """What the page is about, with the pooled results in its first sentence."""
    text = (HERE / "intro.md").read_text(encoding="utf-8").rstrip()
    for arm in ("select", "sera"):
        text = text.replace(f"{{{arm}}}", sections.headline(summary, arm))
    return text


def _state(summary: Summary) -> str:
    """How much of the plan is there."""
    seeds = [
        f"{regime}: {sum(_is_done(summary, regime, arm) for arm in arms)} of {len(arms)} arms"
        for regime, arms in planned((*PLAN, *MORE)).items()
    ]
    return (
        f"Arms with {SEEDS} seeds or more, of those planned: {', '.join(seeds)}. {_cost(summary)}"
    )


def _filling(summary: Summary) -> list[str]:
    """What takes the places of pairs that fell short, against what did so before."""
    regimes = [r for r in summary.regimes if all((r, arm) in summary.arms for arm in FILLS)]
    if not regimes:
        return []
    rows = []
    for name in FILLS:
        pairs = [(summary.arms[r, name], summary.arms[r, "sera"]) for r in regimes]
        plain = [(mine, summary.arms[mine.regime, "dpo"]) for mine, _ in pairs]
        further = np.mean([mine.mean("kl") / other.mean("kl") for mine, other in pairs])
        each = (str(mine.against(other)) for mine, other in pairs)
        gaps = (str(pooled(pairs)), str(pooled(plain)))
        rows.append((f"`{name}`", ARMS[name].note, *gaps, f"× {further:.1f}", *each))
    arms = [arm for arm in summary.arms.values() if arm.filled_before]
    names = ", ".join(f"`{name}`" for name in ARMS if any(arm.arm == name for arm in arms))
    head = ("arm", "what it is", "against `sera`", "against `dpo`", "KL", *regimes)
    return [
        "## What fills a round\n\n"
        f"In {sum(arm.filled_before for arm in arms)} runs on this page, all of {names}, rounds "
        "that fell short of bootstrapped pairs were filled with the next-best offline pairs, those "
        "with negative margins among them: they were made before there was `selection.fill`. "
        "All other runs are of rounds as they are composed now. Here it is `sera` so filled "
        "against `preset: default` with each value of `selection.fill`; every arm has a learning "
        "rate and β of its own. Difference of gold reward, of each seed the mean over the regimes, "
        "then in each of them.\n\n" + table(head, rows)
    ]


def _cost(summary: Summary) -> str:
    """How long ``make evidence`` computes, from the stored runs of its plan."""
    stored = summary.settings, summary.results
    keys = {
        run.key(summary.settings)
        for regime, arms in PLAN
        for arm in arms
        for run in (
            *tuning_runs(regime, arm, *stored),
            *report_runs(regime, arm, range(SEEDS), *stored),
        )
    }
    found = [summary.results.found[key] for key in keys & summary.results.found.keys()]
    seconds = [run["cpu_seconds"] for run in found if "cpu_seconds" in run]
    return (
        f"`make evidence` is {len(keys)} runs, of which {len(found)} are stored, with "
        f"{np.mean(seconds) if seconds else np.nan:.0f} seconds of processor time each."
    )


def _is_done(summary: Summary, regime: str, arm: str) -> bool:
    found = summary.arms.get((regime, arm))
    return found is not None and len(found.runs) >= SEEDS


def _bars(summary: Summary) -> str:
    lines = bars(summary)
    rows = [(b.text, b.regime, b.wanted, b.found, b.holm, b.insensitive, b.detail) for b in lines]
    counts = Counter(b.found for b in lines)
    head = ("what", "regime", "wanted", "found", "after Holm", "a random 70% passes too",
            "difference of gold reward")  # fmt: skip
    total = ", ".join(f"{counts[found]} {found}" for found in VERDICTS if counts[found])
    held = sum(b.holm == "holds" for b in lines)
    blind = sum(b.found == "holds" and b.insensitive == "yes" for b in lines)
    counted = (
        f"{len(lines)} comparisons, each at 95% by itself: {total}. After Holm's correction over "
        f"all of them {held} hold. {blind} of those that hold ask for *not worse* where DPO on a "
        "random 70% of the pairs is not worse either: such a line can't tell a selection that "
        "works from one that throws pairs away. The tuned oracle is DPO on the same pairs without "
        "flipped labels, with the learning rate and β of `dpo` on clean pairs."
    )
    return f"{counted}\n\n{table(head, rows)}"


def _side_by_side(summary: Summary) -> list[str]:
    """Rules of selection, and judges, in the regimes that have them."""
    return [
        f"## {title}\n\n{text}\n\n{_against_dpo(summary, arms)}\n\n"
        f"The same at equal KL:\n\n{_against_dpo(summary, arms, equal_kl=True)}"
        for title, text, arms in (
            (
                "Which rule of selection wins where, untuned",
                "Difference of gold reward to DPO, the best of a column in bold; `select` is "
                "`rule: top`. All take the learning rate and β of `select`, at which rules that "
                "keep pairs with smaller margins move the policy less: look at both tables. "
                "`rule-external` and `rule-fused` see scores of an outside judge who errs at one "
                "prompt in five.",
                ("select", *RULES),
            ),
            (
                "Who judges the fresh answers, untuned",
                "The same, with the learning rate and β of `sera`. A judge of one's own takes the "
                "place of the implicit reward, and the guard stands aside.",
                ("sera", *JUDGES),
            ),
        )
        if any((regime, arms[1]) in summary.arms for regime in REGIMES)
    ]


def _against_dpo(summary: Summary, arms: Sequence[str], *, equal_kl: bool = False) -> str:
    """A row per arm, a column per regime in which the second arm has run."""
    regimes = [r for r in summary.regimes if (r, arms[1]) in summary.arms]
    columns = []
    for regime in regimes:
        here = summary.of(regime)
        dpo = here["dpo"]
        found = {
            a: here[a].at_equal_kl(dpo) if equal_kl else here[a].against(dpo)
            for a in arms
            if a in here
        }
        best = max(found, key=lambda name: found[name].mean)
        cells = {name: f"**{gap}**" if name == best else str(gap) for name, gap in found.items()}
        columns.append(cells)
    rows = [
        (f"`{name}`", ARMS[name].note, *(cells.get(name, "-") for cells in columns))
        for name in arms
    ]
    return table(("arm", "what it is", *regimes), rows)


def _regime(regime: str, arms: dict[str, ArmRuns], summary: Summary, link: str) -> str:
    data = REGIMES[regime]
    source = "the SFT model's own answers" if data.source == "on" else "other writers' answers"
    spurious = ", a meaningless word in most chosen answers" if data.spurious else ""
    text = (
        f"## {regime}\n\n{data.pairs:,} pairs of {source}, {data.noise:.0%} of the labels flipped"
        f"{spurious}; {data.updates} updates of {BATCH} pairs.\n\n"
    )
    text += _judged(arms, summary) + "\n\n" + _made_of(arms)
    return text + f"\n\n![Gold reward against KL]({link}.png) ([SVG]({link}.svg))"


def _judged(arms: dict[str, ArmRuns], summary: Summary) -> str:
    head = ("arm", "lr, β", "seeds", "gain over SFT", "against DPO", "at equal KL", "verdict",
            "wins SFT", "wins DPO", "KL", "length", "marker", "s", "k tokens")  # fmt: skip
    rows = []
    for name, arm in arms.items():
        base = arms["ipo"] if ARMS[name].loss == "ipo" and "ipo" in arms else arms["dpo"]
        _, rate, beta = tuned(arm.regime, name, summary.settings, summary.results) or ("", 0, 0)
        plain = name in ("dpo", "oracle")
        rows.append(
            (
                f"`{name}`",
                f"{rate:g}, {beta:g}",
                str(len(arm.runs)),
                f"{arm.gain.mean:.2f} ± {np.std(list(arm.gains.values())):.2f}",
                "" if name == "dpo" else str(arm.against(arms["dpo"])),
                "" if name == "dpo" else str(arm.at_equal_kl(arms["dpo"])),
                "" if plain or arm is base else arm.verdict(base),
                f"{arm.wins(None):.0%}",
                "" if name == "dpo" else f"{arm.wins(arms['dpo']):.0%}",
                f"{arm.mean('kl'):.1f}",
                f"{arm.mean('length'):.1f}",
                f"{arm.mean('marker'):.0%}",
                f"{np.mean([run['seconds'] for run in arm.runs.values()]):.0f}",
                f"{arm.tokens / 1e3:.0f}",
            )
        )
    return table(head, rows)


def _made_of(arms: dict[str, ArmRuns]) -> str:
    names = {
        "kept_accuracy": "right labels among kept",
        "margin_auc": "AUC of the margin for flips",
        "fresh_accuracy": "fresh pairs that gold agrees with",
        "own_accuracy": "own samples, best against worst",
    }
    rows = []
    for name, arm in arms.items():
        found = {key: arm.by_round(key) for key in names}
        if any(found.values()):
            rows.append((f"`{name}`", *(spread(_few(found[key])) for key in names)))
    if not rows:
        return "No arm of this regime reviews its data."
    return "By reviewed round:\n\n" + table(("arm", *names.values()), rows)


def _few(values: list[float]) -> list[float]:
    """At most MOST_ROUNDS values, evenly spread, the first and the last among them."""
    if len(values) <= MOST_ROUNDS:
        return values
    return [values[i] for i in np.linspace(0, len(values) - 1, MOST_ROUNDS).round().astype(int)]


def plot(regime: str, arms: dict[str, ArmRuns], folder: Path) -> None:
    """Gold reward against KL, a curve per arm, means over seeds at equal shares of the updates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Otherwise the ids in an SVG are random, and every run changes the file.
    matplotlib.rcParams["svg.hashsalt"] = "evidence"
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name in PLOTTED:
        if name in arms:
            arm = arms[name]
            kl = np.array([[p["kl"] for p in run["curve"]] for run in arm.runs.values()])
            gold = np.array(
                [[p["gold"] - arm.start(s) for p in run["curve"]] for s, run in arm.runs.items()]
            )
            axes.plot([0, *kl.mean(axis=0)], [0, *gold.mean(axis=0)], "o-", ms=3, label=name)
    axes.set_xlabel("KL to the SFT model, nats per answer")
    axes.set_ylabel("gain in gold reward")
    axes.set_title(regime)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / f"{regime}.png", dpi=110, metadata={"Software": None})
    figure.savefig(folder / f"{regime}.svg", metadata={"Date": None})
    pyplot.close(figure)
