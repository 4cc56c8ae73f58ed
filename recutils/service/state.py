"""What the routes share: the model that is served, keys, limits, metrics, a worker for slow requests (chapter 07)."""

import asyncio
import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import prometheus_client as prometheus
from threadpoolctl import threadpool_limits

from recutils.models.base import ANONYMOUS
from recutils.service.artifact import Artifact, ArtifactError, load, read_canary
from recutils.service.auth import Authenticator, ServiceSettings, read_keys
from recutils.service.feedback import UNAVAILABLE, FeedbackStore
from recutils.service.limits import SharedLimiter
from recutils.service.middleware import Metrics
from recutils.service.monitor import DriftMonitor
from recutils.service.pseudonyms import pseudonym, secret_check
from recutils.service.schemas import APIError

log = logging.getLogger("recutils.service")
RETRY_SECONDS = 10.0
BUSY_SECONDS = 3.0  # for which requests must have been refused, at least one a second, before /ready says so
RATES_SECONDS = 60.0  # between two looks at what became of offers
MAX_WAITING = {"search": 20, "explain": 10, "feedback": 100}  # requests in a queue; one more is refused


class ModelStore:
    """The version that is served, and its watch over the folder: what is made current is loaded and served.

    A request keeps the version that it began with. A version that cannot be loaded changes nothing but `error`.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.model: Artifact | None = None
        self.monitor: DriftMonitor | None = None
        self.canary: Artifact | None = None
        self.share = 0.0  # of the known households that the canary answers
        self.error = "no model has been loaded yet"
        self.last_tried, self.last_failed = "", 0.0

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

    async def poll_canary(self) -> None:
        """Serve the version that is tried out to its share; one that cannot be loaded to nobody."""
        version, share = read_canary(self.settings.folder)
        if version != (self.canary.version if self.canary else ""):
            self.canary, self.share = None, 0.0
            if version:
                try:
                    self.canary = self.checked(await asyncio.to_thread(load, self.settings.folder, version))
                except Exception as error:
                    log.error("canary not loaded", extra={"fields": {"version": version[:64], "error": str(error)}})
        self.share = share if self.canary else 0.0

    def model_for(self, household: str) -> Artifact | None:
        """The version that answers a household, known by its pseudonym; the same one each time."""
        if self.canary is not None and household and int(household[:8], 16) < self.share * 16**8:
            return self.canary
        return self.model

    def checked(self, model: Artifact) -> Artifact:
        """The version itself. Raises ArtifactError for one whose pseudonyms have another secret."""
        if model.secret_check != secret_check(self.settings.secret):
            raise ArtifactError("Its pseudonyms were made with another secret (RECUTILS_SECRET); build it again.")
        return model

    def activate(self, model: Artifact) -> None:
        """Serve another version from now on. Raises ArtifactError for one whose pseudonyms have another secret.

        The one before is freed when its last request ends: it holds no reference cycles, so that no garbage has to be
        collected, which would stop every request meanwhile. What is loaded need never be searched for garbage.
        """
        self.checked(model)
        self.model, self.monitor, self.error = model, DriftMonitor(**model.reference), ""
        gc.freeze()
        log.info("serving", extra={"fields": {"version": model.version}})


class Queue:
    """A thread, and a line of requests before it that is cut where it gets too long."""

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most, self.n = name, most, 0
        # The thread's own limit: OpenMP counts threads for each thread that calls it, so LightGBM would start more.
        self.worker = ThreadPoolExecutor(1, name, initializer=threadpool_limits, initargs=(1,))

    async def run(self, work: Callable[[], Any]) -> Any:
        """Do `work` when all that came before it is done. Raises APIError (503) where too many wait."""
        if self.n > self.most:
            raise APIError(f"Busy with other requests ({self.name}).", status=503, **{"Retry-After": "1"})
        self.n += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, work)
        finally:
            self.n -= 1


class AppState:
    """What the routes share."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings, self.store, self.metrics = settings, ModelStore(settings), Metrics()
        self.authenticator = Authenticator(settings.keys)
        self.limiter = SharedLimiter(settings)
        self.feedback = FeedbackStore(settings.folder, settings.feedback, settings.max_feedback)
        self.rates_at = -math.inf  # when click-through and conversion were last counted
        self.queues = {name: Queue(name, most) for name, most in MAX_WAITING.items()}
        self.keys_written = 0  # when the keys that count were written, in ns
        self.stopping = False  # a signal has come
        self.alive_at = time.monotonic()  # when the event loop was last seen to run
        self.refusing_since = self.refused_at = -math.inf  # first and last of the latest refusals for too many waiting

    async def run_in_worker(self, queue: str, work: Callable[[], Any]) -> Any:
        """Do in a queue's thread, one at a time, what takes long: it must not stand in the way of what does not."""
        try:
            return await self.queues[queue].run(work)
        except APIError:
            self.note_refusal()
            raise

    async def watch(self) -> None:
        """Look for a new current version and for changed keys, for ever."""
        while True:
            self.poll_keys()
            await self.store.poll()
            await self.store.poll_canary()
            await self.poll_rates()
            await asyncio.sleep(self.settings.poll_interval)

    def poll_keys(self) -> None:
        """Take up the keys of the folder when they were changed; a file that cannot be read changes nothing."""
        with contextlib.suppress(OSError, ValueError):
            written = (self.settings.folder / "keys.json").stat().st_mtime_ns
            if written != self.keys_written:
                self.authenticator.take(read_keys(self.settings.folder))
                self.keys_written = written

    async def poll_rates(self) -> None:
        """Count click-through and conversion of the versions that are served; a lost database changes nothing."""
        if time.monotonic() < self.rates_at + RATES_SECONDS:
            return
        self.rates_at = time.monotonic()
        with contextlib.suppress(*UNAVAILABLE, APIError):  # TimeoutError is an OSError
            async with asyncio.timeout(5):
                found = await self.run_in_worker("feedback", partial(self.feedback.rates, time.time() - 86_400))
            self.metrics.rates.clear()
            for version in found.keys() & {self.version_label(v) for v in found}:
                for measure in ("click_through", "conversion"):
                    self.metrics.rates.labels(version, measure).set(found[version][measure])

    def note_refusal(self) -> None:
        """A request was refused because others wait."""
        now = time.monotonic()
        self.refusing_since = now if now > self.refused_at + 1 else self.refusing_since
        self.refused_at = now

    def is_late(self, arrived: float) -> bool:
        """Whether a request has waited too long, by the event loop's clock, to be begun."""
        late = asyncio.get_running_loop().time() > arrived + self.settings.max_delay
        if late:
            self.note_refusal()
        return late

    def unready(self) -> str:
        """Why a load balancer should send requests elsewhere; empty where it need not."""
        if self.stopping:
            return "stopping"
        if self.store.model is None:
            return self.store.error
        lasts = self.refused_at - self.refusing_since >= BUSY_SECONDS
        return "busy" if lasts and time.monotonic() < self.refused_at + 1 else ""

    def require_model(self, household: str | None = None) -> Artifact:
        """The version that is served now, to this household; 503 while there is none."""
        known = "" if household is None or self.store.canary is None else pseudonym(household, self.settings.secret)
        model = self.store.model_for(known)
        if model is None:
            raise APIError(f"Not ready: {self.store.error}.", status=503, **{"Retry-After": "2"})
        return model

    def version_label(self, version: str | None) -> str:
        """A version as metrics name it: one that is served, or `other`, so that nobody can make up names."""
        served = {model.version for model in (self.store.model, self.store.canary) if model is not None}
        return version if version in served else "other"

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
            if store.canary is not None:
                metrics.model.labels(store.canary.version).set(1)
            for name, value in store.monitor.drift().items():
                metrics.drift.labels(name).set(value)
            for name, beyond in store.monitor.alerts().items():
                metrics.alert.labels(name).set(beyond)
        return prometheus.generate_latest(metrics.registry)
