"""Fixtures, and one rule: what RECUTILS_STRICT demands (`browser`, `data`, or 1 for all; CI sets it) fails where it is
missing, instead of being skipped."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from sample import FOLDER
from scipy import sparse

from recutils import data

ROOT = Path(__file__).resolve().parent.parent


def missing(what: str, need: str) -> None:
    """Skip the test with a plain message; where RECUTILS_STRICT demands what is needed, fail it."""
    if os.environ.get("RECUTILS_STRICT", "") in ("1", need):
        pytest.fail(what)
    pytest.skip(what)


# What a fixture says of the tests that use it.
MARKS = {"journey": "store", "shared": "store", "chromium": "browser"}
MARKS |= {"live": "slow", "excerpt": "slow", "three": "slow", "package": "slow", "kernel": "slow"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the fixtures it uses, directly or by way of others."""
    for item in items:
        for fixture, mark in MARKS.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that is not the book's; its place is in RECUTILS_SHARED_DATA."""
    folder = Path(os.environ.get("RECUTILS_SHARED_DATA", "not-set"))
    if not (folder / "groceries_baskets.csv").exists():
        missing("RECUTILS_SHARED_DATA names no folder with groceries_baskets.csv and online_retail.parquet.", "data")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """A Chromium to look at the book with."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        missing(
            "Chromium is not installed (Debian: apt-get install chromium); the rendered book was not looked at.",
            "browser",
        )
    return str(found)


@pytest.fixture(scope="session")
def sample() -> data.Store:
    """The made-up shop in data/sample."""
    return data.load_store(FOLDER)


@pytest.fixture(scope="session")
def sample_split(sample) -> data.Split:
    return data.time_split(sample, min_baskets=5)


@pytest.fixture(scope="session")
def journey() -> data.Store:
    """Complete Journey, the book's store."""
    return data.load_store()


@pytest.fixture(scope="session")
def journey_split(journey) -> data.Split:
    return data.time_split(journey)


@pytest.fixture(scope="session")
def two_worlds() -> sparse.csr_matrix:
    """Baskets of four out of either items 0-9 or 10-19: pairs of one world are bought together, others never."""
    rng = np.random.default_rng(0)
    world = rng.integers(2, size=800)
    rows = np.stack([np.isin(np.arange(20), 10 * w + rng.permutation(10)[:4]) for w in world])
    return sparse.csr_matrix(rows, dtype=np.float32)
