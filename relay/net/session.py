"""`requests` over the guarded fetcher: its URLs, parameters and responses, with our connections and our limits.

A session of its own making would follow redirects by itself, read proxies from the environment, keep cookies, and know neither a
total deadline nor a size limit. Costs some 300 us a request more than `Fetcher.get`: for listings and single questions only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import requests
from requests.adapters import BaseAdapter

from relay.net.errors import BadResponse
from relay.net.http import Answer, Fetcher, FetchLimits


class GuardedResponse(requests.Response):
    """A complete answer with status 200; everything else was raised as a NetError."""

    answer: Answer

    def parsed(self) -> Any:
        """Return the JSON body. Raises BadResponse when it is none."""
        try:
            return self.json()
        except (ValueError, RecursionError) as exc:
            raise BadResponse(
                f"{self.answer.origin}: the body is not JSON ({self.answer.content_type or 'no content type'})",
                host=self.answer.origin,
                status=self.answer.status,
                facts=self.answer.facts,
            ) from exc


class GuardedAdapter(BaseAdapter):
    """Sends GETs through a Fetcher. `timeout` of a request is its total time in seconds, else that of `limits`."""

    def __init__(self, fetcher: Fetcher, limits: FetchLimits) -> None:
        super().__init__()
        self._fetcher = fetcher
        self._limits = limits

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float, float] | tuple[float, None] | None = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> GuardedResponse:
        """Return the answer; raises every NetError of `Fetcher.get`."""
        if request.method != "GET" or request.url is None or request.body is not None:
            raise ValueError(f"only plain GETs are sent: {request.method} {request.url}")
        limits = replace(self._limits, total_s=float(timeout)) if isinstance(timeout, int | float) else self._limits
        answer, body = self._fetcher.get_bytes(request.url, limits=limits)
        response = GuardedResponse()
        response.answer = answer
        response.status_code = answer.status
        response.url = request.url
        response.request = request
        response.encoding = "utf-8"
        response.headers["Content-Type"] = answer.content_type
        response.raw = io.BytesIO(body)
        response._content = body
        return response

    def close(self) -> None:
        """The fetcher belongs to somebody else."""


def guarded_session(fetcher: Fetcher, limits: FetchLimits) -> requests.Session:
    """Return a session in which every URL goes through `fetcher`. Keeps no cookies; reads nothing from the environment."""
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    session.headers.clear()  # the fetcher's head is the one that is sent
    session.adapters.clear()
    session.mount("http://", GuardedAdapter(fetcher, limits))
    session.mount("https://", GuardedAdapter(fetcher, limits))
    return session
