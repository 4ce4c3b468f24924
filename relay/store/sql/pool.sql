-- name_session(name)                called by pool.Session, when a pooled connection goes to another thread
SELECT set_config('application_name', %(name)s, false);

-- encoding() -> encoding            called by pool.Database.open
SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database();

-- check_epoch() -> epoch            called at the start of each fenced transaction (about 0.1 ms)
-- FOR KEY SHARE: a take-over locks the row FOR UPDATE, so it waits for this transaction's end, and this one sees the epoch after it.
-- Renewing the lease and storing the cursor change no key: they wait for nobody who holds this, however long that takes.
SELECT epoch FROM partition WHERE id = 0 FOR KEY SHARE;

-- limit_time(ms)                    called where somebody waits: for the statements of this transaction
SELECT set_config('statement_timeout', %(ms)s::text, true);
