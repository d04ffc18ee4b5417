ALTER TABLE replicas ADD COLUMN watchers bigint NOT NULL DEFAULT 0;

COMMENT ON COLUMN replicas.watchers IS 'The number of processes that verify tokens themselves, under leases of this replica';
