"""Every touch of what Axolotl, TRL, transformers, accelerate and vLLM don't promise.

Counted as not promised: names with a leading underscore; all of Axolotl, TRL and vLLM except what
a plugin is told to import; of transformers and accelerate what isn't exported at the top of the
package; and whatever a class of ours overrides. ``contract.py`` has a line for each.
"""
