"""Name, meaning, format and unit of every number that a round reports.

The log's table, the report's labels and the documentation take them from here. A number is logged
as ``sera/<name>`` and stands under its name in ``summary.json``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from sera_plugin.data.columns import code, markdown

QUANTILES = (5, 25, 50, 75, 95)
"""Percentages at which the margins, and Δ, are described."""

SET = "<set>"
"""Stands in a metric's name for the name of an evaluation set."""

SOURCES = "label_errors_by"
"""Key in the summary of a review: the share of wrong labels, both ends of its interval and the
pairs, for each value of ``selection.sources``."""

SET_ASIDE = "set_aside_ids"
"""Key in the summary of a round on all of D: ids of the pairs that it left out, if any."""


@dataclass(frozen=True)
class Metric:
    """A number of a round.

    Attributes:
        name: its key; with ``SET`` in it, that of a family.
        meaning: a clause, Markdown.
        format: how Python formats it.
        unit: what it counts or is measured in; empty for a plain number.
        title: heading in the table of rounds; empty if it is not shown there.
        label: words for it on a page; empty if no page shows it by itself.
    """

    name: str
    meaning: str
    format: str
    unit: str = ""
    title: str = ""
    label: str = ""

    def text(self, value: float, separator: str = "") -> str:
        """A value as text, with what stands between thousands."""
        return format(value, f"{separator}{self.format}")


def _spread(stem: str, meaning: str, title: str = "", unit: str = "nats") -> tuple[Metric, ...]:
    """Mean, with a title, standard deviation and quantiles of something."""
    mean = Metric(f"{stem}_mean", meaning, ".3f", unit, title)
    others = ("std", *(f"q{q:02d}" for q in QUANTILES))
    return mean, *(replace(mean, name=f"{stem}_{name}", title="") for name in others)


_OTHERS = "whose log-probs are not finite numbers; they are left out of all other metrics"
_SPEED = "tokens in a second of the phase, without padding, over all processes"
_SHORT = {
    "duplicates": "one completion only",
    "equal_rewards": "no difference in reward",
    "truncated": "no finished completion that beats another",
    "not_new": "both ends offline",
    "disagree": "the judge orders the two otherwise",
    "unjudged": "the judge has no opinion on one",
    "no_reference": "the reference wrote no other answer than the best (`rejected: reference`)",
}

