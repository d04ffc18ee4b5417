DROP TABLE signing_keys;
DROP TABLE sweeper;
DROP TABLE feed_head;
DROP TABLE blacklist;
DROP TABLE sessions;
