-- The newest are counted first. The oldest are evicted first, and until the next vacuum the index
-- keeps an entry of each beside those that live: a count that began there would walk over all of
-- them to find that there is no room.
CREATE OR REPLACE FUNCTION sessions_in_turn(turn bigint, of_tenant text, of_subject text, at timestamptz, others bigint, added bigint)
RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    is_ours boolean;
    known bigint;
BEGIN
    -- Elsewhere the count would not see what those before us have committed.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN NULL;
    END IF;
    -- An engine without such locks is given no turn, and never looks at this.
    IF turn IS NOT NULL THEN
        -- An expression, which takes a fifth of the time of a statement.
        is_ours := pg_advisory_xact_lock(turn) IS NOT NULL;
    END IF;
    IF others >= 256 THEN
        UPDATE large_subjects AS l SET sessions = l.sessions + added
        WHERE l.tenant = of_tenant AND l.subject = of_subject AND l.sessions + added <= others + 1
            AND abs(extract(epoch FROM at - l.counted_at)) <= 60
        RETURNING l.sessions - added INTO known;
        IF FOUND THEN
            RETURN known;
        END IF;
        known := (SELECT count(*) FROM (
            SELECT FROM sessions AS s
            WHERE s.tenant = of_tenant AND s.subject = of_subject AND NOT s.is_over
            ORDER BY s.id DESC
            LIMIT 257
        ) AS few);
        RETURN CASE WHEN known <= 256 THEN known END;
    END IF;
    RETURN (SELECT count(*) FROM (
        SELECT FROM sessions AS s
        WHERE s.tenant = of_tenant AND s.subject = of_subject AND NOT s.is_over
            AND s.ended_at IS NULL AND s.idle_expires_at > at
        ORDER BY s.id DESC
        LIMIT others + 1
    ) AS few);
END
$$;
