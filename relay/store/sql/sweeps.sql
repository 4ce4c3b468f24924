-- schedule_quarantined(now, limit)      called by sweeps.retry_quarantined: when those that are new among them are tried again
-- Index repo_quarantined. Doubling from an hour: 2^8 hours are more than the 168 of seven days.
WITH new AS (
    SELECT did, CASE WHEN synced_at > retried_at THEN 0 ELSE coalesce(retries, 0) END AS retries
    FROM repo
    WHERE state = 'quarantined' AND tracked AND retry_at IS NULL
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE repo r
SET retries = new.retries,
    retry_at = to_timestamp(%(now)s) + least(make_interval(hours => (2 ^ least(new.retries, 8))::int), interval '7 days')
FROM new WHERE r.did = new.did;

-- retry_quarantined(now, limit) -> old state, new state      called by a service, about once a minute
-- Index repo_quarantined.
WITH due AS (
    SELECT did, state FROM repo
    WHERE state = 'quarantined' AND tracked AND retry_at <= to_timestamp(%(now)s)
    ORDER BY retry_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE repo r
SET state = CASE WHEN r.host IS NULL THEN 'discovered' ELSE 'pending' END, reason = NULL, attempts = 0,
    next_attempt_at = to_timestamp(%(now)s), retry_at = NULL, retried_at = to_timestamp(%(now)s), retries = coalesce(r.retries, 0) + 1,
    history = repo_noted(r.history, to_timestamp(%(now)s), CASE WHEN r.host IS NULL THEN 'discovered' ELSE 'pending' END, 'retry'),
    updated_at = to_timestamp(%(now)s)
FROM due WHERE r.did = due.did
RETURNING due.state, r.state;

-- covers_above(after, limit) -> did, covers      called by a service whose filter is another than the last one's, page by page
-- Primary key: all of them are read once, 5,000 at a time.
SELECT did, covers FROM repo WHERE state = 'synced' AND tracked AND did > %(after)s ORDER BY did LIMIT %(limit)s;

-- is_any_repo() -> bool      called by a service at start
SELECT EXISTS (SELECT 1 FROM repo);
