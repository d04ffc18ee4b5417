-- The identifier of the call (the header x-request-id) that asked for the action, if it had one.
ALTER TABLE audit ADD COLUMN x_request_id TEXT;
