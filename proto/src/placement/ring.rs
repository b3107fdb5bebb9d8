//! The consistent-hash ring, in its two uses: shard replicas on nodes, and point ids on home shards.
