-- Set when a session is ended, and when the sweeper has recorded that it expired. Until then a row
-- may have expired: idle_expires_at tells.
ALTER TABLE sessions ADD COLUMN is_over BOOLEAN NOT NULL DEFAULT FALSE;
UPDATE sessions SET is_over = TRUE WHERE ended_at IS NOT NULL;

DROP INDEX sessions_by_subject;
DROP INDEX sessions_by_tenant;
DROP INDEX sessions_by_end;
-- Quota, Revoke of a subject, listing of a subject. Those that live are found beside any number
-- that are over.
CREATE INDEX sessions_by_subject ON sessions (tenant, subject, is_over, id);
-- Revoke and listing of a tenant.
CREATE INDEX sessions_by_tenant ON sessions (tenant, is_over, id);
-- The sweeper: sessions whose expiry is to be recorded, and sessions to be deleted.
CREATE INDEX sessions_by_expiry ON sessions (idle_expires_at) WHERE NOT is_over;
CREATE INDEX sessions_by_end ON sessions (coalesce(ended_at, idle_expires_at)) WHERE is_over;

-- Subjects with very many sessions, whose number is kept so that a creation need not count them.
CREATE TABLE large_subjects (
    tenant TEXT NOT NULL,
    subject TEXT NOT NULL,
    sessions BIGINT NOT NULL,            -- at least as many as live, as far as they have a limit
    counted_at BIGINT NOT NULL,          -- when they were counted last
    PRIMARY KEY (tenant, subject)
) WITHOUT ROWID;

-- Entries of kind 'subject': the key is the tenant, the byte 1F and the subject, and session_id is
-- the session that stays. Set while sessions that an entry of a tenant or subject covers may be
-- left to be ended.
ALTER TABLE blacklist ADD COLUMN unfinished BOOLEAN NOT NULL DEFAULT FALSE;
UPDATE blacklist SET unfinished = TRUE WHERE kind = 'tenant';
CREATE INDEX blacklist_unfinished ON blacklist (seq) WHERE unfinished;
-- The sweeper: entries of tenants and subjects that have expired, among however many others.
CREATE INDEX blacklist_of_all ON blacklist (expires_at) WHERE kind IN ('tenant', 'subject');
