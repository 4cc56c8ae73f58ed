"""How often a key may ask: token buckets, each process's own or one for all in Redis (chapter 07)."""

import logging
import time
from collections.abc import Callable

from recutils.service.auth import ServiceSettings

log = logging.getLogger("recutils.service")

TAKE = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1e6
local rate, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local had = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min((tonumber(had[1]) or burst) + (now - (tonumber(had[2]) or now)) * rate, burst)
local wait = math.max(cost - tokens, 0) / rate
if wait == 0 then tokens = tokens - cost end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(burst / rate) + 1)
return tostring(wait)
"""  # what `RateLimiter.wait` does, in one step for all who ask


MAX_BUCKETS = 10_000


class RateLimiter:
    """A token bucket for each client: `rate` tokens a second, `burst` at most. `clock` gives seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self.buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def wait(self, client: str, cost: float = 1) -> float:
        """Take `cost` tokens; the seconds until there are as many (0: they were taken)."""
        now, cost = self.clock(), min(cost, self.burst)
        tokens, counted = self.buckets.get(client, (self.burst, now))
        tokens = min(tokens + (now - counted) * self.rate, self.burst)
        wait = max(cost - tokens, 0) / self.rate
        if len(self.buckets) > MAX_BUCKETS:  # those that are full again by now
            left = {c: b for c, b in self.buckets.items() if b[0] + (now - b[1]) * self.rate < self.burst}
            self.buckets = left if len(left) <= MAX_BUCKETS else {}
        self.buckets[client] = (tokens if wait else tokens - cost, now)
        return wait


class SharedLimiter:
    """The limit of each key over all processes, counted in the Redis of `settings.redis`.

    Without one, and while it does not answer, each of `settings.workers` processes allows its share.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.limits = settings.rate, settings.burst
        self.own = RateLimiter(settings.rate / settings.workers, settings.burst / settings.workers)
        self.take, self.lost_until = None, 0.0
        if settings.redis:
            from redis.asyncio import from_url

            connection = from_url(settings.redis, socket_timeout=0.2, socket_connect_timeout=0.2)
            self.take = connection.register_script(TAKE)

    async def wait(self, client: str, cost: float = 1) -> float:
        """See `RateLimiter.wait`."""
        if self.take is not None and time.monotonic() >= self.lost_until:
            try:
                rate, burst = self.limits
                return float(await self.take(keys=[f"recutils:{client}"], args=[rate, burst, min(cost, burst)]))
            except Exception as error:  # whatever it is: a shop does not close because its counter is lost
                self.lost_until = time.monotonic() + 1
                log.error("redis lost", extra={"fields": {"error": type(error).__name__}})
        return self.own.wait(client, cost)
