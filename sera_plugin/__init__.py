"""SeRA for Axolotl: preference tuning that reviews and renews its own data.

Data flows one way; read the modules in this order:

=================== ==============================================================
``config``         the ``sera:`` block as frozen pydantic models, errors as one sentence
``checks``         what the host's config and the dataset must look like
``method_checks``  what rule, judge and refinement need of it
``schedule``       sizes of rounds, optimizer updates, position of a global step
``identity``       example ids (content hashes) and seeds of every random choice
``offline``        the pairs D: ids, lengths, completions to score
``scores``         log-ratios, margins, ensemble with the previous review
``selection``      ranks, the top K, pairs with bad numbers
``external``       margins that the dataset carries
``rules``          rules of selection: a score for every offline pair
``choosing``       label repair, uncertainty and rule: the pairs a round keeps
``pairing``        candidates -> best against worst, length penalty, top pairs
``guard``          whether the reward may rank sampled answers: signals, decision
``endings``        how offline answers end, so that sampled ones end alike
``rounds``         union of kept and bootstrapped pairs as a dataset of exact size
``shards``         finished parts of passes on disk, with checksums, reused by a restart
``progress``       a bar on a terminal, log lines elsewhere
``objects``        Python objects sent between ranks, in pieces (collectives)
``dealing``        batches dealt to all ranks, a shard written per group (collectives)
``fingerprint``    identity of a model: a hash of its weights (torch, collectives)
``fitting``        batches that fit the memory
``completion_logps`` log-probs of answer tokens, found at the model's head
``finite``         whether the weights still are numbers (torch, collectives)
``scoring``        log-probs of completions under a model (torch, collectives)
``sampling``       settings of sampling, from config, tokenizer and data
``recording``      log-probs of D that training steps find on the way (collectives)
``rollouts``       prompts, sampled answers, and how those are stored
``transformers_engine`` answers by ``generate``, with one pass over each prompt
``paged_engine``   answers by continuous batching
``together``       what fails on one rank is raised on all (collectives)
``vllm_settings``  where vLLM is, from the host's blocks
``vllm_answers``   what vLLM is asked, and what counts as its answer
``vllm_weights``   the policy's weights as vLLM knows them, adapters merged
``vllm_probe``     whether vLLM has the policy's weights, by a few log-probs
``vllm_engine``    answers by vLLM, in a server or in this process (collectives)
``vllm_checks``    what ``engine: vllm`` needs of config and environment
``engines``        the engine that the config names
``generation``     candidates sampled from a model (torch, collectives)
``placement``      where a separate reference model is while nothing needs it
``judging``        the user's own judge of answers, dealt to all ranks
``reward_model``   a sequence classifier as such a judge
``auxiliary``      the auxiliary policy of LossDiff
``policies``       reference, and snapshots of earlier policies
``samples``        who wrote the sampled answers, and what they show
``bootstrapping``  sampling, scoring and pairing of fresh answers
``review``         one review: scoring -> selection -> bootstrap -> round
``refinement``     Δ of Sr-DPO and Sr-IPO and its place in the loss
``quality``        prompts with the quality prompt in them
``quality_pairs``  pairs, rounds and batches with such prompts
``refiner``        Δ at every step or once per round (torch, collectives)
``scaling``        what a run costs in tokens and memory, before it starts
``estimate``       that cost for the run at hand, logged before round 1
``files``          files that appear whole, checksums
``tables``         a reviewed round as files, and back
``evaluation``     evaluation pairs and their reference log-probs
``manifest``       checksums of a round's files
``store``          artifacts in ``<output_dir>/sera/``, atomic
``records``        the texts of D and the host's log, for reports and exports
``showcase``       a table of fresh pairs for Weights & Biases or Trackio
``artifacts``      fresh pairs as text, the record of a run
``changes``        what differs between a run and its resumption
``checkpoints``    what the host will resume from, checked before a model is loaded
``resuming``       starting a run or taking it up again (collectives)
``stopping``       SIGTERM: a checkpoint and an exit code
``logs``           loggers
``metrics``        what is logged and the table per round
``trainer``        the trainer that Axolotl builds
``recording_trainer`` the trainer's part that records log-probs
``host``           every touch of a private API of Axolotl, TRL or transformers
``preference_data`` loading the pairs through the host, errors as one sentence
``plugin``         registration with Axolotl
``cli``            ``axolotl sera ...``
``runfiles``       reading a run's artifacts, finished or not
``planning``       a run reckoned before it starts
``plan_host``      its data, model sizes and learning rates, without a GPU or weights
``audit``          ranks the labels of a dataset by a trained policy
``audit_models``   the policy and its reference, loaded through the host
``audit_results``  the ranked table, cuts, files
``terminal``       tables for the terminal
``export``         a round as a dataset with a card
``report``         HTML pages that work from disk: of a run, of an audit
=================== ==============================================================

The modules from ``schedule`` to ``rounds`` are pure: they know neither
torch.distributed nor Axolotl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sera_plugin.runtime.version import __version__

if TYPE_CHECKING:
    from sera_plugin.plugin import SeRAPlugin

__all__ = ["SeRAPlugin", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the plugin when it is asked for: commands that only read files start without it."""
    if name != "SeRAPlugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from sera_plugin.plugin import SeRAPlugin
    except ImportError as error:
        # Axolotl swallows an ImportError of a plugin and would silently train plain DPO.
        raise RuntimeError(
            f"sera_plugin can't start because {error.name or 'a dependency'} can't be imported "
            f"({error}); install its dependencies with `pip install sera_plugin` in the "
            "environment that runs axolotl."
        ) from error
    return SeRAPlugin
