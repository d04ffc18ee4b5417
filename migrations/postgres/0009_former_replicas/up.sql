-- First, because a sweep holds this row for longest: whoever waits for it should hold nothing yet.
ALTER TABLE sweeper ADD COLUMN expiries_recorded_until timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00';
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

COMMENT ON TABLE sweeper IS 'How far sweeps have come: one row.';
COMMENT ON COLUMN sweeper.forgotten_until IS 'The latest expires_at of a blacklist row that was ever deleted. What had expired by then stays expired, even if the clock goes back';
COMMENT ON COLUMN sweeper.expiries_recorded_until IS 'The audit has every session that expired before this instant and had not been ended';
COMMENT ON COLUMN sessions.sweep_on IS 'When the sweeper is to look at the row: either it has expired by then, and that is recorded, or it is looked at again when it will have; never after it was over. A refresh leaves it alone, so that it changes no index';
COMMENT ON COLUMN audit.action IS 'What was done: docs/audit.md lists the actions';
