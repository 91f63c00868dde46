"""HTML pages that work from disk without a network: of a run, and of an audit. No torch here.

================ =================================================================
``page``         what a page holds, and its rendering with jinja2
``visible``      text made safe to look at: control characters, JSON inside HTML
``figures``      figures as plain plotly dictionaries
``run_figures``  the figures of a run
``reviews``      the reviews as arrays, and what their rounds train on
``counts``       what every round did to the data, in numbers and in words
``signals``      the signals of a review with units and limits
``answers``      what a reader asks first, in a sentence each
``pairs``        which pairs a page shows, within its size
``bootstrapped`` bootstrapped pairs with their candidates
``run_page``     a run as a page
``audit_page``   an audit as a page
================ =================================================================
"""

from __future__ import annotations
