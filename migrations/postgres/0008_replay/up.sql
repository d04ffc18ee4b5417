ALTER TABLE sessions
    ADD COLUMN replay text NOT NULL DEFAULT 'grace',
    ADD COLUMN replay_limit interval NOT NULL DEFAULT '24 hours';

COMMENT ON COLUMN sessions.replay IS 'For how long the previous refresh token yields the current one: grace (refresh_grace alone) or until_used (until the current one is presented, at most replay_limit)';
COMMENT ON COLUMN sessions.replay_limit IS 'The longest replay until_used, counted from refreshed_at; hours and smaller units only';
