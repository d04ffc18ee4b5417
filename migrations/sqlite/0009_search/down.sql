DROP VIEW readable_audit;
DROP VIEW readable_blacklist;
DROP VIEW readable_sessions;
DROP INDEX audit_by_session;
DROP INDEX audit_by_subject;
ALTER TABLE sessions DROP COLUMN created_by;
