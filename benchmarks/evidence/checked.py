"""Arms where a hundred labels were checked: ways to use them."""

from __future__ import annotations

from typing import Any

from benchmarks.evidence.arm import Arm
from benchmarks.evidence.signals import by_contrast

COUNT = 100


def _contrast(note: str, **keys: Any) -> Arm:
    return by_contrast("auto", note, "contrast-weight", COUNT, use="weight", **keys)


ARMS: dict[str, Arm] = {
    "checked-dpo": Arm(checked=COUNT, note="DPO on all pairs", tuned_as="dpo-new", fresh=True),
    "checked-contrast": _contrast("`preset: contrast` that trusts them", trusted="checked"),
    "checked-unsaid": _contrast("`preset: contrast` that isn't told"),
    "checked-alone-all": Arm(checked=COUNT, alone=True),
    "checked-alone-third": Arm(checked=COUNT, alone=True, longer=1 / 3),
    "checked-alone": Arm(
        checked=COUNT,
        alone=True,
        note="DPO on them alone, as many updates or a third as tuning says",
        among=("checked-alone-all", "checked-alone-third"),
        wide=True,
        fresh=True,
    ),
}
COMPARED = (
    ("checked-contrast", "checked-dpo"),
    ("checked-contrast", "checked-unsaid"),
    ("checked-contrast", "checked-alone"),
    ("checked-alone", "checked-dpo"),
    ("checked-dpo", "dpo-new"),
)
"""What is compared with what."""
