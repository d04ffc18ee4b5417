-- How the tables are stored and vacuumed, argued in docs/decisions/0008-postgresql.md. An engine
-- that knows none of these settings does without them.

-- Room on each page for the next version of some rows: a refresh then touches the page of its row
-- and no index.
ALTER TABLE sessions SET (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05,
    vacuum_truncate = false
);

-- Queues: rows come at one end and leave at the other.
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

-- One row each, rewritten all the time: room on its page for many versions, which the next writer
-- prunes.
ALTER TABLE feed_head SET (
    fillfactor = 10,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0
);
ALTER TABLE sweeper SET (fillfactor = 10);

-- A few rows, each rewritten twice a second.
ALTER TABLE replicas SET (
    fillfactor = 10,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0
);
