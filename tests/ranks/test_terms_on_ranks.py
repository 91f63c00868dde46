"""What terms of the loss agree on between two real processes."""

from pathlib import Path

import pytest
from command_line import RunCli

WORK = """
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from sera_plugin.training.objective import Step, base_of
from sera_plugin.training.terms.posterior import Posterior, PosteriorConfig

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
parts = SimpleNamespace(host=SimpleNamespace(accelerator=accelerator))
settings = PosteriorConfig(source="on_the_fly", use="flip", reliability=0.8, momentum=0.5)
term = Posterior(settings, parts)
margins = torch.tensor([1.0, -2.0, 0.5])
mine = margins[:1] if accelerator.is_main_process else margins[1:]
policy = torch.stack([mine, 0 * mine], dim=1)
tokens = torch.ones(len(mine), 2)
step = Step.of("abc"[: len(mine)], policy, 0 * policy, tokens, 1.0, base_of("sigmoid"))
term(step, None)
odds = torch.sigmoid(margins) / torch.sigmoid(-margins) * 0.8 / 0.2
expected = 0.5 * 0.8 + 0.5 * float((odds / (1 + odds)).mean())
assert abs(term.reliability - expected) < 1e-6, (term.reliability, expected)
accelerator.wait_for_everyone()
accelerator.end_training()
"""


@pytest.mark.cli
def test_the_share_of_right_labels_is_that_of_all_ranks(run_ranks: RunCli, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORK)
    env = {"ACCELERATE_USE_CPU": "true"}
    run_ranks("--standalone", "--nproc_per_node", "2", script, env=env, timeout=200)
