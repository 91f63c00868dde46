"""Configs, pairs, token ids and models loaded through the host, its errors turned into sentences.

Imports the host where it is used: a trainer must not be imported before Axolotl has patched TRL,
and it does that after the datasets are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from datasets import Dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetsError
from jinja2 import TemplateError

from sera_plugin.runtime.errors import SeraConfigError, SeraError, first_line, in_short

if TYPE_CHECKING:
    from pydantic import ValidationError
    from transformers import PreTrainedTokenizerBase


QUANTIZED = {"load_in_4bit": 0.55, "load_in_8bit": 1.05}
"""Bytes per weight, with the scales of their blocks."""

FORMATS = {"zephyr": "<|system|>\n{system}</s>\n<|user|>\n{prompt}</s>\n<|assistant|>\n"}
"""What the host's types write without a chat template; zephyr's system message is empty."""


@contextmanager
def refused_by_host(what: str | Path) -> Iterator[None]:
    """Turn what the host raises over a config, its data or its model into a sentence.

    For commands, which read what may be no config of the host at all. It checks little itself, so
    its errors are of many kinds.

    Raises:
        SeraConfigError: one sentence.
    """
    try:
        yield
    except SeraError:
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError,
            ValueError, DatasetsError, TemplateError) as error:  # fmt: skip
        raise SeraConfigError(f"{what}: Axolotl can't use it ({in_short(error)}).") from error


def read_config(path: Path, **changes: Any) -> Any:
    """The validated config of a YAML on this machine, as ``axolotl train`` has it.

    Args:
        path: Axolotl's YAML.
        changes: keys in place of the YAML's.

    Raises:
        SeraConfigError: one sentence, if the host refuses it.
    """
    from axolotl.cli.config import load_cfg
    from pydantic import ValidationError

    try:
        return load_cfg(str(path), **changes)
    except ValidationError as error:
        raise _refused(path, error) from error


def config_on(processes: int, path: Path, raw: dict[str, Any]) -> Any:
    """What ``axolotl train`` makes of a config on ``processes`` recent GPUs, without any.

    ``planned_dtype_bytes`` is added: bytes per weight as loaded there.

    Args:
        processes: GPUs.
        path: Axolotl's YAML.
        raw: its keys.

    Raises:
        SeraConfigError: one sentence, if the host refuses it.
    """
    import torch
    from axolotl.cli.config import plugin_set_cfg, prepare_plugins
    from axolotl.utils.config import normalize_config, validate_config
    from axolotl.utils.dict import DictDefault
    from pydantic import ValidationError

    cfg = DictDefault(raw)
    cfg.axolotl_config_path = str(path)
    prepare_plugins(cfg)
    machine = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": processes}
    try:
        cfg = validate_config(
            cfg,
            capabilities=machine | {"compute_capability": "sm_90"},
            env_capabilities={"torch_version": torch.__version__.split("+")[0]},
        )
    except ValidationError as error:
        raise _refused(path, error) from error
    # Before the host looks at the GPU that is here.
    cfg.planned_dtype_bytes = _dtype_bytes(cfg)
    try:
        normalize_config(cfg)
    except (OSError, ValueError) as error:
        raise SeraConfigError(f"base_model: {cfg.base_model}: {first_line(error)}") from error
    cfg.batch_size = cfg.batch_size * processes
    cfg.world_size = processes
    plugin_set_cfg(cfg)
    return cfg


def _refused(path: Path, error: ValidationError) -> SeraConfigError:
    """What the host finds wrong with a config, as one sentence."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or "config"
    return SeraConfigError(f"{path}: {key}: {first['msg']}")


def _dtype_bytes(cfg: Any) -> float:
    """Bytes per weight as loaded, on a GPU that has bf16."""
    for key, size in QUANTIZED.items():
        if cfg.get(key):
            return size
    half = any(cfg.get(key) for key in ("bf16", "bfloat16", "fp16", "float16"))
    return 2 if half else 4


