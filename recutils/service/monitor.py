"""Is what comes in still what we learned from? Measures of drift, and a monitor for a running service. Chapter 07."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def psi(usual: np.ndarray, now: np.ndarray) -> float:
    """Population stability index of two histograms (n_bins,): sum of (q - p) log(q / p), half a count in every bin.

    Shares p of `usual` and q of `now`, which are counts. 0 for equal shares; symmetric but for the half counts. A
    habit from credit scoring calls 0.1 small and 0.25 large, whatever the number of bins and of counts; chance alone
    gives about (n_bins - 1) (1/n_usual + 1/n_now).
    """
    usual, now = np.asarray(usual, float), np.asarray(now, float)
    if usual.shape != now.shape or usual.ndim != 1 or (usual < 0).any() or (now < 0).any():
        raise ValueError(f"Two histograms of counts over the same bins are wanted, not {usual.shape} and {now.shape}.")
    p, q = ((h + 0.5) / (h + 0.5).sum() for h in (usual, now))
    return float(((q - p) * np.log(q / p)).sum())


def ks(usual: np.ndarray, now: np.ndarray) -> float:
    """Kolmogorov-Smirnov: the largest distance between two samples' distribution functions, 0 to 1.

    `scipy.stats.ks_2samp` gives the same number and a p-value; with thousands of values a day every difference is
    significant, so the distance is what an alert should look at.
    """
    usual, now = np.sort(np.asarray(usual, float)), np.sort(np.asarray(now, float))
    if not len(usual) or not len(now):
        raise ValueError("Each sample needs a value.")
    at = np.concatenate([usual, now])
    below = [np.searchsorted(sample, at, side="right") / len(sample) for sample in (usual, now)]
    return float(np.abs(below[0] - below[1]).max())


def ks_of_counts(usual: np.ndarray, now: np.ndarray) -> float:
    """The same distance for two histograms over the same ordered bins (n_bins,)."""
    p, q = (np.cumsum(h) / max(np.sum(h), 1) for h in (np.asarray(usual, float), np.asarray(now, float)))
    return float(np.abs(p - q).max())


@dataclass
class Monitor:
    """What a service counts of its requests, to compare with what was usual when its model was fitted.

    `usual`: for each name a histogram (n_bins,); `edges`: for the names that are numbers, the bins' inner edges. Their
    drift is the Kolmogorov-Smirnov distance, that of the others the PSI. `limits`: for each name what quiet weeks
    reach; beyond it, and beyond what chance does with so few counts, drift is an alert. Counts halve when they reach
    `window`, so that old days fade.
    """

    usual: Mapping[str, np.ndarray]
    edges: Mapping[str, np.ndarray]
    limits: Mapping[str, float]
    window: float = 100_000
    seen: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seen = {name: np.zeros(len(h)) for name, h in self.usual.items()}

    def add(self, name: str, bins: Sequence[int] | np.ndarray) -> None:
        """Count values that are bin numbers already."""
        np.add.at(self.seen[name], bins, 1)
        if self.seen[name].sum() > self.window:
            self.seen[name] /= 2

    def add_number(self, name: str, value: float) -> None:
        """Count one value of a name that has `edges`."""
        self.add(name, [int(np.searchsorted(self.edges[name], value, side="right"))])

    def drift(self, least: float = 300) -> dict[str, float]:
        """How far each name with `least` counts or more is from what was usual."""
        enough = {n: h for n, h in self.seen.items() if h.sum() >= least}
        return {n: (ks_of_counts if n in self.edges else psi)(self.usual[n], h) for n, h in enough.items()}

    def alerts(self) -> dict[str, bool]:
        """For each name: is its drift beyond its limit, and beyond chance?"""
        found = self.drift()
        return {name: found.get(name, 0.0) > max(limit, self._chance(name)) for name, limit in self.limits.items()}

    def _chance(self, name: str) -> float:
        """What chance alone exceeds once in a hundred times, or more seldom."""
        usual, seen = float(np.sum(self.usual[name])), max(float(self.seen[name].sum()), 1.0)
        if name in self.edges:
            return 1.63 * np.sqrt(1 / usual + 1 / seen)
        return 3 * (len(self.seen[name]) - 1) * (1 / usual + 1 / seen)

    @classmethod
    def of(cls, usual: Mapping[str, Any]) -> "Monitor":
        """A monitor from what `artifact.Served.usual` holds: `counts`, `edges` and `limits`."""
        return cls(usual["counts"], usual["edges"], usual["limits"])
