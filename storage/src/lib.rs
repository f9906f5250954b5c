//! One node's data: write-ahead log, head, chunks, label index, RocksDB. Knows no cluster.
