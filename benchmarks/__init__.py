"""Measurements that are not tests.

``evidence`` asks whether SeRA helps. The other modules measure what a run costs beside the plain
DPO run it replaces: ``python -m benchmarks``.

=============== ==================================================================
``__main__``    the command: parts, order, results
``presets``     sizes of models and data
``assets``      a model, a tokenizer and pairs, made on the spot
``variants``    the runs that are compared, as Axolotl configs
``runs``        `axolotl train` in a process of its own, and what it reports
``watch``       the Axolotl plugin that measures inside such a process
``naive``       scoring and generation as one writes them first
``passes``      the plugin's passes against the naive ones, on one model
``steps``       a training step in four ways: the host's, sorted, packed, shared
``growth``      time against the number of pairs and prompts
``hardware``    the machine in words, its matrix and memory rates, model FLOPs
``summary``     medians, spreads, slopes, and the bars
``refine_cost`` what refinement costs, a command of its own
``report``      JSON, tables, plots, and the results in docs/benchmarks.md
=============== ==================================================================
"""
