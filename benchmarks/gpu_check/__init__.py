"""What the tests on a CPU can't show, in one command: ``python -m benchmarks.gpu_check``.

``plain`` needs torch, transformers and peft, ``runs`` needs Axolotl too; ``found`` is what a check
says. Each check has a process of its own, so that one that fails takes nothing with it.
"""
