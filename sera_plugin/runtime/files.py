"""Files that appear whole or not at all, and checksums that show what happened to them later.

All that the plugin writes is written here, so that no link, pipe or device is written through:
under a name that nobody can guess, opened only if nothing stands there, and then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sera_plugin.runtime.errors import StoreError, what_happened

SEAL = "sha256"
"""Key of a sealed JSON file that holds the checksum of the rest."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating system's error while writing ``path`` into a sentence.

    Raises:
        StoreError: in place of an ``OSError``, which is its cause.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} can't be written ({error.strerror or error}); make room or set another "
            "output_dir, then resume from the last checkpoint."
        ) from error


def checksum(content: bytes) -> str:
    """SHA-256 in hex, as ``sha256sum`` prints it."""
    return hashlib.sha256(content).hexdigest()


def check_replaceable(path: Path) -> None:
    """Find out whether ``path`` is free or a regular file; nothing is opened, no link followed.

    Raises:
        OSError: if something else stands there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no file"
        raise FileExistsError(errno.EEXIST, f"it is {kind}", str(path))


def beside(path: Path) -> Path:
    """A free name in the folder of ``path`` that nobody can guess."""
    known = os.fsdecode(os.fsencode(path.name)[:100])
    return path.with_name(f".{known}.{secrets.token_hex(8)}.tmp")


def created(path: Path) -> IO[bytes]:
    """A new file, open for writing.

    Raises:
        OSError: if that fails, or if anything stands there, a link included.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on disk.

    Raises:
        OSError: as ``created``.
    """
    with created(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """A name under which the block makes a file, which then appears at ``path`` whole, on disk.

    Raises:
        OSError: if that fails, or if something that is no regular file stands at ``path``; an
            earlier file is still there.
    """
    check_replaceable(path)
    temporary = beside(path)
    try:
        yield temporary
        sync(temporary)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which then appears at ``path`` whole, on disk.

    Raises:
        OSError: as ``placing``.
    """
    with placing(path) as temporary, created(temporary) as file:
        yield file


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole: a file beside it, fsync, rename, fsync of the folder.

    Raises:
        OSError: as ``placing``.
    """
    with replacing(path) as file:
        file.write(content)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file or folder that is on disk, and wait until the new name is on disk too."""
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Make a file and delete it again, in ``folder`` or where it would be made; no folder is made.

    Raises:
        OSError: if that fails, or if there is a file where a folder is needed.
        ValueError: if no path can be written so.
    """
    if "\0" in str(folder):
        raise ValueError("embedded null byte")
    nearest = folder.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a folder")
    with tempfile.TemporaryFile(dir=nearest) as file:
        file.write(b"\0")
        file.flush()


def sealed(values: Mapping[str, Any]) -> bytes:
    """JSON that ends with the checksum of the rest."""
    return json.dumps({**values, SEAL: _seal(values)}, indent=2).encode()


def unseal(path: Path) -> dict[str, Any]:
    """What was given to ``sealed``.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not what was written.
    """
    try:
        values = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(error) from None
    if not isinstance(values, dict) or values.pop(SEAL, None) != _seal(values):
        raise ValueError("its content doesn't match its checksum")
    return values


def _seal(values: Mapping[str, Any]) -> str:
    return checksum(json.dumps(values).encode())


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
