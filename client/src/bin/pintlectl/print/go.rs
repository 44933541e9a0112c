//! Values as Go, and the libraries etcdctl prints with, write them.

use std::time::Duration;

/// A size: two digits, powers of 1000. Source: go-humanize, `Bytes`.
pub fn size(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[unit];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A duration: `1.5ms`, `2.000123s`, `1m2.5s`.
pub fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let decimal = |unit_nanos: u128, digits: usize| {
        let text = format!("{}.{:0digits$}", nanos / unit_nanos, nanos % unit_nanos);
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    match nanos {
        0 => "0s".to_string(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => decimal(1_000, 3) + "µs",
        1_000_000..1_000_000_000 => decimal(1_000_000, 6) + "ms",
        1_000_000_000..60_000_000_000 => decimal(1_000_000_000, 9) + "s",
        _ => {
            let minutes = duration.as_secs() / 60;
            let rest = duration - Duration::from_secs(minutes * 60);
            let rest =
                if rest < Duration::from_secs(1) { format!("{}s", rest.as_secs_f64()) } else { self::duration(rest) };
            match minutes / 60 {
                0 => format!("{minutes}m{rest}"),
                hours => format!("{hours}h{}m{rest}", minutes % 60),
            }
        }
    }
}

/// Bytes between double quotes, with the escapes of `%q`.
pub fn quote(bytes: &[u8]) -> String {
    let mut out = String::from('"');
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|character| quote_char(&mut out, character));
        chunk.invalid().iter().for_each(|byte| out += &format!("\\x{byte:02x}"));
    }
    out.push('"');
    out
}

fn quote_char(out: &mut String, character: char) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\u{7}' => out.push_str("\\a"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{b}' => out.push_str("\\v"),
        '\0'..' ' | '\u{7f}' => *out += &format!("\\x{:02x}", u32::from(character)),
        ' '..='~' => out.push(character),
        // One character of its debugging form: it can be printed.
        _ if character.escape_debug().count() == 1 => out.push(character),
        '\u{80}'..='\u{ffff}' => *out += &format!("\\u{:04x}", u32::from(character)),
        _ => *out += &format!("\\U{:08x}", u32::from(character)),
    }
}

/// Bytes as `--hex` shows them: `\x61\x62`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        let shown = [0, 9, 10, 999, 1000, 20_480, 9_950_000, 1_234_567_890].map(size);
        assert_eq!(shown, ["0 B", "9 B", "10 B", "999 B", "1.0 kB", "20 kB", "10 MB", "1.2 GB"]);
    }

    #[test]
    fn durations_are_printed_as_in_go() {
        let nanos = [0, 999, 1_500, 1_876_922, 2_000_000, 1_001_252_560, 60_000_000_000, 3_662_500_000_000];
        let shown = nanos.map(|nanos| duration(Duration::from_nanos(nanos)));
        assert_eq!(shown, ["0s", "999ns", "1.5µs", "1.876922ms", "2ms", "1.00125256s", "1m0s", "1h1m2.5s"]);
    }

    #[test]
    fn quotes_escape_what_cannot_be_printed() {
        assert_eq!(quote(b"a\"\\\t\x01\x7f"), r#""a\"\\\t\x01\x7f""#);
        assert_eq!(quote("é世".as_bytes()), "\"é世\"");
        assert_eq!(quote(b"\xff\xc3"), r#""\xff\xc3""#);
        assert_eq!(quote("\u{85}".as_bytes()), r#""\u0085""#);
    }
}
