//! Three replicas as one: quorum append and read merge.
