-- read() -> owner, epoch, lease_until, renewed_at, upstream, cursor, cursor_time_us, filter_compared, filter
-- Called by status, and by run, tail and backfill at start.
SELECT owner, epoch, extract(epoch FROM lease_until)::float8, extract(epoch FROM renewed_at)::float8, upstream, cursor, cursor_time_us,
       filter_compared, filter
FROM partition WHERE id = 0;

-- store_cursor(upstream, cursor, cursor_time_us)      called in the checkpoint's transaction, which has checked the epoch
UPDATE partition SET upstream = %(upstream)s, cursor = %(cursor)s, cursor_time_us = %(cursor_time_us)s WHERE id = 0;

-- store_first_cursor(upstream, cursor, cursor_time_us)      called by backfill before it enumerates; changes nothing where there is one
UPDATE partition SET upstream = %(upstream)s, cursor = %(cursor)s, cursor_time_us = %(cursor_time_us)s
WHERE id = 0 AND (cursor IS NULL OR upstream IS DISTINCT FROM %(upstream)s);

-- store_filter(filter)      called by a service that has taken the lease; taking it has cleared what the one before said
UPDATE partition SET filter = %(filter)s WHERE id = 0;

-- store_filter_compared(filter)      called by a service when it has compared every synced repo with its filter, and by a narrower backfill: null
UPDATE partition SET filter_compared = %(filter)s WHERE id = 0;

-- try_lock() -> bool      called by cluster.leases: who has this session lock may take the lease; it ends with the session
SELECT pg_try_advisory_lock(7236283511);

-- unlock()      called by cluster.leases, when it gives the lock back without the session's end
SELECT pg_advisory_unlock(7236283511);

-- limit_waiting(limit)      called before take: how long it waits for transactions of the old epoch, in this transaction only
SELECT set_config('lock_timeout', %(limit)s, true);

-- take(owner, seconds) -> epoch      called by cluster.leases with the lock in hand; waits for the transactions of the old epoch
-- FOR UPDATE: an UPDATE of these columns alone would not wait for those who have checked the epoch (see check_epoch).
WITH held AS MATERIALIZED (
    SELECT id FROM partition WHERE id = 0 FOR UPDATE
)
UPDATE partition
SET owner = %(owner)s, epoch = epoch + 1, renewed_at = clock_timestamp(), filter = NULL,
    lease_until = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id IN (SELECT id FROM held)
RETURNING epoch;

-- renew(epoch, seconds)      called by cluster.leases every few seconds; no row: another instance has taken over
UPDATE partition
SET renewed_at = clock_timestamp(), lease_until = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id = 0 AND epoch = %(epoch)s;

-- give_up(epoch)      called by cluster.leases at the end
UPDATE partition SET owner = NULL, lease_until = NULL WHERE id = 0 AND epoch = %(epoch)s;

-- holder() -> owner, epoch, is_expired, restarted_since, seconds since the renewal      called by cluster.leases while it waits
-- restarted_since: the server started after the last renewal, so the holder's session is gone although the holder may live.
SELECT owner, epoch, coalesce(lease_until <= clock_timestamp(), true),
       coalesce(pg_postmaster_start_time() > renewed_at, false),
       coalesce(extract(epoch FROM clock_timestamp() - renewed_at), 0)::float8
FROM partition WHERE id = 0;

-- end_holder(pid) -> count      called by cluster.leases when the lease has run out and its session is silent, or with our own old session
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND ((classid::bigint << 32) | objid::bigint) = 7236283511 AND granted AND pid <> pg_backend_pid()
  AND (%(pid)s IS NULL OR pid = %(pid)s);

-- end_fenced_transactions() -> count      called by cluster.leases, with the lock, when transactions of the old epoch keep `take` waiting
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_locks
WHERE locktype = 'relation' AND relation = 'partition'::regclass AND mode = 'RowShareLock' AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid();

-- read_shards() -> shards      called at start where ingesters keep their own shards
SELECT shards FROM partition WHERE id = 0;

-- store_shards(shards)      called at start where ingesters keep their own shards, before anything is delivered
UPDATE partition SET shards = %(shards)s::jsonb WHERE id = 0;
