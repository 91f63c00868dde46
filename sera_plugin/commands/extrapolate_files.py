"""Weights in folders of safetensors: names and digests, one tensor at a time, written whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sera_plugin.data.checked import read_json
from sera_plugin.runtime.errors import RunError, first_line, what_happened
from sera_plugin.runtime.files import put_in_place, sealed, sync, unseal, write_synced

MANIFEST = "extrapolation.json"
MODEL, ADAPTER = "model", "adapter_model"
"""How the names of weight files begin."""
SHARD = 5 * 10**9
"""Bytes of a shard, which are held in memory until it is written."""
COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
    "chat_template*", "*.model", "*.tiktoken", "*.py", "*processor_config.json",
)  # fmt: skip
"""What lies beside a model's weights and belongs to it, apart from its configs."""


@dataclass(frozen=True)
class Weights:
    """The tensors in a folder, on disk.

    Attributes:
        folder: where they are.
        files: file of every tensor, by the tensor's name.
    """

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, stem: str) -> Weights:
        """Read the names in ``<stem>.safetensors`` or its shards.

        Raises:
            RunError: one sentence, if they are not there, not complete or damaged.
        """
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            return cls(folder, dict.fromkeys(_names(single), single.name))
        if not index.is_file():
            raise RunError(f"{folder} holds no {single.name}, whole or in shards.")
        files = dict(read_config(index).get("weight_map") or {})
        there = {(name, file) for file in set(files.values()) for name in _names(folder / file)}
        for name, file in files.items():
            if (name, file) not in there:
                raise RunError(f"{folder / file} lacks {name}, which {index.name} says it holds.")
        return cls(folder, files)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor that is mapped from its file: its bytes are read when they are used."""
        with _reading(self.folder / self.files[name]) as file:
            found: torch.Tensor = file.get_tensor(name)
            return found

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file."""
        return {name: digest_of(self.folder / name) for name in sorted(set(self.files.values()))}


def digest_of(path: Path) -> str:
    """SHA-256 of a file in hex.

    Raises:
        RunError: if it can't be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path} {what_happened(error)}.") from error


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} can't be read ({first_line(error)}).") from error


def _names(path: Path) -> list[str]:
    with _reading(path) as file:
        return list(file.keys())


def start_folder(base_model: str, revision: str | None) -> Path:
    """The folder of the model that a run started from; the hub's copy of it is fetched.

    Raises:
        RunError: one sentence, if it is neither here nor to be had.
    """
    if Path(base_model).is_dir():
        return Path(base_model)
    wanted = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    try:
        return Path(snapshot_download(base_model, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise RunError(
            f"base_model: {base_model} is no folder here and can't be had from the hub or its "
            f"cache ({first_line(error).rstrip('.')})."
        ) from error


def write_shards(
    folder: Path,
    stem: str,
    sizes: Mapping[str, int],
    make: Callable[[str], torch.Tensor],
    most: float,
) -> None:
    """Write weights; one shard is in memory at a time.

    Args:
        folder: where to.
        stem: how the files' names begin.
        sizes: bytes of every tensor, by name.
        make: makes a tensor.
        most: bytes of a shard; a larger tensor is a shard of its own.
    """
    split: Any = split_state_dict_into_shards_factory(
        dict(sizes),
        get_storage_size=lambda size: size,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=most,  # type: ignore[arg-type]  # only compared
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: make(name) for name in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def read_config(path: Path) -> dict[str, Any]:
    """The object in a model's or an adapter's config.

    Raises:
        RunError: one sentence.
    """
    return read_json(path, _object)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def copy_companions(source: Path, target: Path, *more: str) -> None:
    """Copy the tokenizer and the like, and files named in ``more`` that are there."""
    for pattern in (*COMPANIONS, *more):
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)


def written_before(target: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether ``target`` was written from the same inputs and is as it was written.

    Args:
        target: a folder that may be there.
        inputs: what its manifest must hold, among other things.

    Raises:
        RunError: one sentence, if something else is there.
    """
    if not os.path.lexists(target):
        return False
    way_out = "delete it, or name another folder with --out."
    try:
        manifest = unseal(target / MANIFEST)
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{target} is there and is none of our models; {way_out}") from error
    if {key: manifest.get(key) for key in inputs} != json.loads(json.dumps(inputs)):
        raise RunError(f"{target} is there and was made of other weights; {way_out}")
    if any(not (target / n).is_file() or digest_of(target / n) != s for n, s in files.items()):
        raise RunError(f"{target} is there and is not as it was written; {way_out}")
    return True


@contextmanager
def appearing(target: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write into, which is renamed to ``target`` once all of it is on disk.

    Args:
        target: where it appears; nothing is there yet.
        facts: what the manifest says, beside the checksums of the files.

    Raises:
        RunError: one sentence, if it can't be written.
    """
    building = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        yield building
        paths = sorted(building.iterdir())
        for path in paths:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sums = {path.name: digest_of(path) for path in paths}
        write_synced(building / MANIFEST, sealed({**facts, "files": sums}))
        sync(building)
        put_in_place(building, target)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise RunError(f"{target} can't be written ({why}).") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
