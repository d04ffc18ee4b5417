-- The time for which the previous refresh token yields the current one: 'grace' (refresh_grace
-- alone) or 'until_used' (until the current one is presented, at most replay_limit).
ALTER TABLE sessions ADD COLUMN replay TEXT NOT NULL DEFAULT 'grace';
-- The longest replay until_used, counted from refreshed_at; the default is 24 hours.
ALTER TABLE sessions ADD COLUMN replay_limit BIGINT NOT NULL DEFAULT 86400000000;
