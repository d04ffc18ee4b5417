-- Columns of fixed width come first, so that rows carry no padding. Texts that are looked up
-- compare by bytes (COLLATE "C"): no upgrade of the system's locales can disorder an index. `\d+
-- sessions` in psql shows the comments below.

CREATE TABLE sessions (
    id uuid NOT NULL PRIMARY KEY,
    access_token_id uuid NOT NULL,
    authenticated_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    refreshed_at timestamptz NOT NULL,
    idle_expires_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    sweep_on timestamptz NOT NULL,
    ended_at timestamptz,
    access_token_ttl interval NOT NULL,
    idle_timeout interval NOT NULL,
    refresh_grace interval NOT NULL,
    generation bigint NOT NULL,
    revision bigint NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    client_id text NOT NULL,
    audience text[] NOT NULL,
    scopes text[] NOT NULL,
    claims jsonb NOT NULL,
    acr text NOT NULL,
    amr text[] NOT NULL,
    user_agent text NOT NULL,
    ip_address text NOT NULL,
    device_label text NOT NULL,
    policy text NOT NULL,
    on_refresh text NOT NULL,
    lineage_secret bytea NOT NULL,
    refresh_key bytea NOT NULL,
    request_id text COLLATE "C",
    end_reason text,
    end_note text
);

COMMENT ON TABLE sessions IS 'A session, live or over. The sweeper deletes it some time after it was over.';
COMMENT ON COLUMN sessions.id IS 'The sid of its tokens, a UUID of version 7: sorts by creation';
COMMENT ON COLUMN sessions.access_token_id IS 'The jti issued at creation or at the last rotation';
COMMENT ON COLUMN sessions.authenticated_at IS 'When the user authenticated';
COMMENT ON COLUMN sessions.refreshed_at IS 'When its refresh token was last rotated; at first, when it was created';
COMMENT ON COLUMN sessions.idle_expires_at IS 'When it ends unless refreshed before; never after expires_at, so this alone says whether it has expired';
COMMENT ON COLUMN sessions.expires_at IS 'When it ends at the latest';
COMMENT ON COLUMN sessions.sweep_on IS 'When the sweeper is to look at the row; never after it was over. A refresh leaves it alone, so that it changes no index';
COMMENT ON COLUMN sessions.ended_at IS 'When it was ended before its time';
COMMENT ON COLUMN sessions.access_token_ttl IS 'How long its access tokens live at most; hours and smaller units only';
COMMENT ON COLUMN sessions.idle_timeout IS 'How long it lives without a refresh; hours and smaller units only';
COMMENT ON COLUMN sessions.refresh_grace IS 'How long the previous refresh token yields the current one; hours and smaller units only';
COMMENT ON COLUMN sessions.generation IS 'Of the current refresh token, counted from 1';
COMMENT ON COLUMN sessions.revision IS 'Counts the changes of the row';
COMMENT ON COLUMN sessions.tenant IS 'Empty for the default tenant';
COMMENT ON COLUMN sessions.subject IS 'Who is signed in';
COMMENT ON COLUMN sessions.policy IS 'Name of the policy that it was created under';
COMMENT ON COLUMN sessions.on_refresh IS 'keep_access_token or revoke_access_token';
COMMENT ON COLUMN sessions.lineage_secret IS '16 bytes that each refresh token of the session carries';
COMMENT ON COLUMN sessions.refresh_key IS 'The ring key of the current generation';
COMMENT ON COLUMN sessions.request_id IS 'Idempotency key of the creation';

CREATE INDEX sessions_by_tenant ON sessions (tenant, id);
COMMENT ON INDEX sessions_by_tenant IS 'Revoke and listing of a tenant';
-- After the one above: while the table is empty both seem to cost the same for a subject, and then
-- the newer one is taken.
CREATE INDEX sessions_by_subject ON sessions (tenant, subject, id);
COMMENT ON INDEX sessions_by_subject IS 'Quota, Revoke of a subject, listing of a subject';
CREATE UNIQUE INDEX sessions_by_request ON sessions (tenant, request_id) WHERE request_id IS NOT NULL;
COMMENT ON INDEX sessions_by_request IS 'Idempotent creation';
CREATE INDEX sessions_by_sweep ON sessions (sweep_on);
COMMENT ON INDEX sessions_by_sweep IS 'The sweeper';

CREATE TABLE blacklist (
    seq bigint NOT NULL PRIMARY KEY,
    session_id uuid,
    up_to timestamptz,
    revoked_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    kind text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    subject text,
    reason text NOT NULL,
    note text NOT NULL
);

COMMENT ON TABLE blacklist IS 'What is no longer accepted although its signature is good. A row lives no longer than the tokens that it stops.';
COMMENT ON COLUMN blacklist.seq IS 'Taken from feed_head: the order of the commits, without gaps, never used twice';
COMMENT ON COLUMN blacklist.session_id IS 'The session that it belongs to, if to one';
COMMENT ON COLUMN blacklist.up_to IS 'Of a tenant: sessions created up to here have ended';
COMMENT ON COLUMN blacklist.expires_at IS 'The sweeper may delete the row from here on';
COMMENT ON COLUMN blacklist.kind IS 'session, token or tenant';
COMMENT ON COLUMN blacklist.key IS 'The sid, the jti, or the name of the tenant';

CREATE UNIQUE INDEX blacklist_by_key ON blacklist (kind, key);
COMMENT ON INDEX blacklist_by_key IS 'Revoking the same thing again replaces the row; revoked tenants';
CREATE INDEX blacklist_by_expiry ON blacklist (expires_at);
COMMENT ON INDEX blacklist_by_expiry IS 'The sweeper';

CREATE TABLE feed_head (
    id boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (id),
    seq bigint NOT NULL
);

COMMENT ON TABLE feed_head IS 'One row: the last seq given out. Whoever writes to blacklist locks it last and until the commit.';

INSERT INTO feed_head (seq) VALUES (0);

CREATE TABLE sweeper (
    id boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (id),
    forgotten_until timestamptz NOT NULL
);

COMMENT ON TABLE sweeper IS 'One row: the latest expires_at of a blacklist row that was ever deleted. What had expired by then stays expired, even if the clock goes back.';

INSERT INTO sweeper (forgotten_until) VALUES ('1970-01-01 00:00:00+00');

CREATE TABLE signing_keys (
    created_at timestamptz NOT NULL,
    kid text COLLATE "C" NOT NULL PRIMARY KEY,
    purpose text NOT NULL,
    algorithm text NOT NULL,
    sealed bytea NOT NULL
);

COMMENT ON TABLE signing_keys IS 'Keys, sealed under the master key and bound to kid, purpose and algorithm.';
