"""What the routes share: the model that is served, keys, limits, metrics, a worker for slow requests (chapter 07)."""

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import prometheus_client as prometheus
from threadpoolctl import threadpool_limits

from recutils.models.base import ANONYMOUS
from recutils.service.artifact import Artifact, ArtifactError, load
from recutils.service.auth import Authenticator, RateLimiter, ServiceSettings
from recutils.service.middleware import Metrics
from recutils.service.monitor import DriftMonitor
from recutils.service.pseudonyms import pseudonym, secret_check
from recutils.service.schemas import APIError

log = logging.getLogger("recutils.service")


RETRY_SECONDS = 10.0


MAX_WAITING = 20


class ModelStore:
    """The version that is served, and its watch over the folder: what is made current is loaded and served.

    A request keeps the version that it began with. A version that cannot be loaded changes nothing but `error`.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.model: Artifact | None = None
        self.monitor: DriftMonitor | None = None
        self.error = "no model has been loaded yet"
        self.last_tried, self.last_failed = "", 0.0

    async def watch(self) -> None:
        """Poll for a new current version, for ever."""
        while True:
            await self.poll()
            await asyncio.sleep(self.settings.poll_interval)

    async def poll(self) -> None:
        """Serve the current version if it is another than the last one tried; one that failed, every ten seconds."""
        try:
            current = (self.settings.folder / "CURRENT").read_text().strip()
        except (OSError, ValueError):
            current = ""
        retry = self.error and time.monotonic() >= self.last_failed + RETRY_SECONDS
        if current and current == self.last_tried and not retry:
            return
        try:
            self.activate(await asyncio.to_thread(load, self.settings.folder, current or None))
        except Exception as error:
            self.error = str(error) if isinstance(error, ArtifactError) else type(error).__name__
            self.last_failed = time.monotonic()
            if current != self.last_tried:
                log.error("not loaded", extra={"fields": {"version": current[:64], "error": self.error}})
        self.last_tried = current

    def activate(self, model: Artifact) -> None:
        """Serve another version from now on. Raises ArtifactError for one whose pseudonyms have another secret.

        The one before is freed when its last request ends: it holds no reference cycles, so that no garbage has to be
        collected, which would stop every request meanwhile. What is loaded need never be searched for garbage.
        """
        if model.secret_check != secret_check(self.settings.secret):
            raise ArtifactError("Its pseudonyms were made with another secret (RECUTILS_SECRET); build it again.")
        self.model, self.monitor, self.error = model, DriftMonitor(**model.reference), ""
        gc.freeze()
        log.info("serving", extra={"fields": {"version": model.version}})


class AppState:
    """What the routes share."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings, self.store, self.metrics = settings, ModelStore(settings), Metrics()
        self.authenticator = Authenticator(settings.keys)
        self.limiter = RateLimiter(settings.rate, settings.burst)
        # The worker's own limit: OpenMP counts threads for each thread that calls it, so LightGBM would start more.
        self.worker = ThreadPoolExecutor(1, initializer=threadpool_limits, initargs=(1,))
        self.in_worker = 0

    async def run_in_worker(self, work: Callable[[], Any]) -> Any:
        """Do in a thread, one at a time, what takes long: it must not stand in the way of what does not."""
        if self.in_worker > MAX_WAITING:
            raise APIError("Busy with other searches and reasons.", status=503, **{"Retry-After": "1"})
        self.in_worker += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, work)
        finally:
            self.in_worker -= 1

    def require_model(self) -> Artifact:
        """The version that is served now; 503 while there is none."""
        if self.store.model is None:
            raise APIError(f"Not ready: {self.store.error}.", status=503, **{"Retry-After": "2"})
        return self.store.model

    def household_row(self, model: Artifact, household: str | None) -> int:
        """The ranker's row of a household; an unknown one's where it is not known."""
        if household is None:
            return ANONYMOUS
        return model.household_index.get(pseudonym(household, self.settings.secret), ANONYMOUS)

    def metrics_text(self) -> bytes:
        """All metrics, with drift as it is now."""
        metrics, store = self.metrics, self.store
        metrics.model.clear()
        metrics.drift.clear()
        metrics.failed.set(bool(store.error))
        if store.model is not None and store.monitor is not None:
            metrics.model.labels(store.model.version).set(1)
            for name, value in store.monitor.drift().items():
                metrics.drift.labels(name).set(value)
            for name, beyond in store.monitor.alerts().items():
                metrics.alert.labels(name).set(beyond)
        return prometheus.generate_latest(metrics.registry)
