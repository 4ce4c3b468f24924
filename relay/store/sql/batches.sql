-- find_unfinished(spec) -> id, started_at      called by backfill at its start; index batch_unfinished
SELECT id FROM batch WHERE md5(spec) = md5(%(spec)s) AND spec = %(spec)s AND finished_at IS NULL;

-- open_new(spec, now) -> id      called by backfill at its start, when there is none to resume
INSERT INTO batch (spec, started_at) VALUES (%(spec)s, to_timestamp(%(now)s)) RETURNING id;

-- finish(id, now, note)      called by backfill at its end, or by the service that it was handed over to; primary key
UPDATE batch SET finished_at = to_timestamp(%(now)s), note = %(note)s WHERE id = %(id)s AND finished_at IS NULL;

-- hand_over(id, sources, now)      called by backfill beside a service; primary key
-- The same command again: everything is enumerated anew, as by a backfill of its own.
UPDATE batch
SET handed_over_at = to_timestamp(%(now)s), sources = %(sources)s, failed_listings = NULL,
    enumerated_at = CASE WHEN %(sources)s IS NULL THEN to_timestamp(%(now)s) END
WHERE id = %(id)s AND finished_at IS NULL;

-- take_back(id)      called by backfill beside a service, before it puts named DIDs in; primary key
UPDATE batch SET handed_over_at = NULL, enumerated_at = NULL WHERE id = %(id)s AND finished_at IS NULL;

-- enumerated(id, failed_listings, now)      called by whoever enumerated a handed-over batch; primary key
UPDATE batch SET enumerated_at = to_timestamp(%(now)s), failed_listings = %(failed_listings)s WHERE id = %(id)s;

-- list_handed_over() -> the columns of get      called by a service, once a second; index batch_handed_over
SELECT id, spec, extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, note,
       extract(epoch FROM handed_over_at)::float8, sources, extract(epoch FROM enumerated_at)::float8, failed_listings
FROM batch WHERE handed_over_at IS NOT NULL AND finished_at IS NULL ORDER BY id;

-- delivered_since(id, since) -> repos, records, bytes      called by backfill beside a service, for its summary; index repo_batch
SELECT count(*), coalesce(sum(records), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM repo
WHERE batch = %(id)s AND state = 'synced' AND tracked AND synced_at >= to_timestamp(%(since)s);

-- get(id) -> id, spec, started_at, finished_at, note, handed_over_at, sources, enumerated_at, failed_listings      primary key
SELECT id, spec, extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, note,
       extract(epoch FROM handed_over_at)::float8, sources, extract(epoch FROM enumerated_at)::float8, failed_listings
FROM batch WHERE id = %(id)s;

-- list_unfinished() -> the columns of get      called by status
SELECT id, spec, extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, note,
       extract(epoch FROM handed_over_at)::float8, sources, extract(epoch FROM enumerated_at)::float8, failed_listings
FROM batch WHERE finished_at IS NULL ORDER BY id;
