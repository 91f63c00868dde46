"""A small world with a known gold reward, in which preference tuning can be judged.

=============== ==================================================================
module          contents
=============== ==================================================================
``world``       the language: prompts, a grammar for answers, the gold reward (NumPy)
``vocabulary``  words as tokens of a Hugging Face tokenizer
``policy``      the SFT model, sampling, exact KL
``pairs``       preference pairs: writers, label noise, a spurious word; JSONL files
``regimes``     the data of a comparison
``arm``         one way to train: its changes to the YAML, its grid
``arms``        all of them; ``terms`` those of the loss, ``signals`` those on new seeds
``plan``        which arms run where
``runs``        a run, the key of its result, stored results, tuning
``study``       models and data made once, runs executed
``runner``      one run through Axolotl's own entry point, in a forked process
``probe``       an Axolotl plugin that measures the policy while it trains
``artifacts``   gold accuracy of what SeRA kept and bootstrapped
``statistics``  paired differences with intervals, win rates, equal KL
``summary``     numbers per regime and arm
``bars``        what was to be reached
``comparisons`` pooled rows over regimes
``goals``       what the contrast was to reach
``gates``       what the gate of ``preset: contrast`` does, without training
``sections``    parts of the page over several regimes
``report``      tables and plots: ``docs/evidence.md``
=============== ==================================================================
"""
