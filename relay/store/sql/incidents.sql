-- seen_again(kind) -> id      called before open_new; index incident_open. A reconcile that began before does not answer it any more.
UPDATE incident SET seen_at = clock_timestamp()
WHERE id = (SELECT min(id) FROM incident WHERE kind = %(kind)s AND closed_at IS NULL)
RETURNING id;

-- open_new(kind, text, at) -> id
INSERT INTO incident (kind, text, at) VALUES (%(kind)s, %(text)s, to_timestamp(%(at)s)) RETURNING id;

-- close(id, at)      primary key
UPDATE incident SET closed_at = to_timestamp(%(at)s) WHERE id = %(id)s AND closed_at IS NULL;

-- close_answered(began_at, at, note) -> id      called at the end of a reconcile; index incident_open
-- Of those that happened (again) after it began, the pages that it read before may not show what is missing: they stay open.
UPDATE incident SET closed_at = to_timestamp(%(at)s), text = text || %(note)s
WHERE closed_at IS NULL AND seen_at <= to_timestamp(%(began_at)s)
RETURNING id;

-- list_open(kind) -> id, kind, text, at, closed_at      called at start: a reconcile that was not complete goes on; index incident_open
SELECT id, kind, text, extract(epoch FROM at)::float8, NULL::float8 FROM incident
WHERE closed_at IS NULL AND (%(kind)s IS NULL OR kind = %(kind)s) ORDER BY id;

-- list_recent(since, limit) -> id, kind, text, at, closed_at      called by status: open ones, and those closed since; both indexes
SELECT id, kind, text, extract(epoch FROM at)::float8, extract(epoch FROM closed_at)::float8 FROM incident
WHERE closed_at IS NULL OR closed_at >= to_timestamp(%(since)s)
ORDER BY closed_at IS NOT NULL, id DESC LIMIT %(limit)s;
