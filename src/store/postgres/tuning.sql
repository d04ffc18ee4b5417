-- Storage and vacuum settings of the tables. docs/decisions/0008-postgresql.md gives the reasons.
-- An engine that lacks these settings works without them.

-- Leaves room on each page for new versions of some rows. A refresh then writes the new version of
-- a row to the same page, and changes no index.
ALTER TABLE sessions SET (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    vacuum_truncate = false
);

-- These tables are queues: rows are added at one end and deleted at the other.
ALTER TABLE IF EXISTS audit_before SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    vacuum_truncate = false
);
ALTER TABLE IF EXISTS audit_default SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);
ALTER TABLE blacklist SET (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    vacuum_truncate = false
);

-- Each of these tables has one row, which is rewritten all the time. The page of the row has room
-- for many versions of it, and the next writer prunes the old versions.
ALTER TABLE feed_head SET (
    fillfactor = 10,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0
);
ALTER TABLE sweeper SET (fillfactor = 10);

-- This table has a few rows, each of which is rewritten twice a second.
ALTER TABLE replicas SET (
    fillfactor = 10,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0
);
