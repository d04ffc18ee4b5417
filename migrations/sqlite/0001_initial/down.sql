DROP TABLE signing_keys;
DROP TABLE sweeper;
DROP TABLE blacklist;
DROP TABLE sessions;
