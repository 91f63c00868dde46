"""Finished parts of scoring and generation passes on disk, so that a restart need not repeat them.

A pass has a folder ``<work>/<label>-<key>``; the key is a hash of everything that determines what
the pass finds. A shard is one parquet file whose name holds the checksum of its bytes:
``shard-00001.<checksum>.parquet``. It appears whole, by a rename, and is used only if its bytes
still have that checksum and the key inside is the folder's. No torch here, and no collectives.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sera_plugin.runtime.errors import StoreError
from sera_plugin.runtime.files import write_whole
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.version import __version__

LOG = logger(__name__)

REFERENCE = "reference"
"""Label of the passes that belong to no round."""

_NAME = re.compile(r"shard-(\d{5,})\.([0-9a-f]{32})\.parquet")
_KEY = b"sera_pass"


def checksum(content: bytes) -> str:
    """32 hex digits of blake2b."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def round_label(number: int) -> str:
    """Label of the passes of a round; all folders that begin with it and ``-`` are the round's."""
    return f"round-{number:02d}"


@dataclass(frozen=True)
class Origin:
    """What a pass belongs to.

    Attributes:
        folder: where the run keeps the shards of all passes.
        label: ``round_label`` or ``REFERENCE``.
        model: identity of the model that scores or samples, a hash of its weights.
    """

    folder: Path
    label: str
    model: str


@dataclass(frozen=True)
class Shards:
    """The shards of one pass. Only the main process reads and writes them.

    Attributes:
        folder: the pass's own folder.
        key: hash of what determines the pass.
    """

    folder: Path
    key: str

    @classmethod
    def of(cls, origin: Origin, determined_by: Mapping[str, Any]) -> Shards:
        """The shards of the pass that ``origin`` and ``determined_by`` name.

        Args:
            origin: the pass's folder, label and model.
            determined_by: JSON values and sets; whatever changes what the pass finds, or how it
                is cut into batches. The plugin's version is added.
        """
        parts = [__version__, origin.label, origin.model, dict(determined_by)]
        text = json.dumps(parts, ensure_ascii=True, sort_keys=True, default=sorted)
        key = checksum(text.encode())
        return cls(origin.folder / f"{origin.label}-{key}", key)

    def read(self) -> list[pa.Table]:
        """All intact shards by number; a damaged one is named in a warning and deleted."""
        return [table for path in self._paths() if (table := self._read(path)) is not None]

    def write(self, table: pa.Table) -> Path:
        """Write the next shard: temporary file, fsync, rename.

        Raises:
            StoreError: if the folder or the file can't be written; its one sentence names the path.
        """
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_KEY: self.key.encode()}), buffer)
        content = buffer.getvalue()
        number = max((_number(path) for path in self._paths()), default=0) + 1
        path = self.folder / f"shard-{number:05d}.{checksum(content)}.parquet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            raise StoreError(
                f"can't write {path} ({error.strerror or error}); make room or make the folder "
                "writable and resume the run, which goes on from the shards that are finished."
            ) from error
        return path

    def _paths(self) -> list[Path]:
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            LOG.warning("Can't read %s (%s); its shards are computed again.", self.folder, error)
            return []
        return [self.folder / name for name in names if _NAME.fullmatch(name)]

    def _read(self, path: Path) -> pa.Table | None:
        try:
            content = path.read_bytes()
            if checksum(content) != path.name.split(".")[1]:
                raise ValueError("its content doesn't match its checksum")
            table = pq.read_table(io.BytesIO(content))
            if (table.schema.metadata or {}).get(_KEY) != self.key.encode():
                raise ValueError("it belongs to another pass")
        except (OSError, ValueError) as error:  # pyarrow's own errors are both
            LOG.warning("Shard %s can't be used: %s. It is computed again.", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        return table


def _number(path: Path) -> int:
    return int(path.name.split(".")[0].removeprefix("shard-"))
