DROP VIEW readable_audit;
ALTER TABLE audit DROP COLUMN client_id;
ALTER TABLE audit DROP COLUMN created_before;
ALTER TABLE audit DROP COLUMN authenticated_before;
DROP INDEX blacklist_walked;
DELETE FROM blacklist WHERE kind < 'b';
ALTER TABLE blacklist DROP COLUMN ended_sessions;
ALTER TABLE blacklist DROP COLUMN walked_at;
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
