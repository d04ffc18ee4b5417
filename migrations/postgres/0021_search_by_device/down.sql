DROP INDEX sessions_of_device;
