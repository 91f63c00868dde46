"""Arms that ask something else than the policy's own memory which labels are right."""

from __future__ import annotations

from typing import Any

from benchmarks.evidence.arm import ASKS_FOR_QUALITY, GUARD, KEEP, SHIPPED, Arm, sera_block
from benchmarks.evidence.terms import REVIEWED, with_term

CONTRAST = {
    "prompts": [{"positive": "good\n", "placement": "system"}],
    "normalize": "none",
}
"""Log-probs with `good` in the place of the quality word minus those with `any`, as sums."""


def robust(smoothing: float) -> dict[str, Any]:
    """Keys of the host's robust loss."""
    return {"dpo_loss_type": ["robust"], "dpo_label_smoothing": smoothing}


def by_contrast(keep: Any, note: str, tuned_as: str = "", checked: int = 0, **keys: Any) -> Arm:
    """Pairs judged by the contrast from the first round on; ``keys`` of ``sera.selection``."""
    selection = {"by": "contrast", "source": "training", "contrast": CONTRAST, **keys}
    return Arm(
        sera_block(keep=keep, fraction=0.0, warmup_rounds=0, selection=selection),
        note=note,
        more=ASKS_FOR_QUALITY,
        fresh=True,
        near="dpo",
        tuned_as=tuned_as,
        checked=checked,
    )


def _fresh(note: str, **bootstrap: Any) -> Arm:
    """``preset: default`` with other keys of ``sera.bootstrap``."""
    guarded = {"ensemble": False, "guard": GUARD}
    block = sera_block(bootstrap=guarded | bootstrap)
    return Arm(block, tuned_as="sera", note=f"`preset: default`, {note}", fresh=True)


EIGHT = {"num_candidates": 8}


def _smoothed(share: float) -> Arm:
    """DPO with a share of wrong labels in its loss, which the host's `sigmoid` leaves out."""
    return with_term("benchmarks.evidence.smoothing:conservative", share=share)


AFTER_ONE = {"signals": ["contrast"], "contrast": CONTRAST}
BY_JUDGE = {"by": "external", "use": "drop", "source": "training"}
TURNED = {"by": "external", "use": "relabel", "source": "training"}
ARMS: dict[str, Arm] = {
    "dpo-new": Arm(note="DPO on all pairs", wide=True, fresh=True),
    "rdpo-0.3": Arm(more=robust(0.3)),
    "rdpo-0.1": Arm(more=robust(0.1)),
    "rdpo": Arm(note="robust DPO, ε tuned", among=("rdpo-0.3", "rdpo-0.1"), fresh=True, near="dpo"),
    "cdpo-0.3": _smoothed(0.3),
    "cdpo-0.1": _smoothed(0.1),
    "cdpo": Arm(
        note="conservative DPO, ε tuned", among=("cdpo-0.3", "cdpo-0.1"), fresh=True, near="dpo"
    ),
    "dpo-longer": Arm(note="DPO, a third more updates", longer=4 / 3, fresh=True, near="dpo"),
    "random-new": Arm(subset=KEEP, note="DPO on a random 70%", fresh=True, near="dpo"),
    "select-new": Arm(
        sera_block(fraction=0.0), tuned_as="select", note="selection only", fresh=True
    ),
    "sera-new": Arm(SHIPPED, tuned_as="sera", note="`preset: default`", fresh=True),
    "contrast": by_contrast(
        "auto",
        "`preset: contrast`: weights by the contrast from the first round on, gate",
        tuned_as="contrast-weight",
        use="weight",
    ),
    "contrast-untuned": by_contrast(
        "auto",
        "`preset: contrast` with the learning rate and β of `dpo-new`",
        tuned_as="dpo-new",
        use="weight",
    ),
    "contrast-weight": Arm(
        sera_block(
            keep=REVIEWED,
            fraction=0.0,
            selection=AFTER_ONE,
            loss=[{"posterior": {"signal": "contrast", "use": "weight"}}],
        ),
        note="weights by the contrast from the second round on, without a gate",
        more=ASKS_FOR_QUALITY,
        fresh=True,
        near="dpo",
    ),
    "sera-contrast": Arm(
        sera_block(
            keep="auto",
            warmup_rounds=0,
            selection={"by": "contrast", "source": "training", "contrast": CONTRAST}
            | {"use": "weight"},
            bootstrap={"judge": "contrast", "ensemble": False},
        ),
        note="`contrast` with bootstrapped pairs, fresh answers judged by the contrast",
        more=ASKS_FOR_QUALITY,
        fresh=True,
        tuned_as="contrast-weight",
    ),
    "contrast-drop": by_contrast(KEEP, "70% kept by the contrast", use="drop"),
    "contrast-relabel": by_contrast("auto", "labels turned by the contrast, gate", use="relabel"),
    "judge-drop": Arm(
        sera_block(fraction=0.0, warmup_rounds=0, selection=BY_JUDGE),
        note="70% kept by the scores of a judge with 20% errors",
        scored=True,
        fresh=True,
        near="dpo",
    ),
    "pool-policy": _fresh("fresh answers alone compete", pool="policy"),
    "rejected-worst": _fresh("8 candidates", **EIGHT),
    "rejected-worst-of": _fresh(
        "8 candidates, the worst of 5 drawn is rejected", rejected="worst_of", **EIGHT
    ),
    "rejected-reference": _fresh(
        "8 candidates, half of them the reference's, the worst of which is rejected",
        rejected="reference",
        sampler="mixed",
        **EIGHT,
    ),
    "judge-relabel": Arm(
        sera_block("auto", fraction=0.0, warmup_rounds=0, selection=TURNED),
        note="labels turned by the scores of the same judge, gate",
        scored=True,
        fresh=True,
        near="dpo",
    ),
    "oracle-new": Arm(
        clean=True, note="DPO on the same pairs without flipped labels", fresh=True, near="dpo"
    ),
}
