-- add_many(rows)      called in the checkpoint's transaction (execute_values); index dead_letter_once
INSERT INTO dead_letter (at, did, collection, rkey, cid, rev, type, source, reason, message, ingester, attempts, size, operation)
VALUES %s
ON CONFLICT (did, coalesce(collection, ''), coalesce(rkey, ''), coalesce(cid, ''), coalesce(type, ''), reason) DO UPDATE
SET at = excluded.at, rev = excluded.rev, source = excluded.source, message = excluded.message, ingester = excluded.ingester,
    attempts = dead_letter.attempts + excluded.attempts, size = excluded.size, operation = coalesce(excluded.operation, dead_letter.operation),
    requeued_at = NULL;

-- list_page(before, did, reason, limit) -> all columns but operation      called by `deadletter list`, newest first; primary key
SELECT id, extract(epoch FROM at)::float8, did, collection, rkey, cid, rev, type, source, reason, message, ingester, attempts, size
FROM dead_letter
WHERE id < %(before)s AND (%(did)s IS NULL OR did = %(did)s) AND (%(reason)s IS NULL OR reason = %(reason)s)
ORDER BY id DESC LIMIT %(limit)s;

-- list_page_of_did(before, did, limit) -> all columns but operation      the same for one DID; index dead_letter_did
SELECT id, extract(epoch FROM at)::float8, did, collection, rkey, cid, rev, type, source, reason, message, ingester, attempts, size
FROM dead_letter
WHERE did = %(did)s AND id < %(before)s AND (%(reason)s IS NULL OR reason = %(reason)s)
ORDER BY id DESC LIMIT %(limit)s;

-- get(ids) -> all columns      called by `deadletter show|requeue`; primary key
SELECT id, extract(epoch FROM at)::float8, did, collection, rkey, cid, rev, type, source, reason, message, ingester, attempts, size,
       operation
FROM dead_letter WHERE id = ANY(%(ids)s) ORDER BY id;

-- requeue(ids, now)      called by `deadletter requeue`; primary key
UPDATE dead_letter SET requeued_at = to_timestamp(%(now)s) WHERE id = ANY(%(ids)s);

-- requeued(exclude, limit) -> all columns      called by a service, once a second; index dead_letter_requeued
SELECT id, extract(epoch FROM at)::float8, did, collection, rkey, cid, rev, type, source, reason, message, ingester, attempts, size,
       operation
FROM dead_letter WHERE requeued_at IS NOT NULL AND id <> ALL(%(exclude)s) ORDER BY id LIMIT %(limit)s;

-- delete(ids)      called by `deadletter discard`, and when a requeued operation was acknowledged; primary key
DELETE FROM dead_letter WHERE id = ANY(%(ids)s);

-- count() -> reason, count      called by status; a scan
SELECT reason, count(*) FROM dead_letter GROUP BY reason ORDER BY reason;
