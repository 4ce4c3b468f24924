-- find_open(kind) -> id      called before open_new; index incident_open
SELECT id FROM incident WHERE kind = %(kind)s AND closed_at IS NULL ORDER BY id LIMIT 1;

-- open_new(kind, text, at) -> id
INSERT INTO incident (kind, text, at) VALUES (%(kind)s, %(text)s, to_timestamp(%(at)s)) RETURNING id;

-- close(id, at)      primary key
UPDATE incident SET closed_at = to_timestamp(%(at)s) WHERE id = %(id)s AND closed_at IS NULL;

-- list_open(kind) -> id, kind, text, at, closed_at      called at start: a reconcile that was not complete goes on; index incident_open
SELECT id, kind, text, extract(epoch FROM at)::float8, NULL::float8 FROM incident
WHERE closed_at IS NULL AND (%(kind)s IS NULL OR kind = %(kind)s) ORDER BY id;

-- list_recent(since, limit) -> id, kind, text, at, closed_at      called by status: open ones, and those closed since; both indexes
SELECT id, kind, text, extract(epoch FROM at)::float8, extract(epoch FROM closed_at)::float8 FROM incident
WHERE closed_at IS NULL OR closed_at >= to_timestamp(%(since)s)
ORDER BY closed_at IS NOT NULL, id DESC LIMIT %(limit)s;
