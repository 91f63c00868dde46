"""``Evidence``: what a rule of selection of one's own is given."""

from sera_plugin.review.rules import Evidence

__all__ = ["Evidence"]
