-- register(...) -> id      called once by each process that works
INSERT INTO instance (name, command, pid, host, version, phase, started_at, heartbeat_at, metrics_address, grpc_address)
VALUES (%(name)s, %(command)s, %(pid)s, %(host)s, %(version)s, %(phase)s, to_timestamp(%(started_at)s), clock_timestamp(),
        %(metrics_address)s, %(grpc_address)s)
RETURNING id;

-- heartbeat(id, phase, metrics_address, grpc_address, status)      called every few seconds; primary key
UPDATE instance
SET phase = %(phase)s, heartbeat_at = clock_timestamp(), metrics_address = %(metrics_address)s, grpc_address = %(grpc_address)s,
    status = coalesce(%(status)s::jsonb, status)
WHERE id = %(id)s;

-- unregister(id)      called at a clean end; primary key
DELETE FROM instance WHERE id = %(id)s;

-- list_all() -> all columns, silent_s      called by status; a few rows
SELECT id, name, command, pid, host, version, phase, extract(epoch FROM started_at)::float8,
       extract(epoch FROM heartbeat_at)::float8, extract(epoch FROM clock_timestamp() - heartbeat_at)::float8,
       metrics_address, grpc_address, status::text
FROM instance ORDER BY id;

-- forget_silent(seconds)      called by the holder of the lease: rows that a kill left
DELETE FROM instance WHERE heartbeat_at < clock_timestamp() - make_interval(secs => %(seconds)s);
