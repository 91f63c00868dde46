"""SeRA for Axolotl: preference tuning that reviews and renews its own data.

Ten places, each with the question that it answers; a room imports only from rooms below it:

============ =====================================================================
root         what Axolotl loads: ``plugin``, ``trainer``; ``rules`` for own rules
``commands`` what a person types: ``axolotl sera ...``
``training`` what a run is: its parts, checks, resuming, costs, the refined loss
``review``   what happens in a review: rules, selection, pairing, guard, judges
``sampling`` where completions come from: settings, batches, engines
``scoring``  how likely a completion is under policy and reference
``host``     every touch of a private API of Axolotl, TRL, transformers or vLLM
``data``     what is known: pairs, margins, rounds, the tables that a run leaves
``config``   what a user may write: the ``sera:`` block, errors as one sentence
``runtime``  what all stand on: files, ranks, passes, memory, progress, errors
============ =====================================================================

``docs/design.md`` walks a margin and a sampled completion through them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sera_plugin.runtime.errors import MissingPackageError, PluginNameError, SeraError
from sera_plugin.runtime.version import __version__

if TYPE_CHECKING:
    from sera_plugin.plugin import SeRAPlugin

__all__ = ["SeRAPlugin", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the plugin when it is asked for: commands that only read files start without it."""
    if name.lower() != "seraplugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "SeRAPlugin":
        raise _shown_alone(
            PluginNameError(f"plugins: sera_plugin.{name}; did you mean sera_plugin.SeRAPlugin?")
        )
    try:
        from sera_plugin.plugin import SeRAPlugin
    except ImportError as error:
        # Axolotl swallows an ImportError of a plugin and would silently train plain DPO.
        raise _shown_alone(
            MissingPackageError(
                f"sera_plugin can't start because {error.name or 'a dependency'} can't be imported "
                f"({error}); install its dependencies with `pip install sera_plugin` in the "
                "environment that runs axolotl."
            )
        ) from error
    return SeRAPlugin


def _shown_alone(error: SeraError) -> SeraError:
    """The error, which ends a run of Axolotl with its sentence."""
    with suppress(ImportError):
        from sera_plugin.runtime.endings import end_with_sentences

        end_with_sentences()
    return error
