//! Repository chores: tidy.
