-- Sessions can be revoked by client, and by the time of their creation or authentication, in one
-- tenant or in all. These are cut-offs like those of tenants and subjects. Their kinds are
-- all_everywhere, all_of_client and all_of_client_everywhere by creation, and
-- all_authenticated_of_tenant, all_authenticated_everywhere, all_authenticated_of_client and
-- all_authenticated_of_client_everywhere by authentication. The key holds the tenant, or the tenant,
-- the character U+001F and the client_id; for all tenants, the client_id or nothing. The column
-- up_to holds the latest creation or authentication that is covered. The column tenant is also empty
-- for all tenants.

-- Of a cut-off: the sessions that were marked as ended since the entry became unfinished, and the
-- beginning of the last complete walk through the sessions that it may cover.
ALTER TABLE blacklist ADD COLUMN ended_sessions BIGINT NOT NULL DEFAULT 0;
ALTER TABLE blacklist ADD COLUMN walked_at BIGINT;
-- For ListRevocations.
CREATE INDEX blacklist_walked ON blacklist (seq) WHERE unfinished OR walked_at IS NOT NULL;

-- The client whose sessions were revoked, and the instant before which they had been created or
-- their users had authenticated.
ALTER TABLE audit ADD COLUMN client_id TEXT;
ALTER TABLE audit ADD COLUMN created_before BIGINT;
ALTER TABLE audit ADD COLUMN authenticated_before BIGINT;

DROP VIEW readable_audit;
CREATE VIEW readable_audit AS
SELECT
    strftime('%Y-%m-%dT%H:%M:%fZ', at / 1e6, 'unixepoch') AS at,
    action,
    caller,
    peer,
    tenant,
    subject,
    lower(
        substr(hex(session_id), 1, 8) || '-' || substr(hex(session_id), 9, 4) || '-'
        || substr(hex(session_id), 13, 4) || '-' || substr(hex(session_id), 17, 4) || '-'
        || substr(hex(session_id), 21)
    ) AS session_id,
    kid,
    reason,
    note,
    sessions,
    left_out,
    x_request_id,
    client_id,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_before / 1e6, 'unixepoch') AS created_before,
    strftime('%Y-%m-%dT%H:%M:%fZ', authenticated_before / 1e6, 'unixepoch')
        AS authenticated_before
FROM audit;
