-- Sessions of another system can be imported, with refresh tokens that their clients exchange once.
-- Each of these tokens stands for the first refresh token of an imported session.
CREATE TABLE legacy_refresh_tokens (
    hash BLOB NOT NULL PRIMARY KEY,      -- SHA-256 of the text of the token
    session_id BLOB NOT NULL,            -- the session; its row may have been deleted since
    secret BLOB NOT NULL,                -- sessions.lineage_secret at the import; once a
                                         -- reauthentication has changed it, the token is invalid
    expires_at BIGINT NOT NULL           -- sessions.expires_at at the import; the sweeper deletes
                                         -- the row soon after
) WITHOUT ROWID;

-- The sweeper.
CREATE INDEX legacy_refresh_tokens_by_expiry ON legacy_refresh_tokens (expires_at);
