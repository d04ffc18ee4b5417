-- Sessions of another system can be imported, with refresh tokens that their clients exchange once.
CREATE TABLE legacy_refresh_tokens (
    session_id uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    hash bytea NOT NULL PRIMARY KEY,
    secret bytea NOT NULL
);

COMMENT ON TABLE legacy_refresh_tokens IS 'Refresh tokens of another system. Each stands for the first refresh token of an imported session';
COMMENT ON COLUMN legacy_refresh_tokens.session_id IS 'The session; its row may have been deleted since';
COMMENT ON COLUMN legacy_refresh_tokens.expires_at IS 'sessions.expires_at at the import. The sweeper deletes the row soon after';
COMMENT ON COLUMN legacy_refresh_tokens.hash IS 'SHA-256 of the text of the token';
COMMENT ON COLUMN legacy_refresh_tokens.secret IS 'sessions.lineage_secret at the import. Once a reauthentication has changed that of the session, the token is invalid';

CREATE INDEX legacy_refresh_tokens_by_expiry ON legacy_refresh_tokens (expires_at);
COMMENT ON INDEX legacy_refresh_tokens_by_expiry IS 'The sweeper';
