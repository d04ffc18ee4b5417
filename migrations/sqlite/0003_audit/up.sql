-- Who did what to whose sessions, why, when and from where. Rows are added and never changed; the
-- sweeper deletes them when they are old. They lie in the order of time, which serves the sweeper
-- and who asks later. What is written twice is there once.
CREATE TABLE audit (
    at BIGINT NOT NULL,
    id BLOB NOT NULL,                    -- its name in the log, too: a UUID of version 7
    action TEXT NOT NULL,                -- 'session_created', 'refresh_reused', 'token_revoked', 'session_revoked',
                                         -- 'subject_revoked', 'tenant_revoked', 'key_rotated',
                                         -- 'key_revoked', 'caller_denied'
    caller TEXT NOT NULL,                -- one of the configuration, 'anybody', or 'countersign' for the service itself
    peer TEXT,                           -- from where
    tenant TEXT,                         -- empty for the default tenant
    subject TEXT,                        -- whose session it is about
    session_id BLOB,
    kid TEXT,                            -- the key that it is about
    reason TEXT,                         -- why a session ended, as in sessions.end_reason
    note TEXT NOT NULL,                  -- that came with it; of a denied caller, what was asked for
    sessions BIGINT,                     -- how many live sessions ended
    left_out BIGINT NOT NULL,            -- denied calls of the caller since its row before that have none: too many
    PRIMARY KEY (at, id)
) WITHOUT ROWID;
