ALTER TABLE replicas ADD COLUMN address text NOT NULL DEFAULT '';

COMMENT ON COLUMN replicas.name IS 'Its name in the configuration; by default that of its machine';
COMMENT ON COLUMN replicas.address IS 'Where it listens for gRPC; empty if it is of an older version';

CREATE TABLE former_replicas (
    incarnation uuid NOT NULL PRIMARY KEY,
    joined_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied bigint NOT NULL,
    state text NOT NULL,
    name text NOT NULL,
    address text NOT NULL,
    version text NOT NULL
);

COMMENT ON TABLE former_replicas IS 'Replicas that do not serve any more, for people: nothing is decided by it. A row lives for a day, and there are at most 10 of one name and 100 altogether.';
COMMENT ON COLUMN former_replicas.ended_at IS 'When its row of replicas was deleted, by the clock of the database';
COMMENT ON COLUMN former_replicas.applied IS 'The last seq that it had reported as applied';
COMMENT ON COLUMN former_replicas.state IS 'left (it stopped in good order) or removed (by another one, because it had gone without a word)';

COMMENT ON COLUMN audit.action IS 'What was done: docs/audit.md lists the actions';
