-- Watchers are processes that verify tokens themselves, under leases of this service. A service that
-- starts does not know the leases of the process before it. So it waits until they are over before
-- it acknowledges a revocation.
CREATE TABLE watchers (
    validity BIGINT NOT NULL PRIMARY KEY -- the one row is there while a watcher may hold a lease;
                                         -- microseconds after which none is valid any more
);
