-- Sessions are searched by the caller that created them, and the audit by subject and by session.
ALTER TABLE sessions ADD COLUMN created_by text;
COMMENT ON COLUMN sessions.created_by IS 'The caller that created the session, as in audit.caller; NULL if an older version created it';

CREATE INDEX audit_of_subject ON audit (tenant, subject, at, id) WHERE subject IS NOT NULL;
COMMENT ON INDEX audit_of_subject IS 'ListAudit of a subject';
CREATE INDEX audit_of_session ON audit (session_id, at, id) WHERE session_id IS NOT NULL;
COMMENT ON INDEX audit_of_session IS 'ListAudit of a session';
