-- load(batch, kind, host, param) -> cursor, pages, repos, started_at, finished_at, error
-- Called by discovery before it goes on; primary key.
SELECT cursor, pages, repos, extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, error
FROM listing WHERE batch = %(batch)s AND kind = %(kind)s AND host = %(host)s AND param = %(param)s;

-- load_batch(batch) -> kind, host, param, cursor, pages, repos, started_at, finished_at, error
-- Called by discovery and status; primary key.
SELECT kind, host, param, cursor, pages, repos, extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, error
FROM listing WHERE batch = %(batch)s ORDER BY kind, host, param;

-- save(...)      called by discovery in the transaction that stores a page's repos; primary key
INSERT INTO listing (batch, kind, host, param, cursor, pages, repos, started_at, finished_at, error)
VALUES (%(batch)s, %(kind)s, %(host)s, %(param)s, %(cursor)s, %(pages)s, %(repos)s, to_timestamp(%(started_at)s),
        to_timestamp(%(finished_at)s), %(error)s)
ON CONFLICT (batch, kind, host, param) DO UPDATE
SET cursor = excluded.cursor, pages = excluded.pages, repos = excluded.repos, started_at = excluded.started_at,
    finished_at = excluded.finished_at, error = excluded.error;

-- forget(batch)      called when a batch is finished; primary key
DELETE FROM listing WHERE batch = %(batch)s;
