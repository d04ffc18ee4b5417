-- Sessions are searched by the caller that created them, and the audit by subject and by session.
-- The caller that created the session, as in audit.caller; NULL if an older version created it.
ALTER TABLE sessions ADD COLUMN created_by TEXT;

-- ListAudit of a subject.
CREATE INDEX audit_by_subject ON audit (tenant, subject, at, id) WHERE subject IS NOT NULL;
-- ListAudit of a session.
CREATE INDEX audit_by_session ON audit (session_id, at, id) WHERE session_id IS NOT NULL;

-- The tables with identifiers as UUIDs and instants in UTC, for people who read the file with the
-- sqlite3 shell. They leave out the columns that tokens are made of.
CREATE VIEW readable_sessions AS
SELECT
    lower(
        substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4)
        || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21)
    ) AS session_id,
    tenant,
    subject,
    client_id,
    policy,
    created_by,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1e6, 'unixepoch') AS created_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', refreshed_at / 1e6, 'unixepoch') AS refreshed_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', idle_expires_at / 1e6, 'unixepoch') AS idle_expires_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', expires_at / 1e6, 'unixepoch') AS expires_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', ended_at / 1e6, 'unixepoch') AS ended_at,
    end_reason,
    end_note,
    ip_address,
    user_agent,
    device_label,
    is_over
FROM sessions;

CREATE VIEW readable_blacklist AS
SELECT
    seq,
    kind,
    CASE
        WHEN kind IN ('session', 'token') THEN lower(
            substr(hex(key), 1, 8) || '-' || substr(hex(key), 9, 4) || '-' || substr(hex(key), 13, 4)
            || '-' || substr(hex(key), 17, 4) || '-' || substr(hex(key), 21)
        )
    END AS id,
    tenant,
    subject,
    strftime('%Y-%m-%dT%H:%M:%fZ', up_to / 1e6, 'unixepoch') AS up_to,
    reason,
    note,
    strftime('%Y-%m-%dT%H:%M:%fZ', revoked_at / 1e6, 'unixepoch') AS revoked_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', expires_at / 1e6, 'unixepoch') AS expires_at,
    unfinished
FROM blacklist;

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
    x_request_id
FROM audit;
