CREATE TABLE replicas (
    incarnation uuid NOT NULL PRIMARY KEY,
    joined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    renewals bigint NOT NULL DEFAULT 0,
    applied bigint NOT NULL,
    name text NOT NULL,
    version text NOT NULL
);

COMMENT ON TABLE replicas IS 'A process that serves from this database. It renews its row twice a second; one that stands still is removed by another process.';
COMMENT ON COLUMN replicas.incarnation IS 'Drawn anew by each process that starts';
COMMENT ON COLUMN replicas.renewed_at IS 'By the clock of the database, for people: nothing is decided by it';
COMMENT ON COLUMN replicas.renewals IS 'Counts the renewals';
COMMENT ON COLUMN replicas.applied IS 'The seq up to which it has applied the blacklist to its memory';
COMMENT ON COLUMN replicas.name IS 'The name of its machine';
COMMENT ON COLUMN replicas.version IS 'Of the service';
