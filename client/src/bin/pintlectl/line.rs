//! Lines of commands on standard input, as etcdctl splits them. Source: etcd, `etcdctl/ctlv3/command/util.go` (Argify).

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

/// Splits a line at spaces. What is between double quotes has Go's escapes, what is between single quotes has none. A
/// quote that is never closed is passed over.
pub fn split(line: &str) -> Result<Vec<OsString>, String> {
    let mut words = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let (word, length) = match first {
            '"' => match quoted_length(rest) {
                Some(length) => (Some(unquote(&rest[..length])?), length),
                None => (None, 1),
            },
            '\'' => match rest[1..].find('\'') {
                Some(end) => (Some(rest[1..=end].as_bytes().to_vec()), end + 2),
                None => (None, 1),
            },
            _ if first.is_ascii_whitespace() => (None, 1),
            _ => {
                let length = rest.find(|c: char| c.is_ascii_whitespace()).unwrap_or(rest.len());
                (Some(rest[..length].as_bytes().to_vec()), length)
            }
        };
        words.extend(word.map(OsString::from_vec));
        rest = &rest[length..];
    }
    Ok(words)
}

/// How long the string is that begins with a double quote, its quotes included.
pub fn quoted_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (position, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(position + 1),
            _ => (),
        }
    }
    None
}

/// The bytes that a string between double quotes stands for. Source: the Go specification, "String literals".
pub fn unquote(quoted: &str) -> Result<Vec<u8>, String> {
    let invalid = || format!("{quoted} is no valid string");
    let inner = quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"')).ok_or_else(invalid)?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(position) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..position]);
        let escape = &rest[position + 1..];
        let length = unescape(escape, &mut bytes).ok_or_else(invalid)?;
        rest = &escape[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

/// Adds what an escape stands for, and tells how long it is.
fn unescape(escape: &str, bytes: &mut Vec<u8>) -> Option<usize> {
    let number = |from: usize, to: usize, base: u32| u32::from_str_radix(escape.get(from..to)?, base).ok();
    let simple = match escape.chars().next()? {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        '"' => b'"',
        'x' => {
            bytes.push(u8::try_from(number(1, 3, 16)?).ok()?);
            return Some(3);
        }
        '0'..='7' => {
            bytes.push(u8::try_from(number(0, 3, 8)?).ok()?);
            return Some(3);
        }
        letter @ ('u' | 'U') => {
            let length = if letter == 'u' { 5 } else { 9 };
            let character = char::from_u32(number(1, length, 16)?)?;
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(length);
        }
        _ => return None,
    };
    bytes.push(simple);
    Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        split(line).unwrap().into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn lines_are_split_at_spaces_outside_of_quotes() {
        assert_eq!(words("put key1  \"two words\""), ["put", "key1", "two words"]);
        assert_eq!(words("put 'a b' 'c\\n'"), ["put", "a b", "c\\n"]);
        assert_eq!(words("put a \"tab\\there\""), ["put", "a", "tab\there"]);
        assert_eq!(words("put a \"open"), ["put", "a", "open"]);
        assert_eq!(words("a'b c"), ["a'b", "c"]);
        assert!(words("  ").is_empty());
        assert!(split("put \"\\q\"").is_err());
    }

    #[test]
    fn escapes_are_those_of_go() {
        assert_eq!(unquote(r#""\x00\377\u00e9\U0001f600\"""#).unwrap(), b"\0\xff\xc3\xa9\xf0\x9f\x98\x80\"");
        for bad in [r#""\'""#, r#""\400""#, r#""\xg0""#, r#""\u12""#, "abc"] {
            assert!(unquote(bad).is_err(), "{bad}");
        }
    }
}
