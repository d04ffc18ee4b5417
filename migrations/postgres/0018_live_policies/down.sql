ALTER TABLE sessions
    DROP COLUMN refresh_mode,
    DROP COLUMN extended_at,
    DROP COLUMN earlier_tokens_expire_at;
