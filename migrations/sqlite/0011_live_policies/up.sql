-- A session may keep its refresh token, and stricter limits may reach it.
-- rotate: a refresh yields a new refresh token; reuse: the refresh token stays the same, so its theft
-- is not noticed.
ALTER TABLE sessions ADD COLUMN refresh_mode TEXT NOT NULL DEFAULT 'rotate';
-- When a reauthentication last began the lifetime of the session anew; NULL if none did, so that the
-- lifetime counts from created_at.
ALTER TABLE sessions ADD COLUMN extended_at BIGINT;
-- No access token that was issued before stricter limits reached the session is valid from then on;
-- NULL if none have reached it.
ALTER TABLE sessions ADD COLUMN earlier_tokens_expire_at BIGINT;
