"""What a term of the loss is, and the chain of them. Collectives: those of the terms.

A term of one's own is a subclass of ``Term``, or a function ``(step, **settings) -> Step``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import ConfigDict

from sera_plugin.config import LossTerm, SeraConfig
from sera_plugin.config.fields import Block
from sera_plugin.config.parsing import validated
from sera_plugin.config.parts import TERMS
from sera_plugin.data.rounds import RoundDataset
from sera_plugin.data.tables import ReviewTable
from sera_plugin.runtime.errors import SeraConfigError, TermError, in_short
from sera_plugin.training.objective import BASES, Base, Step

if TYPE_CHECKING:
    from sera_plugin.data.pairs import OfflinePairs
    from sera_plugin.data.store import RunStore
    from sera_plugin.host.facts import HostRun
    from sera_plugin.scoring.policies import Policies
    from sera_plugin.scoring.scorer import Scorer


@dataclass(frozen=True)
class TermParts:
    """What a term may be made from.

    Attributes:
        config: the ``sera:`` block.
        host: what the host says about the run.
        pairs: D.
        scorer: scores completions.
        policies: the models.
        store: where the run's artifacts lie.
        base: the base of the loss.
    """

    config: SeraConfig
    host: HostRun
    pairs: OfflinePairs
    scorer: Scorer
    policies: Policies
    store: RunStore
    base: Base


@dataclass(frozen=True)
class Opening:
    """A round as it begins.

    Attributes:
        number: the round.
        dataset: its pairs.
        table: the review that composed it; None in the warm-up.
        resumed: whether updates of the round are done already.
    """

    number: int
    dataset: RoundDataset
    table: ReviewTable | None
    resumed: bool


class Term:
    """A change to the loss. Every rank makes it and calls its methods alike.

    Attributes:
        Settings: its keys in the YAML.
        bases: names of the bases that it is defined for.
        paper: where it comes from, for the model card.
        tokens: tokens that its own passes take for every pair of D.
        reads_logits: whether it may look at ``Step.logits``, which steps without padding lack.
        mixes_pairs: whether it matters to it which pairs share a micro-batch.
    """

    Settings: ClassVar[type[Block]] = Block
    bases: ClassVar[tuple[str, ...]] = BASES
    paper: ClassVar[str] = ""
    reads_logits: ClassVar[bool] = True
    tokens: int = 0
    mixes_pairs: bool = True

    def __init__(self, settings: Any, parts: TermParts) -> None:
        self.settings, self.parts = settings, parts

    @classmethod
    def check(cls, settings: Any, config: SeraConfig, cfg: Any) -> None:
        """Check the settings beside the ``sera:`` block and the host's config, before all loading.

        Raises:
            SeraConfigError: one sentence.
        """

    @classmethod
    def check_data(
        cls, settings: Any, config: SeraConfig, cfg: Any, dataset: Any, tokenizer: Any
    ) -> None:
        """Check the loaded pairs, before a model is loaded.

        Raises:
            SeraConfigError: one sentence.
        """

    def identity(self) -> Mapping[str, Any]:
        """What determines the term beside its settings, as JSON; a resumed run must have it too."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """What the updates so far have changed in the term, as JSON, alike on every rank.

        A checkpoint keeps it.
        """
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave when the checkpoint was made that is resumed."""

    def open_round(self, opening: Opening) -> None:
        """Called before the first update of a round, or of what is left of it."""

    def prepare(self, keys: Sequence[str]) -> Any:
        """Called before the forward pass of a micro-batch; what it returns comes back with it."""

    def __call__(self, step: Step, prepared: Any) -> Step:
        """The changed step."""
        raise NotImplementedError

    def close_round(self) -> dict[str, float]:
        """Numbers about the updates since the round was opened."""
        return {}


def function_term(path: str, function: Callable[..., Any]) -> type[Term]:
    """The term that a function ``(step, **settings) -> Step`` of the user's is.

    Args:
        path: how the YAML names it.
        function: the function.
    """

    class OwnSettings(Block):
        model_config = ConfigDict(extra="allow", frozen=True)

    class Own(Term):
        Settings = OwnSettings

        @classmethod
        def check(cls, settings: Any, config: SeraConfig, cfg: Any) -> None:
            try:
                inspect.signature(function).bind(None, **settings.model_dump())
            except TypeError as error:
                raise SeraConfigError(
                    f"sera.loss: {path} can't be called with a step and its settings "
                    f"({in_short(error)}); write its keyword arguments as its settings."
                ) from error

        def __call__(self, step: Step, prepared: Any) -> Step:
            try:
                found = function(step, **self.settings.model_dump())
            except Exception as error:
                raise TermError(
                    f"sera.loss: {path} raised {type(error).__name__}: {error}."
                ) from error
            return checked(path, step, found)

    return Own


