"""Objects sent between three real processes, in pieces."""

from pathlib import Path

import pytest
from command_line import RunCli

from sera_plugin.runtime import ranks as objects

RANKS = 3
AT_ONCE = 300
WORK = f"""
from accelerate import PartialState
from torch.distributed import distributed_c10d
from sera_plugin.runtime import ranks as objects

state = PartialState(cpu=True)
assert state.num_processes == {RANKS}
sent = []
for name in ("all_gather", "broadcast"):
    def noting(*args, own=getattr(distributed_c10d, name), **named):
        tensors = args[0] if isinstance(args[0], list) else [args[0]]
        sent.append(sum(tensor.nbytes for tensor in tensors))
        return own(*args, **named)
    setattr(distributed_c10d, name, noting)
objects.AT_ONCE = {AT_ONCE}

rank = state.process_index
mine = [[], [(rank, "a" * 5000)], [(rank, None), (rank, [1.5])]][rank]
assert objects.gathered(mine) == [(1, "a" * 5000), (2, None), (2, [1.5])]
assert objects.gathered([]) == []
assert objects.gathered([rank]) == [0, 1, 2]
found = objects.shared(lambda: {{"from": rank, "much": list(range(3000))}})
assert found == {{"from": 0, "much": list(range(3000))}}
assert objects.shared(lambda: None) is None
# Beside the pieces themselves there is the frame that each is pickled in.
assert {AT_ONCE} // 2 < max(sent) < {AT_ONCE} + 200, sent
assert len(sent) > 50
state.wait_for_everyone()
state.destroy_process_group()
"""


@pytest.mark.cli
def test_three_ranks_exchange_objects_in_pieces(run_ranks: RunCli, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORK)
    env = {"ACCELERATE_USE_CPU": "true"}
    run_ranks("--standalone", "--nproc_per_node", str(RANKS), script, env=env, timeout=200)


def test_one_process_sends_nothing() -> None:
    found = [object()]
    assert objects.gathered(found) is found
    assert objects.shared(lambda: found) is found
