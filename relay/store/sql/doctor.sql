-- server() -> version, max_connections, reserved for superusers, of this account at most (-1: any), in use, ours among them, is recovering, read only
--                                                called by `doctor`; a scan of the sessions
SELECT current_setting('server_version'), current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int,
       (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
       (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tradr-relay %%'),
       pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on';

-- may_create() -> bool      called by `doctor`: without it migrations cannot be applied
SELECT has_schema_privilege(current_user, current_schema(), 'CREATE');
