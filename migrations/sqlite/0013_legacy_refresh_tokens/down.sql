DROP TABLE legacy_refresh_tokens;
