"""The runs that are compared, as Axolotl configs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.assets import TEMPERATURE
from benchmarks.presets import Preset
from sera_plugin.config import SelectionConfig

HOST_GC = {"SERA_GC": "host"}
PRECOMPUTED = {"precompute_ref_log_probs": True}
EPOCHS = 3


@dataclass(frozen=True)
class Variant:
    """One of the compared runs.

    Attributes:
        name: short.
        title: for tables.
        sera: the ``sera:`` block, or None for plain DPO.
        environment: variables of the run's process.
        barred: whether it takes part in a ratio that has a bar.
        keys: further keys of the config.
    """

    name: str
    title: str
    sera: dict[str, Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    barred: bool = True
    keys: dict[str, Any] = field(default_factory=dict)


def variants(preset: Preset) -> dict[str, Variant]:
    """All variants by name, in the order in which they run."""
    rescore = {"selection": {"keep": 0.7}, "bootstrap": {"fraction": 0.0}}
    nothing = {"selection": False, "bootstrap": False}
    free = {"selection": {"keep": 0.7, "source": "training"}, "bootstrap": {"fraction": 0.0}}
    full = {
        "bootstrap": {
            "temperature": TEMPERATURE,
            "num_candidates": preset.candidates,
            "max_new_tokens": preset.max_new_tokens,
        }
    }
    found = [
        Variant("plain", "plain DPO"),
        Variant("plain-reference", "plain DPO, precomputed reference", keys=PRECOMPUTED),
        Variant("through", "plain DPO through the plugin, as shipped", nothing),
        Variant(
            "through-host-gc",
            "plain DPO through the plugin, nothing frozen",
            nothing,
            HOST_GC,
            barred=False,
        ),
        Variant("select-host-gc", "selection, rescoring, host's collection", rescore, HOST_GC),
        Variant("free-host-gc", "selection, free margins, host's collection", free, HOST_GC),
        Variant("select", "selection, rescoring, as shipped", rescore, barred=False),
        Variant("free", "selection, free margins, as shipped", free, barred=False),
        Variant("full-host-gc", "full SeRA, host's collection", full, HOST_GC),
        Variant("full", "full SeRA, as shipped", full, barred=False),
    ]
    for name in ("select-host-gc", "free-host-gc", "full-host-gc"):
        one = next(variant for variant in found if variant.name == name)
        found.append(
            replace(
                one,
                name=name.replace("host-gc", "merged"),
                title=f"{one.title}, an update's micro-batches in one pass",
                sera={**(one.sera or {}), "training": {"merged": True}},
            )
        )
    if "source" not in SelectionConfig.model_fields:
        found = [variant for variant in found if not variant.name.startswith("free")]
    return {variant.name: variant for variant in found}


def write_config(
    folder: Path, assets: Path, data: str, preset: Preset, sera: dict[str, Any] | None, **more: Any
) -> Path:
    """Write ``config.yml`` into ``folder``; the run's output goes there as well.

    Args:
        folder: the run's own.
        assets: where ``assets.make`` wrote.
        data: name of the dataset's file there.
        preset: sizes.
        sera: the ``sera:`` block, or None.
        more: further keys.
    """
    keys: dict[str, Any] = {
        "base_model": str(assets / "model"),
        "plugins": ["benchmarks.watch.WatchPlugin"],
        "rl": "dpo",
        "rl_beta": 0.1,
        "datasets": [
            {
                "path": str(assets / data),
                "ds_type": "json",
                "split": "train",
                "type": "chat_template.default",
                "field_messages": "messages",
            }
        ],
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "sequence_len": preset.sequence_len,
        "micro_batch_size": preset.micro_batch,
        "gradient_accumulation_steps": preset.accumulation,
        "num_epochs": EPOCHS,
        "learning_rate": 1e-5,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "val_set_size": 0,
        "bf16": preset.bf16,
        "fp16": False,
        "tf32": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 7,
    }
    if sera is not None:
        keys["plugins"].append("sera_plugin.SeRAPlugin")
        keys |= {"trainer_cls": "sera_plugin.trainer.SeRATrainer", "sera": sera}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(keys | more), encoding="utf-8")
    return path
