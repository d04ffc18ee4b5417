DROP VIEW readable_sessions;
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
DROP INDEX sessions_by_device;
