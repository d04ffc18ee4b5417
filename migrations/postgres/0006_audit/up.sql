CREATE TABLE audit (
    at timestamptz NOT NULL,
    id uuid NOT NULL,
    session_id uuid,
    sessions bigint,
    left_out bigint NOT NULL,
    peer inet,
    action text NOT NULL,
    caller text NOT NULL,
    tenant text,
    subject text,
    kid text,
    reason text,
    note text NOT NULL,
    PRIMARY KEY (at, id)
);

COMMENT ON TABLE audit IS 'Who did what to whose sessions, why, when and from where. Rows are added and never changed; the sweeper deletes them when they are old.';
COMMENT ON COLUMN audit.at IS 'When, by the clock of the replica that was asked';
COMMENT ON COLUMN audit.id IS 'Its name in the log, too: a UUID of version 7';
COMMENT ON COLUMN audit.session_id IS 'The session that it is about, if about one';
COMMENT ON COLUMN audit.sessions IS 'How many live sessions ended';
COMMENT ON COLUMN audit.left_out IS 'How many denied calls of the caller came since its row before and have none, because there were too many';
COMMENT ON COLUMN audit.peer IS 'From where';
COMMENT ON COLUMN audit.action IS 'session_created, refresh_reused, token_revoked, session_revoked, subject_revoked, tenant_revoked, key_rotated, key_revoked or caller_denied';
COMMENT ON COLUMN audit.caller IS 'Who: a caller of the configuration, anybody if callers are not told apart, or countersign for the service itself';
COMMENT ON COLUMN audit.tenant IS 'The tenant that it is about; empty for the default tenant';
COMMENT ON COLUMN audit.subject IS 'Whose session it is about';
COMMENT ON COLUMN audit.kid IS 'The key that it is about';
COMMENT ON COLUMN audit.reason IS 'Why a session ended, as in sessions.end_reason';
COMMENT ON COLUMN audit.note IS 'The note that came with it; of a denied caller, what was asked for';

COMMENT ON INDEX audit_pkey IS 'By time: the sweeper and who asks later. What is written twice is there once';
