"""A million pairs: ids, log-probs, margins, a selection and its file, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PAIRS = 1_000_000
SCRIPT = f"""
import hashlib, io, re, time
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
from sera_plugin.data.margins import PairLogps, ensemble, log_ratios, margins, rank
from sera_plugin.data.tables import ReviewTable

def peak():
    # Not ru_maxrss, which a process takes over from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before, n = peak(), {PAIRS}
ids = tuple(hashlib.blake2b(str(i).encode(), digest_size=12).hexdigest() for i in range(n))
position = {{example_id: row for row, example_id in enumerate(ids)}}
draw = np.random.default_rng(0)
reference, policy = (PairLogps(ids, draw.normal(size=n), draw.normal(size=n)) for _ in range(2))
start = time.process_time()
ratios = log_ratios(policy, reference)
margin = margins(ratios, np.ones(n), np.ones(n))
mixed = ensemble(margin, margin[::-1], 0.3)
kept = np.zeros(n, dtype=bool)
kept[rank(ids, mixed)[: 7 * n // 10]] = True
seconds = time.process_time() - start
assert mixed[kept].min() >= mixed[~kept].max() and kept.sum() == 7 * n // 10
flipped, round_of = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int32)
table = ReviewTable(ids, policy, ratios, margin, mixed, kept, mixed, flipped, round_of)
pq.write_table(table.to_arrow(), io.BytesIO())
print(peak() - before, seconds)
"""


@pytest.mark.cli
def test_a_million_pairs_take_hundreds_of_megabytes_and_seconds() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300
    )
    megabytes, seconds = map(float, done.stdout.splitlines()[-1].split())
    print(f"{megabytes:.0f} MB at the peak, {seconds:.1f} s of processor time")
    assert 150 < megabytes < 600
    assert seconds < 15
