CREATE FUNCTION live_sessions_in_turn(turn bigint, of_tenant text, of_subject text, at timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    is_ours boolean;
BEGIN
    -- Elsewhere the count would not see what those before us have committed.
    IF current_setting('transaction_isolation') = 'read committed' THEN
        -- An engine without such locks is given no turn, and never looks at this.
        IF turn IS NOT NULL THEN
            -- An expression, which takes a fifth of the time of a statement.
            is_ours := pg_advisory_xact_lock(turn) IS NOT NULL;
        END IF;
        RETURN (SELECT count(*) FROM sessions AS s WHERE s.tenant = of_tenant AND s.subject = of_subject
            AND s.ended_at IS NULL AND s.idle_expires_at > at);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION live_sessions_in_turn IS 'How many live sessions a subject has, counted when all who took the same turn before have committed; nobody else gets that turn until the transaction ends. NULL if that cannot be told.';
