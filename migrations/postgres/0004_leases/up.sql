-- The history that the server is in: a standby that takes over begins a new one. An engine that
-- does not tell has one for ever.
DO $$
BEGIN
    PERFORM pg_walfile_name(pg_current_wal_insert_lsn());
    CREATE FUNCTION feed_timeline() RETURNS bigint LANGUAGE sql VOLATILE AS
        'SELECT (''x'' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint';
EXCEPTION WHEN OTHERS THEN
    CREATE FUNCTION feed_timeline() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT 0::bigint';
END
$$;

COMMENT ON FUNCTION feed_timeline() IS 'The timeline that the server writes';

ALTER TABLE feed_head
    ADD COLUMN timeline bigint NOT NULL DEFAULT 0,
    ADD COLUMN database uuid NOT NULL DEFAULT gen_random_uuid();
UPDATE feed_head SET timeline = feed_timeline();

COMMENT ON COLUMN feed_head.timeline IS 'The timeline in which replicas lists every replica. After a failover the replicas bring it up to date';
COMMENT ON COLUMN feed_head.database IS 'Which database this is. A replica that suddenly finds another believes nothing';

ALTER TABLE replicas ADD COLUMN holds_for interval NOT NULL DEFAULT '10 seconds';

COMMENT ON TABLE replicas IS 'A process that serves from this database. It renews its row all the time; one that stands still is removed by another process.';
COMMENT ON COLUMN replicas.renewals IS 'The number of its last renewal';
COMMENT ON COLUMN replicas.applied IS 'It accepts nothing that was revoked up to this seq';
COMMENT ON COLUMN replicas.holds_for IS 'How long it may stand still until it has stopped answering';
