//! Durations as people write them: `250ms`, `5s`, `10m`, `24h`, `90d`.

use std::time::Duration;

/// Text that is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number with one of the units ms, s, m, h, d, for example 90d")]
pub struct ParseDurationError;

/// Reads a whole number with one of the units `ms`, `s`, `m`, `h`, `d`. At most about 584 million
/// years, the range of milliseconds in 64 bits.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or(ParseDurationError)?;
    let (digits, unit) = text.split_at(split);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(ParseDurationError),
    };
    let count: u64 = digits.parse().map_err(|_| ParseDurationError)?;
    count
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or(ParseDurationError)
}

/// Writes a duration so that [`parse`] reads it back, to the millisecond.
pub fn format(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit_ms, unit) in [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, ms) in [
            ("0s", 0),
            ("250ms", 250),
            ("5s", 5_000),
            (" 10m ", 600_000),
            ("24h", 86_400_000),
            ("90d", 7_776_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "s",
            "5",
            "-1s",
            "1.5h",
            "5 s",
            "5S",
            "1d2h",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert_eq!(parse(text), Err(ParseDurationError), "{text:?}");
        }
    }

    #[test]
    fn written_and_read_back() {
        for ms in [0, 1, 999, 1_000, 61_000, 3_600_000, 86_400_000, 86_400_001] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
        assert_eq!(format(Duration::from_secs(90 * 86_400)), "90d");
    }
}
