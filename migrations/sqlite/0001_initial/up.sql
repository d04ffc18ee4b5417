-- Instants are whole microseconds since 1970-01-01T00:00:00Z, spans are whole microseconds.
-- Identifiers are the 16 bytes of a UUID: `SELECT hex(id) FROM sessions` shows them.

CREATE TABLE sessions (
    id BLOB NOT NULL PRIMARY KEY,        -- the sid, a UUID of version 7: sorts by creation
    tenant TEXT NOT NULL,                -- empty for the default tenant
    subject TEXT NOT NULL,
    client_id TEXT NOT NULL,
    audience TEXT NOT NULL,              -- JSON array of texts
    scopes TEXT NOT NULL,                -- JSON array of texts
    claims TEXT NOT NULL,                -- JSON object
    acr TEXT NOT NULL,
    amr TEXT NOT NULL,                   -- JSON array of texts
    authenticated_at BIGINT NOT NULL,
    user_agent TEXT NOT NULL,
    ip_address TEXT NOT NULL,
    device_label TEXT NOT NULL,
    policy TEXT NOT NULL,
    access_token_ttl BIGINT NOT NULL,
    idle_timeout BIGINT NOT NULL,
    refresh_grace BIGINT NOT NULL,
    on_refresh TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    refreshed_at BIGINT NOT NULL,
    idle_expires_at BIGINT NOT NULL,     -- never after expires_at, so this alone says whether it has expired
    expires_at BIGINT NOT NULL,
    generation BIGINT NOT NULL,          -- of the current refresh token
    lineage_secret BLOB NOT NULL,        -- carried by each refresh token of the session
    refresh_key BLOB NOT NULL,           -- the ring key of the current generation
    access_token_id BLOB NOT NULL,       -- the jti issued at creation or at the last rotation
    request_id TEXT,                     -- idempotency key of the creation
    ended_at BIGINT,                     -- set if ended before its time
    end_reason TEXT,
    end_note TEXT,
    revision BIGINT NOT NULL
) WITHOUT ROWID;

-- Quota, Revoke of a subject, listing of a subject.
CREATE INDEX sessions_by_subject ON sessions (tenant, subject, id);
-- Revoke and listing of a tenant.
CREATE INDEX sessions_by_tenant ON sessions (tenant, id);
-- Idempotent creation.
CREATE UNIQUE INDEX sessions_by_request ON sessions (tenant, request_id) WHERE request_id IS NOT NULL;
-- The sweeper: when a session was over.
CREATE INDEX sessions_by_end ON sessions (coalesce(ended_at, idle_expires_at));

-- What is no longer accepted although its signature is good. A row lives no longer than the tokens
-- that it stops.
CREATE TABLE blacklist (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,  -- order of the commits, never used twice
    kind TEXT NOT NULL,                  -- 'session', 'token' or 'tenant'
    key BLOB NOT NULL,                   -- the sid, the jti, or the tenant's name in UTF-8
    up_to BIGINT,                        -- of a tenant: sessions created up to here have ended
    tenant TEXT NOT NULL,
    subject TEXT,
    session_id BLOB,
    reason TEXT NOT NULL,
    note TEXT NOT NULL,
    revoked_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,          -- the sweeper may delete the row from here on
    UNIQUE (kind, key)
);

CREATE INDEX blacklist_by_expiry ON blacklist (expires_at);

-- How far sweeps have come: one row.
CREATE TABLE sweeper (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    forgotten_until BIGINT NOT NULL      -- the latest expires_at ever deleted: what had expired by then stays expired
);

INSERT INTO sweeper (id, forgotten_until) VALUES (1, 0);

-- Keys, sealed under the master key and bound to kid, purpose and algorithm.
CREATE TABLE signing_keys (
    kid TEXT NOT NULL PRIMARY KEY,
    purpose TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    sealed BLOB NOT NULL,
    created_at BIGINT NOT NULL
) WITHOUT ROWID;
