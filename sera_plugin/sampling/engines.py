"""What an engine of sampling is, and the one that ``sera.bootstrap.engine`` names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from sera_plugin.config import SeraConfig
from sera_plugin.config.parts import ENGINES
from sera_plugin.runtime.errors import EngineError, SeraConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sera_plugin.data.candidates import Draws, Prompt
    from sera_plugin.sampling.settings import EngineParts, Sampling, Serving

UNUSED = "transformers"
"""The engine of a run that samples nothing: it needs neither a server nor memory."""


class Engine(Protocol):
    """Samples answers on this rank.

    One that knows how likely its answers are may be a ``MeasuringEngine``.

    The class is imported before Axolotl patches TRL, so its module must not import a trainer of
    TRL. It may have a static method ``check(cfg, config)``, given the host's config and the
    ``sera:`` block before a model is loaded; it raises ``SeraConfigError`` where it can't be used.

    Attributes:
        name: ``sera.bootstrap.engine``; stored answers of one engine don't serve another.
        pads: whether prompts of a batch are padded to the longest one.
        cuts: whether a batch that doesn't fit the memory may be sampled in halves.
        token_budget: most padded tokens of a batch; None takes the run's own.
    """

    @property
    def name(self) -> str: ...

    @property
    def pads(self) -> bool: ...

    @property
    def cuts(self) -> bool: ...

    @property
    def token_budget(self) -> int | None: ...

    @classmethod
    def start(cls, parts: EngineParts) -> Engine:
        """The engine of a run. Every rank calls this alike."""

    def serving(self, serving: Serving) -> AbstractContextManager[tuple[PreTrainedModel, bool]]:
        """The model that writes, ready for ``sample``, and whether ranks must take every decoding
        step together. Every rank enters and leaves it alike."""

    def sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: Sampling,
        draws: Draws,
        *,
        synced: bool,
    ) -> list[list[np.ndarray]]:
        """Token ids of ``num_candidates`` answers to each prompt, int32, the stop token included.

        What follows a stop token has no meaning. No answer is longer than its ``Sampling.room``.

        Args:
            model: the one that writes, in evaluation mode.
            prompts: each has room for at least one token.
            settings: how answers are sampled.
            draws: the numbers that sampling follows, unless the temperature is 0.
            synced: whether all ranks must take every decoding step together.
        """


Measured = tuple[np.ndarray, float | None]
"""An answer's token ids, and its log-prob in nats if it is known."""


class MeasuringEngine(Engine, Protocol):
    """An engine that finds log-probs while it samples."""

    def measured(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: Sampling,
        draws: Draws,
        *,
        synced: bool,
    ) -> list[list[Measured]]:
        """The answers of ``sample``, with log π(y|x) of the model, nats.

        That is of the logits before temperature and nucleus, and of the answer as
        ``settings.finish`` makes it, with ``Sampling.ending`` in the place of the stop token.
        """


def measuring(engine: Engine) -> MeasuringEngine | None:
    """The engine, if it finds log-probs while it samples.

    A class that has ``measured`` from another one, but a ``sample`` of its own, does not.
    """
    for owner in type(engine).__mro__:
        if "measured" in vars(owner):
            return cast("MeasuringEngine", engine)
        if "sample" in vars(owner):
            return None
    return None


def engine_class(value: str) -> type[Engine]:
    """The class that ``sera.bootstrap.engine`` names.

    Raises:
        SeraConfigError: one sentence, if it can't be imported, lacks anything of ``Engine``, or has
            the name of a built-in one.
    """
    found: type[Engine] = ENGINES.load(value)
    needed = [name for name in vars(Engine) if not name.startswith("_")]
    missing = [name for name in needed if not hasattr(found, name)]
    if missing:
        raise SeraConfigError(
            f"{ENGINES.key}: {value} has no {', '.join(missing)}; an engine is a class with "
            f"{', '.join(needed)}."
        )
    name = str(found.name)
    if name in ENGINES.names and name != value:
        raise SeraConfigError(
            f"{ENGINES.key}: {value} has the name of a built-in engine, {name}, whose stored "
            "answers it would be given; set the attribute name to another one."
        )
    return found


def check_engine(cfg: Any, config: SeraConfig) -> None:
    """Check what ``sera.bootstrap.engine`` needs, before a model is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    if config.bootstrap.fraction > 0:
        check = getattr(engine_class(config.bootstrap.engine), "check", None)
        if check is not None:
            check(cfg, config)


def engine_of(parts: EngineParts) -> Engine:
    """What samples the answers of a run. Every rank must call this alike.

    Raises:
        SeraConfigError: as ``engine_class``.
        VllmError: one sentence, if vLLM is named and can't be reached or started.
    """
    return engine_class(parts.config.engine if parts.config.fraction > 0 else UNUSED).start(parts)


def check_answers(
    engine: Engine,
    answers: Sequence[Sequence[np.ndarray]],
    prompts: Sequence[Prompt],
    settings: Sampling,
) -> None:
    """Check that ``Engine.sample`` returned as many answers as were asked for, none too long.

    Raises:
        EngineError: one sentence.
    """
    counts = [len(each) for each in answers]
    if counts != [settings.num_candidates] * len(prompts):
        raise EngineError(
            f"{ENGINES.key}: {engine.name} returned {sum(counts)} answers to {len(counts)} "
            f"prompts; it must return {settings.num_candidates} to each of {len(prompts)}."
        )
    for prompt, each in zip(prompts, answers, strict=True):
        room, longest = settings.room(len(prompt.token_ids)), max(map(len, each))
        if longest > room:
            raise EngineError(
                f"{ENGINES.key}: {engine.name} returned an answer of {longest} tokens where there "
                f"is room for {room}; it must not be longer than Sampling.room."
            )