def checked(path: str, before: Step, found: Any) -> Step:
    """What a term of the user's returned, if a loss can be made of it.

    Raises:
        TermError: one sentence that names ``path``.
    """
    if not isinstance(found, Step):
        raise TermError(
            f"sera.loss: {path} returned {type(found).__name__}; it must return a Step."
        )
    for name in ("policy", "reference", "tokens", "shift", "weight", "flip", "extra"):
        was, now = getattr(before, name), getattr(found, name)
        if not isinstance(now, torch.Tensor) or now.shape != was.shape:
            shape = tuple(now.shape) if isinstance(now, torch.Tensor) else type(now).__name__
            raise TermError(
                f"sera.loss: {path} returned a {name} of {shape}; it must have the shape "
                f"{tuple(was.shape)}."
            )
        if not bool(torch.isfinite(now).all()):
            raise TermError(f"sera.loss: {path} returned a {name} that is not a finite number.")
    return found


def term_class(name: str) -> type[Term]:
    """The term that a name or ``package.module:name`` stands for.

    Raises:
        SeraConfigError: one sentence, if it can't be imported.
    """
    found = TERMS.load(name)
    if isinstance(found, type) and issubclass(found, Term):
        return found
    return function_term(name, found)


def settings_of(term: LossTerm) -> Any:
    """A term's settings, as its class reads them.

    Raises:
        SeraConfigError: one sentence that names the key, the value and what is allowed.
    """
    if not isinstance(term.settings, Mapping):
        return term.settings
    return validated(term_class(term.name).Settings, term.settings, ("loss", term.name))


def described(terms: Sequence[LossTerm]) -> list[dict[str, Any]]:
    """Name, settings with their defaults, and paper of every term, as JSON."""
    return [
        {
            "name": term.name,
            "settings": settings_of(term).model_dump(),
            "paper": term_class(term.name).paper or None,
        }
        for term in terms
    ]


@dataclass(frozen=True)
class Objective:
    """The loss of a run with terms.

    Attributes:
        base: the base of the loss.
        beta: β.
        terms: in the order in which they change a step.
    """

    base: Base
    beta: float
    terms: tuple[Term, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the terms' own passes take for every pair of D."""
        return sum(term.tokens for term in self.terms)

    def identity(self) -> dict[str, Any]:
        """What determines the terms beside their settings."""
        return {k: v for term in self.terms for k, v in term.identity().items()}

    def open_round(self, opening: Opening) -> None:
        for term in self.terms:
            term.open_round(opening)

    def close_round(self) -> dict[str, float]:
        return {k: v for term in self.terms for k, v in term.close_round().items()}

    def prepare(self, keys: Sequence[str]) -> tuple[Any, ...]:
        return tuple(term.prepare(keys) for term in self.terms)

    def loss(
        self,
        keys: Sequence[str],
        prepared: tuple[Any, ...],
        policy: torch.Tensor,
        reference: torch.Tensor,
        tokens: torch.Tensor,
        logits: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The loss of a micro-batch, and numbers of its pairs for the log; see ``Step``."""
        step = Step.of(keys, policy, reference, tokens, self.beta, self.base, logits)
        for term, given in zip(self.terms, prepared, strict=True):
            step = term(step, given)
        return step.loss(), step.noted


def noting(step: Step, **numbers: torch.Tensor) -> Step:
    """The step with more numbers of its pairs for the log; ``__`` in a name stands for ``/``."""
    more = {name.replace("__", "/"): value.detach() for name, value in numbers.items()}
    return replace(step, noted={**step.noted, **more})


def objective_of(parts: TermParts) -> Objective:
    """The loss of a run whose block has terms.

    Raises:
        SeraConfigError: one sentence, if a term can't be made.
    """
    terms = (term_class(term.name)(settings_of(term), parts) for term in parts.config.terms)
    return Objective(parts.base, parts.host.beta, tuple(terms))
