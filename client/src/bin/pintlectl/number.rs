//! Numbers, switches and durations in arguments, with Go's syntax and Go's complaints.

use std::{num::IntErrorKind, time::Duration};

fn complaint(function: &str, text: &str, out_of_range: bool) -> String {
    let why = if out_of_range { "value out of range" } else { "invalid syntax" };
    format!("strconv.{function}: parsing {}: {why}", crate::print::go::quote(text.as_bytes()))
}

fn is_out_of_range(kind: &IntErrorKind) -> bool {
    matches!(kind, IntErrorKind::PosOverflow | IntErrorKind::NegOverflow)
}

/// An integer to this base.
pub fn int(text: &str, base: u32) -> Result<i64, String> {
    i64::from_str_radix(text, base).map_err(|error| complaint("ParseInt", text, is_out_of_range(error.kind())))
}

/// An integer without a sign.
pub fn uint(text: &str, base: u32) -> Result<u64, String> {
    if text.starts_with('+') {
        return Err(complaint("ParseUint", text, false));
    }
    u64::from_str_radix(text, base).map_err(|error| complaint("ParseUint", text, is_out_of_range(error.kind())))
}

/// A flag's number.
pub fn decimal(text: &str) -> Result<i64, String> {
    int(text, 10)
}

pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(complaint("ParseBool", text, false)),
    }
}

/// `1.5s`, `500ms`, `2m`, `1h30m`; and, which Go does not take, seconds without a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {}", crate::print::go::quote(text.as_bytes()));
    let (mut seconds, mut rest) = (0.0, text);
    if let Ok(plain) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(plain).map_err(|_| invalid());
    }
    while !rest.is_empty() {
        let number_ends = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, after) = rest.split_at(number_ends);
        let unit_ends = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_ends);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        seconds += number.parse::<f64>().map_err(|_| invalid())? * unit;
        rest = after;
    }
    if text.is_empty() { Err(invalid()) } else { Duration::try_from_secs_f64(seconds).map_err(|_| invalid()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_and_without_units() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h2m3s"), Ok(Duration::from_secs(3723)));
        for bad in ["", "s", "-1s", "5 s", "5d", "1..2s", "nan", "1s2"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn complaints_are_those_of_go() {
        assert_eq!(int("x", 10).unwrap_err(), "strconv.ParseInt: parsing \"x\": invalid syntax");
        let much = "99999999999999999999";
        assert_eq!(int(much, 10).unwrap_err(), format!("strconv.ParseInt: parsing \"{much}\": value out of range"));
        assert_eq!(uint("-1", 16).unwrap_err(), "strconv.ParseUint: parsing \"-1\": invalid syntax");
        assert_eq!(switch("maybe").unwrap_err(), "strconv.ParseBool: parsing \"maybe\": invalid syntax");
        assert_eq!((int("56f3a1fd1afb4e19", 16), switch("T")), (Ok(0x56f3_a1fd_1afb_4e19), Ok(true)));
    }
}
