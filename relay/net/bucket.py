"""A token bucket that listens to the server's own count (pure)."""

from __future__ import annotations


class TokenBucket:
    """At most `burst` requests at once and `rate_per_s` on average; fewer while the server says that fewer remain.

    `now` is any clock's seconds, never falling. Full in the beginning.
    """

    def __init__(self, *, rate_per_s: float, burst: float, now: float) -> None:
        if rate_per_s <= 0 or burst < 1:
            raise ValueError("a bucket needs a positive rate and room for one token")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._tokens = burst
        self._at = now
        self._tight_rate_per_s = rate_per_s
        self._tight_until = now

    def try_take(self, now: float) -> bool:
        """Take one token, or say that there is none."""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def put_back(self, now: float) -> None:
        """Return a token whose request was never sent."""
        self._refill(now)
        self._tokens = min(self.burst, self._tokens + 1)

    def ready_at(self, now: float) -> float:
        """Return the earliest time, not before `now`, at which a token will be there."""
        self._refill(now)
        missing = 1 - self._tokens
        if missing <= 0:
            return now
        if now < self._tight_until:
            in_time = self._tight_rate_per_s * (self._tight_until - now)
            # The division must not be made with a rate of (nearly) nothing: then the window's end comes first.
            if in_time >= missing:
                return min(self._tight_until, now + missing / self._tight_rate_per_s)
            return self._tight_until + (missing - in_time) / self.rate_per_s
        return now + missing / self.rate_per_s

    def tighten(self, *, remaining: int, reset_after_s: float, now: float) -> None:
        """The server will take `remaining` more requests within the next `reset_after_s` seconds: spread them, start no more.

        A generous server changes nothing: the own rate stays the upper bound. A later call replaces an earlier one.
        """
        self._refill(now)
        remaining = max(remaining, 0)
        self._tokens = min(self._tokens, remaining)
        self._tight_until = now + max(reset_after_s, 0.0)
        spread = remaining - self._tokens  # what is here may start at once, the others evenly
        self._tight_rate_per_s = min(self.rate_per_s, spread / reset_after_s) if reset_after_s > 0 else self.rate_per_s

    def is_full(self, now: float) -> bool:
        """Say whether forgetting this bucket would change nothing."""
        self._refill(now)
        return self._tokens >= self.burst and now >= self._tight_until

    def _refill(self, now: float) -> None:
        if now <= self._at:
            return
        tight_s = max(0.0, min(now, self._tight_until) - self._at)
        loose_s = now - self._at - tight_s
        self._tokens = min(self.burst, self._tokens + tight_s * self._tight_rate_per_s + loose_s * self.rate_per_s)
        self._at = now
