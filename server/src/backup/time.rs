//! Wall-clock time as it stands in backups: milliseconds since 1970, shown as RFC 3339.

use std::{fmt, str::FromStr, time::SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use storage::host;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub unix_ms: i64,
}

impl Time {
    pub fn now() -> Time {
        let since = host::system_time().duration_since(SystemTime::UNIX_EPOCH);
        // A clock before 1970 is not set.
        Time { unix_ms: since.map_or(0, |since| since.as_millis() as i64) }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.unix_ms) * 1_000_000);
        match time.ok().and_then(|time| time.format(&Rfc3339).ok()) {
            Some(text) => f.write_str(&text),
            None => write!(f, "{} ms", self.unix_ms),
        }
    }
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Time, String> {
        let time = OffsetDateTime::parse(text, &Rfc3339);
        let time = time.map_err(|_| format!("{text:?} is not a time such as 2026-11-21T18:00:00Z"))?;
        Ok(Time { unix_ms: (time.unix_timestamp_nanos() / 1_000_000) as i64 })
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_and_read_with_its_offset() {
        let time = Time { unix_ms: 1_795_261_915_250 };
        assert_eq!(time.to_string(), "2026-11-21T11:51:55.25Z");
        assert_eq!(time.to_string().parse(), Ok(time));
        assert_eq!("2026-11-21T12:51:55.25+01:00".parse(), Ok(time));
        assert!("yesterday".parse::<Time>().is_err());
    }
}
