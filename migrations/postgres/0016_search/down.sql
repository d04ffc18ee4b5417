DROP INDEX audit_of_session;
DROP INDEX audit_of_subject;
ALTER TABLE sessions DROP COLUMN created_by;
