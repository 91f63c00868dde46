"""HTML pages that work from disk without a network: of a run, and of an audit. No torch here.

================ =================================================================
``page``         what a page holds, and its rendering with jinja2
``visible``      text made safe to look at: control characters, JSON inside HTML
``figures``      figures as plain plotly dictionaries
``run_figures``  the figures of a run
``pairs``        which pairs a page shows, within its size
``bootstrapped`` bootstrapped pairs with their candidates
``run_page``     a run as a page
================ =================================================================
"""

from __future__ import annotations
