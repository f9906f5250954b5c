//! Prometheus durations: `1h30m`, `5m`, `250ms`, `0`.
//!
//! A year is 365 days and a week is 7, always. Source: `model.ParseDuration` and `Duration.String` of
//! prometheus/common.

/// Units from large to small, in milliseconds. They must appear in this order in a text.
const UNITS: [(&str, i64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Longest duration: what 63 bits of nanoseconds hold.
const DURATION_MS_MAX: i64 = i64::MAX / 1_000_000;

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// There is nothing.
    #[error("empty duration string")]
    Empty,
    /// The text does not have the form of a duration.
    #[error("not a valid duration string: {text:?}")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// A unit that does not exist.
    #[error("unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// What was given.
        text: String,
    },
    /// More than 292 years.
    #[error("duration out of range")]
    OutOfRange,
}

/// Reads a Prometheus duration as milliseconds.
pub fn parse_duration(text: &str) -> Result<i64, InvalidDuration> {
    match text {
        "" => return Err(InvalidDuration::Empty),
        "0" => return Ok(0),
        _ => {}
    }
    let malformed = || InvalidDuration::Malformed { text: text.into() };
    let mut rest = text;
    let mut total_ms: i64 = 0;
    let mut next_unit = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        if digits == 0 || letters == 0 {
            return Err(malformed());
        }
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        let Some(place) = UNITS.iter().position(|(name, _)| *name == unit) else {
            return Err(InvalidDuration::UnknownUnit { unit: unit.into(), text: text.into() });
        };
        if place < next_unit {
            return Err(malformed());
        }
        next_unit = place + 1;
        let number: i64 = number.parse().map_err(|_| InvalidDuration::OutOfRange)?;
        total_ms = number
            .checked_mul(UNITS[place].1)
            .and_then(|part| total_ms.checked_add(part))
            .filter(|total| *total <= DURATION_MS_MAX)
            .ok_or(InvalidDuration::OutOfRange)?;
        rest = &rest[digits + letters..];
    }
    Ok(total_ms)
}

/// Writes milliseconds as a Prometheus duration; a negative one with a leading `-`. Years and weeks
/// appear only where they leave no remainder.
pub fn format_duration(milliseconds: i64) -> String {
    if milliseconds == 0 {
        return "0s".into();
    }
    let mut text = String::from(if milliseconds < 0 { "-" } else { "" });
    let mut rest = milliseconds.unsigned_abs();
    for (unit, size_ms) in UNITS {
        let size_ms = size_ms.unsigned_abs();
        let exact_only = matches!(unit, "y" | "w");
        if exact_only && !rest.is_multiple_of(size_ms) {
            continue;
        }
        if rest >= size_ms {
            text.push_str(&format!("{}{unit}", rest / size_ms));
            rest %= size_ms;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_prometheus_reads() {
        for (text, want) in [
            ("0", 0),
            ("0s", 0),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1m30ms", 60_030),
            ("4s180ms", 4_180),
            ("1y", 365 * 86_400_000),
            ("2w3d", 17 * 86_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(want), "{text}");
        }
        for text in ["", "1", "5mm", "5m1h", "5m1m", "1.5h", "-1m", "m", "5m 1s", "5y1hs", "300y"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn writes_what_prometheus_writes() {
        for (milliseconds, want) in [
            (0, "0s"),
            (324_000, "5m24s"),
            (86_400_000, "1d"),
            (8 * 86_400_000, "8d"),
            (14 * 86_400_000, "2w"),
            (365 * 86_400_000, "1y"),
            (-60_000, "-1m"),
            (1_500, "1s500ms"),
        ] {
            assert_eq!(format_duration(milliseconds), want);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(milliseconds in 0..=DURATION_MS_MAX) {
            prop_assert_eq!(parse_duration(&format_duration(milliseconds)), Ok(milliseconds));
        }
    }
}
