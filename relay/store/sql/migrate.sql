-- table_exists() -> bool            called by migrate, before anything else
-- Not to_regclass(): after waiting for the lock it answers from a cache that does not know of the table yet.
SELECT EXISTS (SELECT FROM pg_tables WHERE tablename = 'schema_migration' AND schemaname = ANY (current_schemas(false)));

-- lock()                            called by migrate: one process at a time; the number is this project's, chosen once
SELECT pg_advisory_xact_lock(7236283510);

-- create_table()                    called by migrate, under the lock
CREATE TABLE IF NOT EXISTS schema_migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- applied() -> number, name, checksum      called by migrate; one row a migration
SELECT number, name, checksum FROM schema_migration ORDER BY number;

-- remember(number, name, checksum)  called by migrate, in the transaction that applied it
INSERT INTO schema_migration (number, name, checksum) VALUES (%(number)s, %(name)s, %(checksum)s);
