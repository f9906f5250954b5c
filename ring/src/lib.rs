//! Who is there and who owns what: membership by gossip, hash ring, shards, placement. Sans-IO.
