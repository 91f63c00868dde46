"""Copies of a policy's trained weights, in host memory and on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sera_plugin.runtime.errors import StoreError, what_happened
from sera_plugin.runtime.files import explained, placing
from sera_plugin.runtime.weights import content_of

_CHECKSUM = "sha256"


@dataclass(frozen=True)
class Snapshot:
    """Copy in host memory of a model's trainable weights: an adapter, or a whole model.

    Attributes:
        weights: parameter name to tensor on the CPU, in the parameter's own dtype.
    """

    weights: Mapping[str, torch.Tensor]

    @classmethod
    def take(cls, model: torch.nn.Module) -> Snapshot:
        """Copy the weights that training changes."""
        return cls(
            {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
        )

    @contextmanager
    def swapped_in(self, model: torch.nn.Module) -> Iterator[None]:
        """The model with the snapshot's weights; its own are put back on leaving.

        Raises:
            KeyError: if the model has no parameter of a stored name.
        """
        parameters = dict(model.named_parameters())
        current = {name: parameters[name].detach().to("cpu", copy=True) for name in self.weights}
        try:
            self._write(parameters, self.weights)
            yield
        finally:
            self._write(parameters, current)

    def put_back(self, model: torch.nn.Module) -> None:
        """Give the model the snapshot's weights."""
        self._write(dict(model.named_parameters()), self.weights)

    @staticmethod
    @torch.no_grad()
    def _write(
        parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, torch.Tensor]
    ) -> None:
        for name, value in weights.items():
            parameters[name].copy_(value)

    def save(self, path: Path) -> None:
        """Write the weights as safetensors with a checksum in its metadata, whole or not at all.

        Raises:
            StoreError: if the file can't be written.
        """
        tensors = {name: tensor.contiguous() for name, tensor in self.weights.items()}
        with explained(path), placing(path) as temporary:
            try:
                save_file(tensors, temporary, metadata={_CHECKSUM: self._checksum()})
            except SafetensorError as error:  # what it makes of an OSError
                raise OSError(str(error)) from error

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Read weights that ``save`` wrote.

        Raises:
            StoreError: if the file is missing or is not what was written.
        """
        try:
            with safe_open(path, framework="pt") as file:
                stored = (file.metadata() or {}).get(_CHECKSUM)
                snapshot = cls({name: file.get_tensor(name) for name in file.offset_keys()})
            if snapshot._checksum() != stored:
                raise ValueError("its content doesn't match its checksum")
        except (OSError, ValueError, SafetensorError) as error:
            raise StoreError(
                f"can't resume: {path} {what_happened(error)}; restore it, or resume from an "
                "earlier checkpoint, from which it is made anew."
            ) from error
        return snapshot

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"{name}\0{tensor.dtype}{tuple(tensor.shape)}\0".encode())
            digest.update(content_of(tensor))
        return digest.hexdigest()
