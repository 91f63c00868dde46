"""The union of kept and bootstrapped pairs, as a dataset of exactly the planned size. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from sera_plugin.data.candidates import BootstrappedPair
from sera_plugin.data.ids import permutation
from sera_plugin.data.margins import PairLogps

ROW_KEY = "sera_id"
"""Column of a round's dataset that names its rows."""


@dataclass(frozen=True)
class Composition:
    """What a reviewed round trains on.

    Attributes:
        kept: ids of the top K offline pairs, best first.
        filled: ids of offline pairs in the place of bootstrapped ones that fell short; the
            next-best ones, and from the best on again once D is used up.
        bootstrapped: the bootstrapped pairs.
        flipped: ids of offline pairs whose chosen and rejected answers change places.
    """

    kept: tuple[str, ...]
    filled: tuple[str, ...]
    bootstrapped: tuple[BootstrappedPair, ...]
    flipped: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        return len(self.kept) + len(self.filled) + len(self.bootstrapped)


def compose(
    ranked_ids: Sequence[str],
    kept: int,
    bootstrapped: int,
    pairs: Sequence[BootstrappedPair],
    flipped: Collection[str] = (),
) -> Composition:
    """Compose a round of exactly ``kept + bootstrapped`` pairs.

    Args:
        ranked_ids: the offline ids that can be trained on, best first; at least one.
        kept: K.
        bootstrapped: planned bootstrapped pairs.
        pairs: the bootstrapped pairs at hand, best first.
        flipped: offline ids whose answers change places.
    """
    taken, best = tuple(pairs[:bootstrapped]), tuple(ranked_ids[:kept])
    short = kept + bootstrapped - len(taken) - len(best)
    filled = tuple(ranked_ids[(len(best) + i) % len(ranked_ids)] for i in range(short))
    return Composition(best, filled, taken, frozenset(flipped) & {*best, *filled})


@dataclass(frozen=True)
class RoundRow:
    """One row of a round: an offline pair by id, or a bootstrapped pair with its tokens.

    An offline pair that is ``flipped`` is trained on with its answers in each other's place. Of a
    bootstrapped pair it is known who wrote the answers, as ``Source``.
    """

    key: str
    example_id: str
    chosen_ids: tuple[int, ...] | None = None
    rejected_ids: tuple[int, ...] | None = None
    ref_chosen_logp: float | None = None
    ref_rejected_logp: float | None = None
    flipped: bool = False
    chosen_source: str | None = None
    rejected_source: str | None = None


def offline_example(key: str) -> str | None:
    """The offline pair that a row's key stands for, or None for a bootstrapped pair."""
    example_id, kind, *_ = key.split("/")
    return example_id if kind == "offline" else None


def rows_of(
    composition: Composition, seed: int, round_number: int, *, previous_reference: bool
) -> list[RoundRow]:
    """The round's rows in training order, which (seed, round, row key) alone determine.

    Args:
        composition: what the round trains on.
        seed: the run's seed.
        round_number: the round.
        previous_reference: whether πref of this round is the policy that the review scored.
    """
    flipped = composition.flipped
    rows = [RoundRow(f"{i}/offline", i, flipped=i in flipped) for i in composition.kept]
    repeats: dict[str, int] = dict.fromkeys(composition.kept, 1)
    for example_id in composition.filled:
        repeats[example_id] = repeats.get(example_id, 0) + 1
        key = f"{example_id}/offline/{repeats[example_id]}"
        rows.append(RoundRow(key, example_id, flipped=example_id in flipped))
    for pair in composition.bootstrapped:
        logps = [
            side.policy_logp if previous_reference else side.reference_logp
            for side in (pair.chosen, pair.rejected)
        ]
        rows.append(
            RoundRow(
                f"{pair.example_id}/policy",
                pair.example_id,
                pair.chosen.token_ids,
                pair.rejected.token_ids,
                ref_chosen_logp=logps[0],
                ref_rejected_logp=logps[1],
                chosen_source=pair.chosen.source.value,
                rejected_source=pair.rejected.source.value,
            )
        )
    order = permutation([row.key for row in rows], seed, round_number, "order")
    return [rows[i] for i in order]


def full_round(
    ids: Sequence[str], seed: int, round_number: int, bad: Collection[str] = ()
) -> list[RoundRow]:
    """The rows of a round on all of D, in training order.

    Args:
        ids: all offline ids.
        seed: the run's seed.
        round_number: the round.
        bad: ids that can't be trained on; other pairs come twice in their place.
    """
    good = tuple(example_id for example_id in ids if example_id not in bad)
    order = permutation([f"{i}/offline" for i in good], seed, round_number, "order")
    again = [good[order[i % len(good)]] for i in range(len(ids) - len(good))]
    rows = [RoundRow(f"{good[i]}/offline", good[i]) for i in order]
    return rows + [RoundRow(f"{i}/offline/again-{n}", i) for n, i in enumerate(again)]


class RoundDataset:
    """A round as a map-style dataset: offline rows are read from D, nothing is copied.

    Args:
        rows: the round in training order.
        pairs: D, tokenized.
        position: example id to row of D.
        reference: log-probs of D under this round's πref, by id.
    """

    def __init__(
        self,
        rows: Sequence[RoundRow],
        pairs: Dataset,
        position: Mapping[str, int],
        reference: PairLogps,
    ) -> None:
        self.rows = rows
        self.pairs = pairs
        self.position = position
        needed = list(dict.fromkeys(row.example_id for row in rows))
        aligned = reference.aligned(needed)
        self.reference = {
            example_id: (float(aligned.chosen[i]), float(aligned.rejected[i]))
            for i, example_id in enumerate(needed)
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        pair = self.pairs[self.position[row.example_id]]
        sides = [
            (pair[column], logp)
            for column, logp in zip(
                ("chosen_ids", "rejected_ids"), self.reference[row.example_id], strict=True
            )
        ]
        (chosen, chosen_logp), (rejected, rejected_logp) = sides[::-1] if row.flipped else sides
        example = {
            ROW_KEY: row.key,
            "prompt_ids": pair["prompt_ids"],
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "ref_chosen_logps": chosen_logp,
            "ref_rejected_logps": rejected_logp,
        }
        if row.chosen_ids is not None and row.rejected_ids is not None:
            example["chosen_ids"] = list(row.chosen_ids)
            example["rejected_ids"] = list(row.rejected_ids)
            example["ref_chosen_logps"] = row.ref_chosen_logp
            example["ref_rejected_logps"] = row.ref_rejected_logp
        return example
