//! What start timestamps say about counters: when a counter began to count from zero.
//!
//! Source: `isStartTimestampReset` and `checkStartTimeOverlap` of Prometheus's `functions.go`.

use crate::eval::window::WindowSample;

/// Whether the counter began anew between two samples. Unknown (0), impossible and OpenTelemetry's "unknown"
/// (equal to the sample's time) starts say nothing.
pub(super) fn started_between(before: WindowSample<'_>, current: WindowSample<'_>) -> bool {
    if current.start == 0 || current.start >= current.timestamp || current.start < before.timestamp {
        return false;
    }
    if current.start > before.timestamp {
        return true;
    }
    // It begins at the sample before: a delta, or a counter of unknown start.
    before.start != 0 && before.start < before.timestamp
}

/// Whether a sample claims to count what the sample before it has counted already.
pub(super) fn starts_overlap(before: WindowSample<'_>, current: WindowSample<'_>) -> bool {
    current.start != 0 && current.start < before.timestamp && current.start != before.start
}
