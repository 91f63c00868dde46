"""The union of kept and bootstrapped pairs, as a dataset of exactly the planned size. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any

from sera_plugin.config.selection import Fill
from sera_plugin.data.candidates import BootstrappedPair
from sera_plugin.data.ids import in_place_of_another, permutation
from sera_plugin.data.margins import PairLogps

if TYPE_CHECKING:
    from datasets import Dataset

ROW_KEY = "sera_id"
"""Column of a round's dataset that names its rows."""


@dataclass(frozen=True)
class Composition:
    """What a reviewed round trains on.

    Attributes:
        kept: ids of the kept offline pairs, each once, best first.
        filled: what takes the places of kept and bootstrapped pairs that fell short: ids of
            offline pairs, and bootstrapped pairs that come again.
        bootstrapped: the bootstrapped pairs, each once.
        flipped: ids of offline pairs whose chosen and rejected answers change places.
    """

    kept: tuple[str, ...]
    filled: tuple[str | BootstrappedPair, ...]
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
    doubted: Collection[str] = (),
    fill: Fill = "kept",
) -> Composition:
    """Compose a round of exactly ``kept + bootstrapped`` rows.

    A doubted pair fills only where all that the round holds is doubted.

    Args:
        ranked_ids: the offline ids that can be trained on, best first; at least one.
        kept: K.
        bootstrapped: planned bootstrapped pairs.
        pairs: the bootstrapped pairs at hand, best first.
        flipped: offline ids whose answers change places.
        doubted: offline ids whose margins, as they would be trained on, are negative.
        fill: what takes the places of pairs that fell short.
    """
    taken, best = tuple(pairs[:bootstrapped]), tuple(ranked_ids[:kept])
    trusted = [example_id for example_id in best if example_id not in doubted]
    more: list[str] = []
    if fill == "next_best":
        more = [example_id for example_id in ranked_ids[kept:] if example_id not in doubted]
    again = _alike(trusted, taken if fill == "kept_and_bootstrapped" else ())
    short = kept + bootstrapped - len(taken) - len(best)
    filled = tuple(islice(chain(more, cycle(again or taken or best)), short))
    return Composition(best, filled, taken, frozenset(flipped) & {*best, *more[:short]})


def _alike(
    kept: Sequence[str], bootstrapped: Sequence[BootstrappedPair]
) -> list[str | BootstrappedPair]:
    """Both merged, best first, so that every beginning holds the same share of either."""
    parts: tuple[Sequence[str | BootstrappedPair], ...] = (kept, bootstrapped)
    placed = [((i + 0.5) / len(part), item) for part in parts for i, item in enumerate(part)]
    return [item for _, item in sorted(placed, key=lambda entry: entry[0])]


@dataclass(frozen=True, slots=True)
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

    @property
    def filled(self) -> bool:
        """Whether the row takes the place of a pair that fell short or was set aside."""
        return in_place_of_another(self.key)


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

    def row(item: str | BootstrappedPair) -> RoundRow:
        if isinstance(item, str):
            return RoundRow(f"{item}/offline", item, flipped=item in composition.flipped)
        chosen, rejected = (
            side.policy_logp if previous_reference else side.reference_logp
            for side in (item.chosen, item.rejected)
        )
        return RoundRow(
            f"{item.example_id}/policy",
            item.example_id,
            item.chosen.token_ids,
            item.rejected.token_ids,
            ref_chosen_logp=chosen,
            ref_rejected_logp=rejected,
            chosen_source=item.chosen.source.value,
            rejected_source=item.rejected.source.value,
        )

    rows = [*map(row, composition.kept), *map(row, composition.bootstrapped)]
    times = Counter(once.key for once in rows)
    for filler in map(row, composition.filled):
        times[filler.key] += 1
        rows.append(replace(filler, key=f"{filler.key}/{times[filler.key]}"))
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
        bad: ids that can't be trained on; other pairs come twice in their places.
    """
    good = tuple(example_id for example_id in ids if example_id not in bad)
    order = permutation([f"{i}/offline" for i in good], seed, round_number, "order")
    again = [good[i] for i in islice(cycle(order), len(ids) - len(good))]
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
