"""What can go wrong with other people's servers; each failure knows its host, its status, and who is to blame.

FetchError (.reason, .blame)
└── NetError             (.host, .status, .retry_after_s, .error, .facts, .answered)
    ├── HostDown         host_down        no address, connection or TLS, no answer in time, 5xx
    ├── RateLimited      rate_limited     429, or Retry-After: never costs an attempt
    ├── TooSlow          too_slow         below the minimum speed
    ├── DeadlineExceeded deadline         the whole download took too long
    ├── Truncated        truncated        cut before its end
    ├── RepoNotFound     repo_not_found   the host does not have the repo
    ├── RepoInactive     takendown, suspended, deactivated, deleted, inactive
    ├── BadResponse      bad_response     other 4xx, 501, or not what was asked for
    ├── TooLarge         too_large        above the size limit: the operator can raise it
    ├── PrivateAddress   private_address  the guard refuses to connect there
    └── Stopped          stopped          we closed the connection because we are stopping

IdentityError (.reason, .blame)
├── DidNotFound          did_not_found    the directory does not know the DID
├── DidTombstoned        did_tombstoned   the DID was given up for ever
├── DidUnsupported       did_unsupported  neither did:plc nor a did:web that we can ask for
├── BadDocument          bad_did_document not JSON, another DID, too large
└── DirectoryAway        directory_away   no answer: costs no attempt

The blame here is that of one request: a HOST failure costs the repo an attempt after all when the host answers others at that
time (`hosts.HostTable.answered_recently`; `repos` decides).
"""

from __future__ import annotations

from relay.errors import Blame, FetchError, IdentityError
from relay.net.facts import NO_FACTS, HostFacts


class NetError(FetchError):
    """One request failed. `host` is an origin; `status` the HTTP status if there was one; `error` the XRPC error name."""

    # Did the host answer this request at all? A 4xx is an answer; a cut, slow or refused connection is none.
    answered: bool = False

    def __init__(
        self,
        message: str,
        *,
        host: str,
        status: int | None = None,
        error: str | None = None,
        facts: HostFacts = NO_FACTS,
    ) -> None:
        super().__init__(message)
        self.host = host
        self.status = status
        self.error = error
        self.facts = facts

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the host asked us to wait, None when it asked for nothing."""
        return self.facts.retry_after_s


class HostDown(NetError):
    """No address, no connection, no TLS, no answer in time, or a 5xx."""

    reason, blame = "host_down", Blame.HOST


class RateLimited(NetError):
    """429, or any refusal with Retry-After. The host is well, and we wait: never an attempt of the repo."""

    reason, blame, answered = "rate_limited", Blame.HOST, True


class TooSlow(NetError):
    """Below the minimum speed over a whole window."""

    reason, blame = "too_slow", Blame.HOST


class DeadlineExceeded(NetError):
    """The request as a whole took longer than it may."""

    reason, blame = "deadline", Blame.HOST


class Truncated(NetError):
    """The connection ended before the body did."""

    reason, blame = "truncated", Blame.HOST


class RepoNotFound(NetError):
    """The host says that it does not have this repo."""

    reason, blame, answered = "repo_not_found", Blame.REPO, True


class RepoInactive(NetError):
    """The host has the repo and does not serve it. `account_status` is empty when the host does not say why."""

    reason, blame, answered = "inactive", Blame.REPO, True

    def __init__(
        self,
        message: str,
        *,
        account_status: str,
        host: str,
        status: int | None = None,
        error: str | None = None,
        facts: HostFacts = NO_FACTS,
    ) -> None:
        super().__init__(message, host=host, status=status, error=error, facts=facts)
        self.account_status = account_status
        self.reason = account_status or "inactive"


class BadResponse(NetError):
    """An answer that is of no use: another 4xx, 501, or a 200 that is not what was asked for.

    A 4xx and a 501 are answers of this request. Garbage under a 200 is not (a captive or parked page answers so to everybody),
    so `answered` and the blame follow the status.
    """

    reason, blame, answered = "bad_response", Blame.REPO, True

    def __init__(
        self,
        message: str,
        *,
        host: str,
        status: int | None = None,
        error: str | None = None,
        facts: HostFacts = NO_FACTS,
    ) -> None:
        super().__init__(message, host=host, status=status, error=error, facts=facts)
        if status is None or status < 400:
            self.blame = Blame.HOST
            self.answered = False


class TooLarge(NetError):
    """The body is larger than the operator allows."""

    reason, blame, answered = "too_large", Blame.OPERATOR, True


class PrivateAddress(NetError):
    """The guard refuses this address: not public, not https, an IP literal, a port of its own."""

    reason, blame = "private_address", Blame.OPERATOR


class Stopped(NetError):
    """We are stopping, and closed the connection ourselves."""

    reason, blame = "stopped", Blame.US


class LookupFailed(IdentityError):
    """Base of the failures of one DID document request. `retry_after_s` is what the directory asked for."""

    def __init__(self, message: str, *, did: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.did = did
        self.retry_after_s = retry_after_s


class DidNotFound(LookupFailed):
    """The directory does not know the DID (404)."""

    reason, blame = "did_not_found", Blame.REPO


class DidTombstoned(LookupFailed):
    """The DID was given up (410, or plc.directory's 404 "DID not available")."""

    reason, blame = "did_tombstoned", Blame.REPO


class DidUnsupported(LookupFailed):
    """A DID method, or a form of did:web, that nobody can be asked about."""

    reason, blame = "did_unsupported", Blame.REPO


class BadDocument(LookupFailed):
    """The directory answered, and its answer is not a usable DID document of this DID."""

    reason, blame = "bad_did_document", Blame.REPO


class DirectoryAway(LookupFailed):
    """The directory does not answer (down, slow, rate-limited): its failure, and no attempt of the repo."""

    reason, blame = "directory_away", Blame.HOST
