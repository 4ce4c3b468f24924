-- find_unfinished(spec) -> id, started_at      called by backfill at its start; index batch_unfinished
SELECT id FROM batch WHERE md5(spec) = md5(%(spec)s) AND spec = %(spec)s AND finished_at IS NULL;

-- open_new(spec, now) -> id      called by backfill at its start, when there is none to resume
INSERT INTO batch (spec, started_at) VALUES (%(spec)s, to_timestamp(%(now)s)) RETURNING id;

-- finish(id, now, note)      called by backfill at its end; primary key
UPDATE batch SET finished_at = to_timestamp(%(now)s), note = %(note)s WHERE id = %(id)s AND finished_at IS NULL;

-- get(id) -> id, spec, started_at, finished_at, note      primary key
SELECT id, spec, extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, note FROM batch WHERE id = %(id)s;

-- list_unfinished() -> id, spec, started_at, finished_at, note      called by status, and by a `run` that takes over targets
SELECT id, spec, extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, note
FROM batch WHERE finished_at IS NULL ORDER BY id;