# One metric in few lines.
# fmt: off
METRICS = (
    Metric("round", "number of the round that the review composed", ".0f", title="round"),
    Metric(
        "kept", "kept offline pairs in the round, each counted once", ".0f", "pairs", "kept",
        "offline pairs kept"),
    Metric("eligible", "pairs that the rule of selection lets through", ".0f", "pairs"),
    Metric("flipped", "pairs in the round whose completions changed places", ".0f", "pairs"),
    Metric(
        "bootstrapped", "bootstrapped pairs in the round", ".0f", "pairs", "bootstrapped",
        "bootstrapped pairs"),
    Metric(
        "shortfall",
        "planned bootstrapped pairs that fell short; those that the guard left out are among them",
        ".0f", "pairs", label="bootstrapped pairs that fell short"),
    Metric(
        "filled",
        "rows in the places of kept or bootstrapped pairs that fell short, as `selection.fill` "
        "says; with `kept` and `bootstrapped` they are all rows of the round",
        ".0f", "rows", "filled", "rows that fill places"),
    Metric(
        "filled_negative",
        "filled rows whose offline pair has a negative margin as it is trained on",
        ".0f", "rows"),
    Metric(
        "label_errors",
        "ε, the share of wrong labels by what pairs are judged by (`selection.by`)",
        ".1%", "share", "wrong labels", "wrong labels, estimated"),
    *(
        Metric(
            f"label_errors_{end}",
            "ends of its profile-likelihood interval of 95%, given the prior on the signal",
            ".1%", "share")
        for end in ("low", "high")),
    Metric(
        "agreement",
        "how likely the labels are by `selection.by`, the policy's margin aside, on average; a "
        "half is chance", ".1%", "share"),
    Metric("agreement_low", "lower bound of 95% of `agreement`", ".1%", "share"),
    Metric(
        "gate_open", "1 if `selection.gate` lets pairs be weighed, turned or dropped, else 0",
        ".0f"),
    Metric("weight_zero", "pairs that `selection.use: weight` gives the weight 0", ".0f", "pairs"),
    Metric(
        "weight_effective", "(Σw)²/Σw² of the weights, over the pairs: 1 if all count alike",
        ".1%", "share"),
    Metric(
        "guard_share",
        "share of the planned bootstrapped pairs that the guard lets in; 1 when it is off",
        ".0%", "share", "guard"),
    Metric(
        "guard_left_out", "bootstrapped pairs that were at hand and that the guard left out",
        ".0f", "pairs"),
    Metric(
        "guard_drift", "log πθ/πref of the policy's sampled completions over their tokens",
        ".3f", "nats per token"),
    Metric("guard_spread", "within-prompt standard deviation of log πθ/πref", ".3f", "nats"),
    Metric(
        "guard_spread_ratio", "`guard_spread` over that of the first review", ".3f", "times"),
    Metric(
        "guard_length_correlation",
        "Spearman correlation of reward and length among the policy's completions, mean "
        "over prompts", ".3f", "−1 to 1"),
    Metric(
        "guard_agreement",
        "share of the best and worst of the policy's completions that stay so when the "
        "reward's linear dependence on length is taken out", ".1%", "share"),
    Metric(
        "guard_accuracy",
        "share of all evaluation pairs, or held-out ones, that the reward ranks as labelled, ties "
        "as half",
        ".1%", "share"),
    *(
        Metric(f"short_{reason}", f"prompts that gave no pair: {why}", ".0f", "prompts")
        for reason, why in _SHORT.items()),
    Metric(
        "prompts_without_room", "prompts too long for a completion within `sequence_len`",
        ".0f", "prompts"),
    *_spread(
        "margin",
        "this review's margins over all of D: mean, standard deviation and quantiles; per token "
        "with `selection.margin: mean`", "margin"),
    Metric(
        "threshold", "smallest ensembled margin among the kept pairs", ".3f", "nats", "threshold"),
    Metric(
        "set_aside",
        "pairs whose margin is not a finite number; they are neither ranked nor trained on",
        ".0f", "pairs"),
    Metric(f"set_aside_{SET}", f"pairs of an evaluation set {_OTHERS}", ".0f", "pairs"),
    Metric("set_aside_answers", f"sampled completions {_OTHERS}", ".0f", "completions"),
    Metric(
        "aged_margins",
        "with `selection.source: training`, pairs that the round before did not train on, so that "
        "their margins are older", ".0f", "pairs"),
    Metric(
        "accuracy_train", "share of offline pairs whose chosen completion has the larger log-ratio",
        ".1%", "share", "accuracy", "offline pairs ordered as labelled"),
    Metric(
        f"accuracy_{SET}",
        "share of the pairs of an evaluation set whose chosen completion has the larger log-ratio; "
        "without names of sets it is `accuracy_eval`, of held-out pairs `accuracy_held_out`",
        ".1%", "share", f"accuracy {SET}", "evaluation pairs ordered as labelled"),
    Metric(
        "kept_overlap", "share of the kept pairs that the previous review kept as well",
        ".1%", "share", "overlap", "kept pairs kept before as well"),
    Metric("length_penalty", "α, given or found", ".4g", "reward per token"),
    *(
        Metric(f"{side}_tokens_{source}", f"mean lengths in the {pairs} pairs", ".1f", "tokens")
        for source, pairs in {"offline": "kept", "bootstrapped": "bootstrapped"}.items()
        for side in ("chosen", "rejected")),
    Metric(
        "fresh_chosen_share", "share of bootstrapped pairs whose chosen completion was sampled",
        ".1%", "share"),
    Metric(
        "bootstrapped_margin_mean", "mean difference in reward of the bootstrapped pairs", ".3f"),
    Metric(
        "unique_answer_ratio",
        "share of the sampled completions, whoever wrote them, that is left when each prompt's "
        "repeats are dropped", ".1%", "share", label="sampled answers that differ"),
    Metric(
        "finished_answer_ratio",
        "share of all sampled completions, whoever wrote them, that ended by themselves",
        ".1%", "share"),
    Metric(
        "kl_policy_samples",
        "mean of log πθ/πref over the policy's sampled completions that are not empty: an estimate "
        "of the KL divergence to the reference; absent with `bootstrap.sampler: reference`",
        ".2f", "nats", "KL", "KL to the reference, nats (estimate)"),
    *_spread(
        "delta",
        "Δ of the pairs of the round, as they were trained on: mean, standard deviation and "
        "quantiles; in the unit of the loss's margin, positive where the chosen answer is judged "
        "better", unit=""),
    Metric(
        "delta_margin_correlation",
        "Spearman's rank correlation of Δ with the implicit margin; 1 means that both order the "
        "pairs alike", ".3f"),
    Metric(
        "delta_score_correlation",
        "Spearman's rank correlation of Δ with the difference of the scores that the data carries "
        "(in the columns of `selection.external`)", ".3f"),
    Metric(
        "margin_score_correlation",
        "Pearson's correlation of the implicit margin with that difference", ".3f"),
    Metric(
        "unrefined",
        "pairs of the round that trained without Δ, because p and the longer completion don't fit "
        "`sequence_len` or a log-prob is not a finite number", ".0f", "pairs"),
    *(
        Metric(f"seconds_{phase}", "wall time of the phase", ".1f", "s", f"{title} s")
        for phase, title in (
            ("scoring", "score"), ("generation", "sample"), ("training", "train"))),
    Metric("seconds_refining", "wall time of the passes of Δ before a round", ".1f", "s"),
    *(
        Metric(f"tokens_per_second_{phase}", _SPEED, ".0f", "tokens/s")
        for phase in ("scoring", "generation", "training")),
)
# fmt: on
"""All of them, in the order of tables."""

_NAMES = {metric.name for metric in METRICS} | {SET_ASIDE, SOURCES}


def metrics_of(names: Iterable[str]) -> list[Metric]:
    """The metrics that some names stand for, in the order of ``METRICS``; others are left out."""
    given = list(dict.fromkeys(names))
    return [found for metric in METRICS for name in given if (found := _named(metric, name))]


def _named(metric: Metric, name: str) -> Metric | None:
    stem, family, _ = metric.name.partition(SET)
    if name == metric.name:
        return metric
    if not family or name in _NAMES or not name.startswith(stem):
        return None
    return replace(metric, name=name, title=metric.title.replace(SET, name.removeprefix(stem)))


def label_of(name: str) -> str:
    """A metric in words.

    Raises:
        ValueError: if there is no such metric.
    """
    (metric,) = metrics_of([name])
    return metric.label


def metrics_as_markdown(metrics: Iterable[Metric] = METRICS) -> str:
    """A table of name, unit and meaning; neighbours of one meaning share a row."""
    groups = groupby(metrics, lambda metric: (metric.unit, metric.meaning))
    rows = [(code(metric.name for metric in found), *both) for both, found in groups]
    return markdown(("Metric", "Unit", "Meaning"), rows)
