"""The manifest of a round: checksums of its files, by which a resumed run knows them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sera_plugin.runtime.files import (
    StoreError,
    checksum,
    explained,
    sealed,
    unseal,
    what_happened,
    write_whole,
)

MANIFEST = "manifest.json"
"""Written last into a round's folder: the checksums of its other files."""


def manifest_of(number: int, sums: Mapping[str, str]) -> bytes:
    """The manifest of round ``number``, given the checksums of its files by name."""
    return sealed({"round": number, "files": dict(sums)})


def read_sums(folder: Path, number: int) -> dict[str, str]:
    """The checksums of the files in a round's folder by name.

    Raises:
        StoreError: if the manifest is missing, is not what was written, or is another round's.
    """
    path = folder / MANIFEST
    try:
        manifest = unseal(path)
        if manifest["round"] != number:
            raise ValueError(f"it belongs to round {manifest['round']}")
        return dict(manifest["files"])
    except (OSError, ValueError) as error:
        raise _unusable(path, error, number) from error


def add_file(folder: Path, number: int, name: str, content: bytes) -> None:
    """Write a file into a round's folder, whole, and its checksum into the manifest.

    Raises:
        StoreError: if they can't be written, or the manifest that is there can't be read.
    """
    path = folder / name
    with explained(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    sums = read_sums(folder, number) if (folder / MANIFEST).exists() else {}
    with explained(folder / MANIFEST):
        write_whole(folder / MANIFEST, manifest_of(number, {**sums, name: checksum(content)}))


def read_intact(path: Path, sums: Mapping[str, str], number: int) -> bytes:
    """A file of round ``number``.

    Raises:
        StoreError: if it is missing or is not what was written.
    """
    try:
        return read_checked(path, sums)
    except (OSError, ValueError) as error:
        raise _unusable(path, error, number) from error


def read_checked(path: Path, sums: Mapping[str, str]) -> bytes:
    """A file of a round.

    Raises:
        OSError: if it can't be read.
        ValueError: if it is not what was written.
    """
    content = path.read_bytes()
    if checksum(content) != sums.get(path.name):
        raise ValueError(f"its content doesn't match {MANIFEST}")
    return content


def _unusable(path: Path, error: Exception, number: int) -> StoreError:
    way_out = "start anew without resume_from_checkpoint"
    if number > 1:
        way_out = (
            f"resume from a checkpoint of round {number - 1}, from which round {number} is made "
            "anew"
        )
    return StoreError(f"can't resume: {path} {what_happened(error)}; restore it, or {way_out}.")
