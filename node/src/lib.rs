//! The server binary: configuration, listeners, wiring.
