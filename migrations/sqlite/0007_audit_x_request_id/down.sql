ALTER TABLE audit DROP COLUMN x_request_id;
