-- Sessions can be revoked by client, and by the time of their creation or authentication, in one
-- tenant or in all.
ALTER TABLE blacklist
    ADD COLUMN ended_sessions bigint NOT NULL DEFAULT 0,
    ADD COLUMN walked_at timestamptz;

COMMENT ON COLUMN blacklist.kind IS 'session or token, or the kind of a cut-off: tenant and subject by creation; all_everywhere, all_of_client and all_of_client_everywhere by creation; all_authenticated_of_tenant, all_authenticated_everywhere, all_authenticated_of_client and all_authenticated_of_client_everywhere by authentication';
COMMENT ON COLUMN blacklist.key IS 'The sid or the jti; of a cut-off, the name of the tenant, or that name, the character U+001F and the name of the subject or the client_id; for all tenants, the client_id or nothing';
COMMENT ON COLUMN blacklist.tenant IS 'The tenant; empty also in the entry of a cut-off for all tenants';
COMMENT ON COLUMN blacklist.up_to IS 'Of a cut-off: the latest creation or authentication that it covers';
COMMENT ON COLUMN blacklist.unfinished IS 'Whether sessions that a cut-off covers may be left to be marked as ended';
COMMENT ON COLUMN blacklist.ended_sessions IS 'Of a cut-off: the sessions that were marked as ended since the entry became unfinished';
COMMENT ON COLUMN blacklist.walked_at IS 'Of a cut-off: the beginning of the last complete walk through the sessions that it may cover';

CREATE INDEX blacklist_walked ON blacklist (seq) WHERE unfinished OR walked_at IS NOT NULL;
COMMENT ON INDEX blacklist_walked IS 'ListRevocations';

ALTER TABLE audit
    ADD COLUMN client_id text,
    ADD COLUMN created_before timestamptz,
    ADD COLUMN authenticated_before timestamptz;

COMMENT ON COLUMN audit.client_id IS 'The client whose sessions were revoked';
COMMENT ON COLUMN audit.created_before IS 'Sessions that were created before this instant were revoked';
COMMENT ON COLUMN audit.authenticated_before IS 'Sessions whose user authenticated before this instant were revoked';
DO $$
BEGIN
    -- A partition must have the columns of its parent, even while it is not attached.
    IF (SELECT NOT relispartition FROM pg_class WHERE oid = to_regclass('audit_before')) THEN
        ALTER TABLE audit_before
            ADD COLUMN client_id text,
            ADD COLUMN created_before timestamptz,
            ADD COLUMN authenticated_before timestamptz;
    END IF;
END
$$;
