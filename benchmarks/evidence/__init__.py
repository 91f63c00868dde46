"""A small world with a known gold reward, in which preference tuning can be judged.

=============== ==================================================================
module          contents
=============== ==================================================================
``world``       the language: prompts, a grammar for answers, the gold reward (NumPy)
``vocabulary``  words as tokens of a Hugging Face tokenizer
``policy``      the SFT model, sampling, exact KL
``pairs``       preference pairs: writers, label noise, a spurious word; JSONL files
``probe``       an Axolotl plugin that measures the policy while it trains
``runner``      one arm through Axolotl's own entry point, in a forked process
=============== ==================================================================
"""