def load_preference_data(cfg: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """The datasets that Axolotl would load by itself (``TrainDatasetMeta``), and the tokenizer.

    Raises:
        SeraConfigError: one sentence, when a file can't be read or holds no rows, or the validation
            split takes all.
    """
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.loaders import load_tokenizer

    try:
        meta = load_preference_datasets(cfg=cfg)
    except (StopIteration, ValueError, OSError, DatasetGenerationError) as error:
        sentence = _sentence(cfg, error)
        if sentence is None:
            raise
        raise SeraConfigError(sentence) from error
    return meta, load_tokenizer(cfg)


def tokenized(dataset: Dataset, tokenizer: Any, max_length: int | None) -> Dataset:
    """Preference pairs with token ids, as the trainer of a run has them; needs no model.

    Raises:
        SeraConfigError: one sentence, if the host can't make them.
    """
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

    trainer = AxolotlDPOTrainer.__new__(AxolotlDPOTrainer)
    trainer._tokenizer = tokenizer
    args: Any = SimpleNamespace(
        max_length=max_length, truncation_mode="keep_start", dataset_num_proc=None
    )
    with refused_by_host("datasets"):
        return trainer._prepare_dataset(dataset, tokenizer, args, "train")


def load_model(cfg: Any, tokenizer: Any, path: str) -> Any:
    """A model as the host loads the reference of a run: without the config's adapter.

    Args:
        cfg: the host's validated config.
        tokenizer: the run's.
        path: a folder or a name on the hub, in the place of ``base_model``.
    """
    from axolotl.loaders import ModelLoader

    cfg = deepcopy(cfg)
    cfg.base_model = cfg.base_model_config = path
    cfg.lora_model_dir = None
    model, _ = ModelLoader(cfg, tokenizer, reference_model=True).load()
    return model


def linear_names(model: Any) -> list[str]:
    """Names of the modules that ``lora_target_linear: true`` means, as the host lists them."""
    from axolotl.loaders.adapter import find_all_linear_names

    return sorted(find_all_linear_names(model))


def chat_templates(cfg: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The templates that may have written the training prompts, the run's own first.

    A dataset entry may name a template of its own, or a ``type`` that writes as one does.
    """
    from axolotl.utils.chat_templates import extract_chat_template_args, get_chat_template

    found = [tokenizer.chat_template] if isinstance(tokenizer.chat_template, str) else []
    for entry in cfg.datasets or ():
        own = entry.get("type")
        kind = str(own or "").partition(".")[0]
        written = own.get("prompt_format") if isinstance(own, Mapping) else FORMATS.get(kind)
        if written:
            found.append(template_of_format(written))
        choice, jinja = extract_chat_template_args(cfg=cfg, ds_cfg=entry)
        if choice != "tokenizer_default" or found:
            found.append(get_chat_template(choice, jinja_template=jinja, tokenizer=tokenizer))
        if kind in ("chatml", "llama3"):
            found.append(get_chat_template(kind))
    return list(dict.fromkeys(found))


def template_of_format(written: str) -> str:
    """A chat template that writes as the ``prompt_format`` of a dataset's ``type`` does.

    Args:
        written: with ``{prompt}``, the first user message, and perhaps ``{system}``.
    """
    places = {
        "prompt": "{{ (messages | selectattr('role', 'equalto', 'user') | first).content }}",
        "system": "{{ messages[0].content if messages[0].role == 'system' else '' }}",
    }
    parts = []
    for text, place, _, _ in Formatter().parse(written):
        parts.append(f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}")
        parts.append(places.get(place or "", ""))
    return "".join(parts)


def _sentence(cfg: Any, error: Exception) -> str | None:
    """What went wrong, or None where the host's own words will do."""
    text = str(error)
    entries = [*(cfg.datasets or ()), *(cfg.test_datasets or ())]
    paths = ", ".join(str(entry.get("path")) for entry in entries)
    # `datasets` has no words of its own for a text file without rows.
    if isinstance(error, StopIteration) or "corresponds to no data" in text:
        return f"datasets: no rows in {paths}, or in one of them; sera needs 2 or more pairs."
    if "n_samples" in text:
        return (
            f"val_set_size: {cfg.val_set_size} leaves no pairs to train on; use a smaller share or "
            "number, or more pairs."
        )
    if isinstance(error, DatasetGenerationError):
        why = _one_line(error.__cause__ or error)
        hint = "; a lone surrogate is not text" if "surrogate" in why else ""
        return f"datasets: {paths}, or one of them, can't be read ({why}){hint}."
    from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH

    prepared = _unreadable(cfg.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH)
    if prepared is not None:
        return (
            f"dataset_prepared_path: {prepared} can't be read ({_one_line(error)}); delete it and "
            "the data is prepared again."
        )
    return None


def _unreadable(folder: Any) -> Path | None:
    """The first prepared dataset in ``folder`` that can't be read, if there is one."""
    for prepared in sorted(path for path in Path(str(folder)).glob("*") if path.is_dir()):
        try:
            load_from_disk(str(prepared))
        except (OSError, ValueError):
            return prepared
    return None


def _one_line(error: BaseException) -> str:
    """What an error says, as printable text of one line."""
    words = ascii(" ".join(str(error).split()))[1:-1].rstrip(".")
    return words if len(words) <= 200 else words[:197] + "..."
