-- What of a repo's life was out of the ordinary, in the repo's own row: a repo that goes straight to synced costs no statement and no byte.

-- Newest first, at most 20, each the text of a JSON object: at, state, reason, attempts, error, host and from (it moved), times and since
-- (the same came several times in a row). Written by repo_noted alone. Null: nothing.
ALTER TABLE repo ADD COLUMN history text[];

-- repo_noted(history, at, state, reason, attempts, error, host, old host) -> history      called by the statements that change repos
-- Called for what is worth a note only: 15 us each. The same again in a row (a host that limits us) changes the newest note and drives no older one out.
CREATE FUNCTION repo_noted(
    history text[], happened_at timestamptz, state text, reason text,
    attempts integer DEFAULT NULL, error text DEFAULT NULL, host text DEFAULT NULL, old_host text DEFAULT NULL
) RETURNS text[] LANGUAGE sql STABLE AS $$
    SELECT (
        json_strip_nulls(json_build_object(
            'at', floor(extract(epoch FROM happened_at)), 'state', state, 'reason', reason, 'attempts', nullif(attempts, 0),
            'error', left(error, 200), 'host', CASE WHEN host <> old_host THEN host END, 'from', CASE WHEN host <> old_host THEN old_host END,
            'times', CASE WHEN is_same THEN coalesce((newest ->> 'times')::bigint, 1) + 1 END,
            'since', CASE WHEN is_same THEN coalesce((newest ->> 'since')::bigint, (newest ->> 'at')::bigint) END
        ))::text || history[CASE WHEN is_same THEN 2 ELSE 1 END:]
    )[1:20]
    FROM (SELECT history[1]::json AS newest) last, LATERAL (
        SELECT newest IS NOT NULL AND newest ->> 'state' = state AND newest ->> 'reason' IS NOT DISTINCT FROM reason
               AND coalesce(host = old_host, true) AND newest ->> 'from' IS NULL AS is_same
    ) compared
$$;
