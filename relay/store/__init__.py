"""The door to PostgreSQL: the private server when there is no DSN, connections, migrations, and all SQL.

One module a table; its functions take a cursor, and the caller owns the transaction (`pool.Database.transaction`). SQL stands in
`sql/*.sql`, schema in `migrations/*.sql`. Knows rows and their rules of storage (what never falls, what a listing may change), but
not why a repo changes state: `repos` decides that. No psycopg2 type or exception passes this door but the cursor itself, which
callers only hand back to us. Called by every room that keeps state.
"""
