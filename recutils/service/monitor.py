"""Drift: are the requests still like those that the model was built for? Chapter 07."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


def psi(reference: np.ndarray, current: np.ndarray) -> float:
    """Population stability index of two histograms (n_bins,): sum of (q - p) log(q / p), half a count in every bin.

    Shares p of `reference` and q of `current`, which are counts. 0 for equal shares; symmetric but for the half
    counts. A habit from credit scoring calls 0.1 small and 0.25 large, whatever the number of bins and of counts;
    chance alone gives about (n_bins - 1) (1/n_reference + 1/n_current).
    """
    reference, current = np.asarray(reference, float), np.asarray(current, float)
    if reference.shape != current.shape or reference.ndim != 1 or (reference < 0).any() or (current < 0).any():
        got = f"{reference.shape} and {current.shape}"
        raise ValueError(f"Two histograms of counts over the same bins are wanted, not {got}.")
    p, q = ((h + 0.5) / (h + 0.5).sum() for h in (reference, current))
    return float(((q - p) * np.log(q / p)).sum())


def ks_from_counts(reference: np.ndarray, current: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two histograms over the same ordered bins (n_bins,), 0 to 1.

    The largest distance between the distribution functions at the bins' edges; `scipy.stats.ks_2samp` for samples.
    """
    p, q = (np.cumsum(h) / max(np.sum(h), 1) for h in (np.asarray(reference, float), np.asarray(current, float)))
    return float(np.abs(p - q).max())


def drift_limit(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    n: int,
    numeric: bool,
    quantile: float = 0.99,
    draws: int = 400,
    seed: int = 0,
) -> float:
    """The quantile of the drift that n counts show by chance: drift beyond it is seen once in a hundred samples.

    `pairs`: histograms of a reference and of a quiet period, each (n_sessions, n_bins), a row a shopper's visit. Each
    draw takes one pair and from its quiet period, with replacement, as many sessions as hold n counts: requests of one
    session are alike, so single requests would vary too little. Where both are the same array, the reference is
    drawn too.
    """
    rng, measure = np.random.default_rng(seed), ks_from_counts if numeric else psi
    found = []
    for draw in range(draws):
        reference, quiet = pairs[draw % len(pairs)]
        m = max(round(n * len(quiet) / max(quiet.sum(), 1)), 1)
        total = reference.sum(axis=0)
        if reference is quiet:
            total = rng.multinomial(len(quiet), np.full(len(quiet), 1 / len(quiet))) @ quiet
        found.append(measure(total, rng.multinomial(m, np.full(len(quiet), 1 / len(quiet))) @ quiet))
    return float(np.quantile(found, quantile))


@dataclass
class DriftMonitor:
    """Counts features of the requests that a service answers, to compare them with a reference.

    - `counts`: for each feature the reference, a histogram (n_bins,)
    - `edges`: for the features that are numbers, the bins' inner edges. Their drift is the Kolmogorov-Smirnov
      distance, that of the others the PSI
    - `sizes`: numbers of counts; below the first, nothing is said
    - `anonymous`: the reference is of requests without household and moment, and only such are to be counted
    - `limits`: for each feature and each of `sizes`, the drift beyond which there is an alert, see `drift_limit`

    Counts halve when they reach `window`, so that old days fade. See `build.reference_profile`.
    """

    counts: Mapping[str, np.ndarray]
    edges: Mapping[str, np.ndarray]
    sizes: Sequence[int]
    limits: Mapping[str, Sequence[float]]
    window: float = 20_000
    anonymous: bool = False
    seen: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = {name: np.zeros(len(h)) for name, h in self.counts.items()}

    def count(self, name: str, bins: Sequence[int] | np.ndarray) -> None:
        """Count values that are bin numbers already."""
        np.add.at(self.seen[name], bins, 1)
        while self.seen[name].sum() > self.window:
            self.seen[name] /= 2

    def count_values(self, name: str, values: float | Sequence[float] | np.ndarray) -> None:
        """Count one or more values of a feature that has `edges`."""
        self.count(name, np.searchsorted(self.edges[name], np.atleast_1d(values), side="right"))

    def drift(self) -> dict[str, float]:
        """How far each feature with enough counts is from the reference."""
        enough = {n: h for n, h in self.seen.items() if h.sum() >= self.sizes[0]}
        return {n: (ks_from_counts if n in self.edges else psi)(self.counts[n], h) for n, h in enough.items()}

    def alerts(self) -> dict[str, bool]:
        """For each feature: is its drift beyond the limit for as many counts?"""
        drift, beyond = self.drift(), dict.fromkeys(self.limits, False)
        for name, value in drift.items():
            n = np.log(self.seen[name].sum())
            beyond[name] = bool(value > np.interp(n, np.log(self.sizes), self.limits[name]))
        return beyond
