"""Items -> pictures and clips -> shards."""
