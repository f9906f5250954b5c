//! Wire formats: internal gRPC and remote-write, and their conversion to the model.
