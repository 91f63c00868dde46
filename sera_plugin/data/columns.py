"""Name, type and meaning of every column that a run or a command writes, file by file.

Writers, readers, exports, reports and the documentation take them from here. A member is its name
as a string, so it stands wherever a column's name does: ``table[Margins.KEPT]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import groupby

import pyarrow as pa

_TOKENS = pa.list_(pa.int64())
_QUALITY = (
    "log-prob of each completion behind the prompt with p, nats, under the policy at the round's "
    "start; empty where every step finds it"
)
_QUALITY_REFERENCE = "the same under the reference; empty where Δ has another baseline"


class Column(StrEnum):
    """The columns of a file, in its order; a subclass for every file.

    Attributes:
        file: where the columns stand.
        type: the type in parquet; in JSON the one that comes nearest.
        meaning: a clause, Markdown.
    """

    file: str
    type: pa.DataType
    meaning: str

    def __init_subclass__(cls, *, file: str) -> None:
        cls.file = file

    def __new__(cls, name: str, type_: pa.DataType, meaning: str) -> Column:
        column = str.__new__(cls, name)
        column._value_, column.type, column.meaning = name, type_, meaning
        return column

    @classmethod
    def arrow(cls) -> pa.Schema:
        """The columns as a schema of pyarrow."""
        return pa.schema([(column.value, column.type) for column in cls])

    @classmethod
    def as_markdown(cls) -> str:
        """A table of name, type and meaning; neighbours of one meaning share a row."""
        groups = groupby(cls, lambda column: (_words(column.type), column.meaning))
        rows = [(code(columns), *both) for both, columns in groups]
        return markdown(("Column", "Type", "Meaning"), rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line end behind it."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def code(names: Iterable[str]) -> str:
    """Names as code in Markdown."""
    return ", ".join(f"`{name}`" for name in names)


def _words(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"list of {_words(type_.value_type)}"
    return "object" if pa.types.is_struct(type_) else str(type_).replace("double", "float64")


# One column in few lines.
# fmt: off

class Pairs(Column, file="pairs.parquet"):
    """The texts of D."""

    EXAMPLE_ID = "example_id", pa.string(), "the pair, as in `margins.parquet`"
    PROMPT = "prompt", pa.string(), "text under the chat template, special tokens included"
    CHOSEN = "chosen", pa.string(), "the better completion, as labelled"
    REJECTED = "rejected", pa.string(), "the worse completion, as labelled"
    PROMPT_TOKENS = "prompt_tokens", pa.int64(), "tokens of the prompt"
    CHOSEN_TOKENS = "chosen_tokens", pa.int64(), "tokens of the completion that the loss sees"
    REJECTED_TOKENS = "rejected_tokens", pa.int64(), "tokens of the completion that the loss sees"


TEXTS = (Pairs.PROMPT.value, Pairs.CHOSEN.value, Pairs.REJECTED.value)
"""Columns of text, of the same names in every file that has them."""


class Margins(Column, file="margins.parquet"):
    """What a review found, a row for every offline pair in the order of D."""

    EXAMPLE_ID = (
        "example_id", pa.string(),
        "hash of prompt, chosen and rejected text, the same from run to run; exact copies end in "
        "`-2`, `-3`, ...",
    )
    POLICY_CHOSEN_LOGP = "policy_chosen_logp", pa.float64(), "log πθ of each completion, nats"
    POLICY_REJECTED_LOGP = "policy_rejected_logp", pa.float64(), "log πθ of each completion, nats"
    CHOSEN_LOG_RATIO = "chosen_log_ratio", pa.float64(), "log πθ/πref of each completion, nats"
    REJECTED_LOG_RATIO = "rejected_log_ratio", pa.float64(), "log πθ/πref of each completion, nats"
    MARGIN = "margin", pa.float64(), "this review's margin"
    ENSEMBLED_MARGIN = "ensembled_margin", pa.float64(), "mixed with the previous review's margin"
    KEPT = "kept", pa.bool_(), "whether the pair is among the K kept"
    SCORE = (
        "score", pa.float64(),
        "what the rule of selection sorts by; NaN where it keeps the pair out",
    )
    FLIPPED = (
        "flipped", pa.bool_(),
        "whether chosen and rejected change places (`selection.on_negative: flip`)",
    )
    MEASURED_IN = (
        "measured_in", pa.int32(),
        "the round at whose end the log-probs were measured; with `selection.source: training`, "
        "the round within which; 0 is the start of the run",
    )
    RIGHT = (
        "right", pa.float64(),
        "how likely the label is right by `selection.by`; only where it is not the margin alone, "
        "or `selection.use` is not `drop`; NaN where nothing is known",
    )
    WEIGHT = (
        "weight", pa.float64(),
        "how much the pair counts in the loss, with `right`; 1 unless `selection.use: weight` and "
        "an open gate say otherwise",
    )


class Rows(Column, file="rows.parquet"):
    """What a round trains on, a row for every training pair in order."""

    KEY = (
        "key", pa.string(),
        "example id with `/offline`, or `/policy` for a bootstrapped pair; of a row that fills a "
        "place a number follows, as in `/offline/2`",
    )
    EXAMPLE_ID = (
        "example_id", pa.string(), "the offline pair, or the one whose prompt was answered"
    )
    CHOSEN_IDS = "chosen_ids", _TOKENS, "token ids of a bootstrapped pair; else null"
    REJECTED_IDS = "rejected_ids", _TOKENS, "token ids of a bootstrapped pair; else null"
    REF_CHOSEN_LOGP = (
        "ref_chosen_logp", pa.float64(),
        "log πref of a bootstrapped pair's completions; else null",
    )
    REF_REJECTED_LOGP = (
        "ref_rejected_logp", pa.float64(),
        "log πref of a bootstrapped pair's completions; else null",
    )
    FLIPPED = (
        "flipped", pa.bool_(),
        "whether the offline pair is trained on with its completions in each other's place",
    )
    CHOSEN_SOURCE = (
        "chosen_source", pa.string(),
        "who wrote a bootstrapped pair's completion, as in `candidates.parquet`; else null",
    )
    REJECTED_SOURCE = (
        "rejected_source", pa.string(),
        "who wrote a bootstrapped pair's completion, as in `candidates.parquet`; else null",
    )
    FILLED = (
        "filled", pa.bool_(),
        "whether the row takes the place of a pair that fell short (`selection.fill`)",
    )


class Candidates(Column, file="candidates.parquet"):
    """Every completion that competed in a round."""

    EXAMPLE_ID = "example_id", pa.string(), "the pair whose prompt was answered"
    SOURCE = (
        "source", pa.string(),
        "`policy`, `reference`, `offline_chosen` or `offline_rejected`; what policy and reference "
        "both sampled is the policy's",
    )
    FINISHED = "finished", pa.bool_(), "false if the completion was cut before a stop token"
    TOKEN_IDS = "token_ids", _TOKENS, "the completion"
    POLICY_LOGP = "policy_logp", pa.float64(), "log πθ, nats"
    REFERENCE_LOGP = "reference_logp", pa.float64(), "log πref, nats"
    LOG_RATIO = (
        "log_ratio", pa.float64(),
        "their difference, mixed with the previous policy's under `bootstrap.ensemble`",
    )
    REWARD = "reward", pa.float64(), "β·log_ratio − α·tokens, by which candidates are ranked"
    JUDGE_SCORE = (
        "judge_score", pa.float64(),
        "score of `bootstrap.judge`; null without one, or without an opinion",
    )
    IN_ROUND = "in_round", pa.bool_(), "whether the prompt gave a pair to the round"


class Competitors(Column, file="bootstrapped.jsonl"):
    """The objects in ``candidates`` of a bootstrapped pair."""

    TEXT = "text", pa.string(), "the completion with its ending"
    SOURCE = "source", pa.string(), Candidates.SOURCE.meaning
    FINISHED = "finished", pa.bool_(), Candidates.FINISHED.meaning
    TOKENS = "tokens", pa.int64(), "its length"
    LOG_RATIO = "log_ratio", pa.float64(), "log πθ/πref, nats, mixed under `bootstrap.ensemble`"
    REWARD = "reward", pa.float64(), Candidates.REWARD.meaning


class BootstrappedPairs(Column, file="bootstrapped.jsonl"):
    """The bootstrapped pairs of a round as text, the largest margin first."""

    PROMPT = "prompt", pa.string(), Pairs.PROMPT.meaning
    CHOSEN = "chosen", pa.string(), "the completion with the highest reward, with its ending"
    REJECTED = "rejected", pa.string(), "the completion with the lowest reward"
    EXAMPLE_ID = "example_id", pa.string(), Candidates.EXAMPLE_ID.meaning
    ROUND = "round", pa.int64(), "number of the round"
    MARGIN = "margin", pa.float64(), "difference in reward"
    REWARD_CHOSEN = "reward_chosen", pa.float64(), Candidates.REWARD.meaning
    REWARD_REJECTED = "reward_rejected", pa.float64(), Candidates.REWARD.meaning
    CHOSEN_SOURCE = "chosen_source", pa.string(), "as `source` in `candidates.parquet`"
    REJECTED_SOURCE = "rejected_source", pa.string(), "as `source` in `candidates.parquet`"
    CANDIDATES = (
        "candidates", pa.list_(pa.struct(Competitors.arrow())),
        "all completions that competed: " + ", ".join(f"`{name}`" for name in Competitors),
    )


class Refinement(Column, file="refinement.parquet"):
    """What Δ of a round is found from, a row for every pair that p⊕x fits."""

    KEY = "key", pa.string(), "the row of the round, as in `rows.parquet`"
    QUALITY_CHOSEN_LOGP = "quality_chosen_logp", pa.float64(), _QUALITY
    QUALITY_REJECTED_LOGP = "quality_rejected_logp", pa.float64(), _QUALITY
    REFERENCE_CHOSEN_LOGP = "reference_chosen_logp", pa.float64(), _QUALITY_REFERENCE
    REFERENCE_REJECTED_LOGP = "reference_rejected_logp", pa.float64(), _QUALITY_REFERENCE


class ExportedPairs(Column, file="train.parquet"):
    """A round as a dataset that plain DPO trains on, in training order."""

    PROMPT = "prompt", pa.string(), Pairs.PROMPT.meaning
    CHOSEN = "chosen", pa.string(), "the better answer, with its ending"
    REJECTED = "rejected", pa.string(), "the worse answer"
    SOURCE = (
        "source", pa.string(),
        "`offline` for a pair of the original dataset, `bootstrapped` for a new one",
    )
    EXAMPLE_ID = "example_id", pa.string(), Rows.EXAMPLE_ID.meaning
    MARGIN = (
        "margin", pa.float64(),
        "ensembled margin in nats (offline), difference in reward (bootstrapped)",
    )
    SWAPPED = "swapped", pa.bool_(), "whether chosen and rejected have changed places"
    CHOSEN_SOURCE = (
        "chosen_source", pa.string(), "`offline_chosen`, `offline_rejected` or `policy` (sampled)"
    )
    REJECTED_SOURCE = "rejected_source", pa.string(), "the same for the rejected answer"
    FILLED = "filled", pa.bool_(), Rows.FILLED.meaning
    RIGHT = (
        "right", pa.float64(),
        "how likely the original label is right; null where nothing is known",
    )
    WEIGHT = (
        "weight", pa.float64(),
        "how much the pair counted in the loss, which plain DPO doesn't look at",
    )


class RankedPairs(Column, file="ranked.parquet"):
    """Labels by how suspicious they are, the most suspicious first; more columns may follow."""

    RANK = "rank", pa.int64(), "1 for the most suspicious label"
    EXAMPLE_ID = "example_id", pa.string(), "hash of prompt, chosen and rejected text"
    MARGIN = (
        "margin", pa.float64(),
        "log-ratio of chosen minus that of rejected, nats; negative: the policy disagrees",
    )
    PREFERENCE_PROBABILITY = (
        "preference_probability", pa.float64(),
        "σ(β·margin): how likely the policy takes chosen to be better",
    )
    CHOSEN_LOG_RATIO = "chosen_log_ratio", pa.float64(), "log πθ/πref of the chosen answer"
    REJECTED_LOG_RATIO = "rejected_log_ratio", pa.float64(), "the same for the rejected answer"
    POLICY_CHOSEN_LOGP = "policy_chosen_logp", pa.float64(), "log πθ"
    POLICY_REJECTED_LOGP = "policy_rejected_logp", pa.float64(), "log πθ"
    CHOSEN_TOKENS = "chosen_tokens", pa.int64(), "length"
    REJECTED_TOKENS = "rejected_tokens", pa.int64(), "length"
    PROMPT = "prompt", pa.string(), "text"
    CHOSEN = "chosen", pa.string(), "text"
    REJECTED = "rejected", pa.string(), "text"
# fmt: on
