//! Dates of timestamps, in UTC and the proleptic Gregorian calendar.

use crate::functions::FunctionId;
use crate::go_text::{to_float, to_integer};

const SECONDS_PER_DAY: i64 = 86_400;

/// A moment, taken apart.
struct Date {
    year: i64,
    /// 1 to 12.
    month: i64,
    /// 1 to 31.
    day: i64,
    days_since_epoch: i64,
    second_of_day: i64,
}

/// Takes seconds since the epoch apart. By Howard Hinnant's `civil_from_days`.
fn date(seconds: i64) -> Date {
    let days = seconds.div_euclid(SECONDS_PER_DAY);
    // Years start in March here, so that the leap day is the last of its year.
    let shifted = days.saturating_add(719_468);
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Date { year, month, day, days_since_epoch: days, second_of_day: seconds.rem_euclid(SECONDS_PER_DAY) }
}

fn is_leap_year(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap_year(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The part of a date that a function asks for, of seconds since the epoch (cut to whole ones).
pub(super) fn date_part(id: FunctionId, seconds: f64) -> Option<f64> {
    let date = date(to_integer(seconds));
    let part = match id {
        FunctionId::Year => date.year,
        FunctionId::Month => date.month,
        FunctionId::DayOfMonth => date.day,
        // The epoch was a Thursday.
        FunctionId::DayOfWeek => (date.days_since_epoch + 4).rem_euclid(7),
        FunctionId::DayOfYear => {
            let before: i64 = (1..date.month).map(|month| days_in_month(date.year, month)).sum();
            before + date.day
        }
        FunctionId::DaysInMonth => days_in_month(date.year, date.month),
        FunctionId::Hour => date.second_of_day / 3600,
        FunctionId::Minute => date.second_of_day / 60 % 60,
        _ => return None,
    };
    Some(to_float(part))
}

/// A timestamp as Go's `time.RFC3339` in UTC, without the fraction.
pub(crate) fn format_rfc3339(milliseconds: i64) -> String {
    let date = date(milliseconds.div_euclid(1000));
    let (hour, minute, second) =
        (date.second_of_day / 3600, date.second_of_day / 60 % 60, date.second_of_day % 60);
    format!("{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", date.year, date.month, date.day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        let part = |id, seconds| date_part(id, seconds).expect("a date function");
        // 2024-02-29 12:34:56 UTC, a Thursday.
        let leap = 1_709_210_096.0;
        assert_eq!(part(FunctionId::Year, leap), 2024.0);
        assert_eq!(part(FunctionId::Month, leap), 2.0);
        assert_eq!(part(FunctionId::DayOfMonth, leap), 29.0);
        assert_eq!(part(FunctionId::DayOfWeek, leap), 4.0);
        assert_eq!(part(FunctionId::DayOfYear, leap), 60.0);
        assert_eq!(part(FunctionId::DaysInMonth, leap), 29.0);
        assert_eq!(part(FunctionId::Hour, leap), 12.0);
        assert_eq!(part(FunctionId::Minute, leap), 34.0);
        assert_eq!(part(FunctionId::Year, -1.0), 1969.0);
        assert_eq!(format_rfc3339(1_709_210_096_789), "2024-02-29T12:34:56Z");
    }
}
