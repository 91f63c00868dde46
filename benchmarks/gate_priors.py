"""``python -m benchmarks.gate_priors``: how often a gate opens, by the prior that it trusts.

Scores are simulated as ``review.calibration`` assumes them: of labels of which a share ε is wrong,
a signal of slope a agrees with a right one with probability σ(a·|s|), |s| half-normal with a root
mean square of 1. A gate opens where ε = 0 is outside the profile-likelihood interval of 95% over
all a.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, logit

from sera_plugin.review.calibration import DEVIATION, DROP, SLOPE

WORLDS = ((0.3, 0.0), (0.5, 0.0), (0.8, 0.0), (1.2, 0.0), (1.2, 0.2), (1.2, 0.4))
"""(a, ε)."""
DEVIATIONS = (DEVIATION, 0.6, 1.0, float("inf"))
"""Standard deviations of log a's prior; infinite for none."""
STARTS = ((SLOPE, 0.02), (SLOPE, 0.25), (SLOPE, 0.4), (0.5, 0.02), (2.5, 0.3))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_priors")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=12)
    args = parser.parse_args()
    print("| a | ε |", " | ".join(f"deviation {one:g}" for one in DEVIATIONS), "|")
    for slope, error in WORLDS:
        drawn = [simulated(args.pairs, slope, error, seed) for seed in range(args.seeds)]
        found = [sum(opens(scores, one) for scores in drawn) for one in DEVIATIONS]
        print(f"| {slope:g} | {error:g} |", " | ".join(map(str, found)), "|", flush=True)


def simulated(count: int, slope: float, error: float, seed: int) -> np.ndarray:
    """Scores above 0 where the signal speaks for the label, shape (count,)."""
    draw = np.random.default_rng(seed)
    size = np.abs(draw.normal(size=count))
    size /= np.sqrt(np.mean(size**2))
    right = draw.random(count) >= error
    agrees = draw.random(count) < expit(slope * size)
    return np.where(agrees == right, size, -size)


def opens(scores: np.ndarray, deviation: float) -> bool:
    """Whether 0 is outside the interval of ε."""

    def cost(log_slope: float, error: float) -> float:
        agrees = np.exp(log_slope) * scores
        right, wrong = np.log1p(-error), np.log(error)
        likelihood = np.logaddexp(right + log_expit(agrees), wrong + log_expit(-agrees)).sum()
        return float(((log_slope - np.log(SLOPE)) / deviation) ** 2 / 2 - likelihood)

    best = min(
        minimize(
            lambda at: cost(at[0], float(np.clip(expit(at[1]) / 2, 1e-12, 0.5))),
            (np.log(slope), logit(2 * error)),
            method="Nelder-Mead",
        ).fun
        for slope, error in STARTS
    )
    bounds = (np.log(0.02), np.log(12))
    clean = minimize_scalar(lambda at: cost(at, 1e-12), bounds=bounds, method="bounded").fun
    return bool(clean - best > DROP)


if __name__ == "__main__":
    main()
