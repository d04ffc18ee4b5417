-- Tells the planner that there are many tenants and subjects, whatever a sample of the rows shows.
-- Where a few subjects have most sessions, it would otherwise take each subject to have a large
-- share of all sessions, and read "the newest of a subject" by primary key, through the sessions of
-- all others. A negative number is a share of the number of rows. It counts from the next ANALYZE
-- on. Databases that speak the language of PostgreSQL, but have another planner, may refuse it.
DO $$
BEGIN
    ALTER TABLE sessions ALTER COLUMN subject SET (n_distinct = -0.5);
    ALTER TABLE sessions ALTER COLUMN tenant SET (n_distinct = -0.01);
EXCEPTION
    WHEN feature_not_supported OR syntax_error THEN
        NULL;
END
$$;
ANALYZE sessions;
