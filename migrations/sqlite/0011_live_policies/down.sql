ALTER TABLE sessions DROP COLUMN earlier_tokens_expire_at;
ALTER TABLE sessions DROP COLUMN extended_at;
ALTER TABLE sessions DROP COLUMN refresh_mode;
