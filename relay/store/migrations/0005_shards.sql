-- Ingesters that each keep their own shard (delivery.failover_after_sec 0): which repos move when their list changes.

-- JSON, a list of lists of addresses: all lists with which anything may have been delivered since a start last compared them; the last one is
-- the one in force. Null: never with shards.
ALTER TABLE partition ADD COLUMN shards jsonb;
