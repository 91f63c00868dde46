"""What a run started from and what it left: folders, and which tensor belongs to which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sera_plugin.commands.extrapolate_files import (
    ADAPTER,
    MODEL,
    Weights,
    digest_of,
    read_config,
    start_folder,
)
from sera_plugin.commands.extrapolate_weights import base_name, check_adapter, is_low_rank
from sera_plugin.commands.plan import read_yaml
from sera_plugin.data.reader import RunFiles
from sera_plugin.runtime.errors import RunError, SeraConfigError, first_line
from sera_plugin.runtime.logs import logger

LOG = logger(__name__)

MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"


@dataclass(frozen=True)
class TrainedRun:
    """A run that has left a model.

    Attributes:
        folder: its ``output_dir``.
        base_model: what it started from.
        revision: of ``base_model`` on the hub.
        config: its YAML, or None if that is not to be found.
        settings: its ``run.json``; empty for a run without SeRA.
    """

    folder: Path
    base_model: str
    revision: str | None
    config: Path | None
    settings: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> TrainedRun:
        """The run whose ``output_dir`` or YAML this is. What ``run.json`` says goes first.

        Raises:
            RunError: one sentence.
            SeraConfigError: one sentence.
        """
        config, raw, folder, settings = None, {}, path, {}
        if path.is_file():
            config, raw = path, read_yaml(path)
            folder = Path(str(raw.get("output_dir") or "model-out"))
        if config is None or (folder / "sera" / "run.json").is_file():
            run = RunFiles.open(folder)
            folder, settings = run.output_dir, dict(run.settings)
            if not run.finished:
                LOG.warning("%s: the run has not come to its end.", folder)
            stored = folder / str(settings.get("config"))
            if config is None and stored.is_file():
                config, raw = stored, read_yaml(stored)
        base = settings.get("base_model") or raw.get("base_model")
        if not base:
            raise SeraConfigError(f"{path} is not a config of Axolotl with a base_model.")
        if raw.get("merge_lora") and raw.get("lora_model_dir"):
            raise SeraConfigError(
                f"lora_model_dir: {raw['lora_model_dir']} with merge_lora: true can't be "
                "extrapolated, because the run did not start from base_model alone."
            )
        return cls(folder, str(base), raw.get("revision_of_model"), config, settings)


@dataclass(frozen=True)
class Sources:
    """The weights of a run's end and of its start.

    Attributes:
        end: what the run left.
        start: what it started from; None if nothing of that is needed.
        begun: for every tensor of ``end`` that is extrapolated, its name in ``start``.
        adapter: the adapter's config, or None for a whole model.
    """

    end: Weights
    start: Weights | None
    begun: dict[str, str]
    adapter: dict[str, Any] | None

    @classmethod
    def of(cls, run: TrainedRun) -> Sources:
        """Find them and check that they belong together.

        Raises:
            RunError: one sentence.
        """
        if not (run.folder / ADAPTER_CONFIG).is_file():
            end = _left_by(run, MODEL)
            start = _base_of(run)
            for whose in (start, end):
                _check_not_quantized(whose)
            begun = _counterparts(end, end.files, start)
            _check_nothing_lost(end, start, set(begun.values()))
            return cls(end, start, begun, None)
        end = _left_by(run, ADAPTER)
        adapter = read_config(run.folder / ADAPTER_CONFIG)
        check_adapter(adapter)
        # A LoRA changes the base model by B·A alone, so the base model itself is not needed.
        whole = [name for name in end.files if not is_low_rank(name)]
        if not whole:
            return cls(end, None, {}, adapter)
        start = _base_of(run)
        return cls(end, start, _counterparts(end, whole, start), adapter)

    @property
    def inputs(self) -> dict[str, Any]:
        """SHA-256 of all files that the result depends on."""
        config = MODEL_CONFIG if self.adapter is None else ADAPTER_CONFIG
        end = {config: digest_of(self.end.folder / config), **self.end.digests()}
        return {"end": end, "start": self.start.digests() if self.start else {}}


def _left_by(run: TrainedRun, stem: str) -> Weights:
    try:
        return Weights.of(run.folder, stem)
    except RunError as error:
        raise RunError(f"{run.folder} holds no trained model: {error}") from error


def _base_of(run: TrainedRun) -> Weights:
    folder = start_folder(run.base_model, run.revision)
    if folder.resolve() == run.folder.resolve():
        raise RunError(f"base_model: {run.base_model} is the run's own folder.")
    try:
        return Weights.of(folder, MODEL)
    except RunError as error:
        raise RunError(f"base_model: {run.base_model}: {error}") from error


def _check_not_quantized(weights: Weights) -> None:
    if read_config(weights.folder / MODEL_CONFIG).get("quantization_config"):
        raise RunError(
            f"{weights.folder}: its weights are quantized, so θ − θ_start can't be taken; only "
            "weights in floating point can be extrapolated."
        )


def _counterparts(end: Weights, names: Iterable[str], start: Weights) -> dict[str, str]:
    """For every name in ``end``, that of the same weight in ``start``, with the same shape."""
    wanted = {name: base_name(name) for name in names}
    missing = [name for name, base in wanted.items() if base not in start.files]
    # A tied head is stored once, under either name.
    tied = _tied(_skeleton(start)) if missing else {}
    for name in missing:
        wanted[name] = tied.get(wanted[name], "")
        if wanted[name] not in start.files:
            raise RunError(f"{name} of {end.folder} is not in base_model: {start.folder}.")
    for name, base in wanted.items():
        trained, begun = end.tensor(name), start.tensor(base)
        if trained.shape != begun.shape:
            raise RunError(
                f"{name} has the shape {tuple(trained.shape)} in {end.folder} and "
                f"{tuple(begun.shape)} in base_model: {start.folder}, so their difference can't "
                "be taken."
            )
        if trained.is_floating_point() != begun.is_floating_point():
            raise RunError(
                f"{name} is {begun.dtype} in base_model: {start.folder} and {trained.dtype} in "
                f"{end.folder}; only weights in floating point can be extrapolated."
            )
    return wanted


def _check_nothing_lost(end: Weights, start: Weights, used: set[str]) -> None:
    """The host drops tensors that a model has no use for, and a tied head; nothing else."""
    lost = [name for name in start.files if name not in used]
    if not lost:
        return
    model = _skeleton(end)
    needed = set(model.state_dict()) - _tied(model).keys()
    for name in lost:
        if name in needed:
            raise RunError(f"{name} of base_model: {start.folder} is not in {end.folder}.")


def _skeleton(weights: Weights) -> Any:
    """The model without its weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with init_empty_weights():
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(weights.folder))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{weights.folder}: its model can't be made ({first_line(error)}), and its tensors "
            "are not those of the other one."
        ) from error


def _tied(model: Any) -> dict[str, str]:
    """For every weight that is shared, the other name of it."""
    pairs = dict(model.all_tied_weights_keys)
    return pairs | {source: target for target, source in pairs.items()}
