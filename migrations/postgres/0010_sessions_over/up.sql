-- All at once, before the indexes are built: whoever holds one of them undoes this at once, and not
-- at the end.
LOCK TABLE sessions, blacklist IN ACCESS EXCLUSIVE MODE;

ALTER TABLE sessions ADD COLUMN is_over boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN sessions.is_over IS 'Set when it is ended, and when the sweeper has recorded that it expired. Until then it may have expired: idle_expires_at tells. A replica of an older version ends it without this; the sweeper sets it then';
COMMENT ON COLUMN sessions.sweep_on IS 'When the sweeper is to look at the row: never after it was over, and once is_over is set exactly when it was over. A refresh leaves it alone, so that it changes no index';

CREATE INDEX sessions_of_tenant ON sessions (tenant, is_over, id);
COMMENT ON INDEX sessions_of_tenant IS 'Revoke and listing of a tenant';
-- After the one above: while the table is empty both seem to cost the same for a subject, and then
-- the newer one is taken.
CREATE INDEX sessions_of_subject ON sessions (tenant, subject, is_over, id);
COMMENT ON INDEX sessions_of_subject IS 'Quota, Revoke of a subject, listing of a subject. Those that live are found beside any number that are over';
CREATE INDEX sessions_to_sweep ON sessions (is_over, sweep_on);
COMMENT ON INDEX sessions_to_sweep IS 'The sweeper: sessions whose expiry is to be recorded, and sessions to be deleted';
-- An older version finds its sessions by the beginning of the new ones.
DROP INDEX sessions_by_tenant;
DROP INDEX sessions_by_subject;
DROP INDEX sessions_by_sweep;

CREATE TABLE large_subjects (
    sessions bigint NOT NULL,
    counted_at timestamptz NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, subject)
);

COMMENT ON TABLE large_subjects IS 'Subjects with very many sessions, whose number is kept so that a creation need not count them. Written by who has the turn of the subject.';
COMMENT ON COLUMN large_subjects.sessions IS 'At least as many as live, but for those that were created without a limit since they were counted';
COMMENT ON COLUMN large_subjects.counted_at IS 'When they were counted last';

CREATE FUNCTION sessions_in_turn(turn bigint, of_tenant text, of_subject text, at timestamptz, others bigint, added bigint)
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
            LIMIT 257
        ) AS few);
        RETURN CASE WHEN known <= 256 THEN known END;
    END IF;
    RETURN (SELECT count(*) FROM (
        SELECT FROM sessions AS s
        WHERE s.tenant = of_tenant AND s.subject = of_subject AND NOT s.is_over
            AND s.ended_at IS NULL AND s.idle_expires_at > at
        LIMIT others + 1
    ) AS few);
END
$$;

COMMENT ON FUNCTION sessions_in_turn IS 'At least as many live sessions as a subject has, and no more than others + 1, counted when all who took the same turn before have committed; nobody else gets that turn until the transaction ends. Where this finds room for added more, they are counted as being there. NULL if that cannot be told.';

ALTER TABLE blacklist ADD COLUMN unfinished boolean NOT NULL DEFAULT false;
UPDATE blacklist SET unfinished = true WHERE kind = 'tenant';
CREATE INDEX blacklist_unfinished ON blacklist (seq) WHERE unfinished;
CREATE INDEX blacklist_of_all ON blacklist (expires_at) WHERE kind IN ('tenant', 'subject');
COMMENT ON INDEX blacklist_of_all IS 'The sweeper: entries of tenants and subjects that have expired, among however many others';

COMMENT ON COLUMN blacklist.unfinished IS 'Whether sessions that the entry of a tenant or subject covers may be left to be ended';
COMMENT ON COLUMN blacklist.up_to IS 'Of a tenant or subject: sessions created up to here have ended';
COMMENT ON COLUMN blacklist.kind IS 'session, token, tenant or subject';
COMMENT ON COLUMN blacklist.key IS 'The sid, the jti, the name of the tenant, or that name, the character U+001F and the name of the subject';
COMMENT ON COLUMN blacklist.session_id IS 'The session that it belongs to, if to one; of a subject, the session that stays';
COMMENT ON INDEX blacklist_unfinished IS 'The job that ends those sessions';
