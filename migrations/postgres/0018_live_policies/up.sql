-- A session may keep its refresh token, and stricter limits may reach it.
ALTER TABLE sessions
    ADD COLUMN refresh_mode text NOT NULL DEFAULT 'rotate',
    ADD COLUMN extended_at timestamptz,
    ADD COLUMN earlier_tokens_expire_at timestamptz;

COMMENT ON COLUMN sessions.refresh_mode IS 'rotate: a refresh yields a new refresh token; reuse: the refresh token stays the same, so its theft is not noticed';
COMMENT ON COLUMN sessions.extended_at IS 'When a reauthentication last began the lifetime of the session anew; NULL if none did, so that the lifetime counts from created_at';
COMMENT ON COLUMN sessions.earlier_tokens_expire_at IS 'No access token that was issued before stricter limits reached the session is valid from then on; NULL if none have reached it';
