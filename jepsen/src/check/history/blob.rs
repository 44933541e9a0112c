//! Bytes that a person can read in a history.

use std::{fmt, ops::Deref};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Keys and values. Written as text, with every byte that is not printable ASCII escaped as Rust does: `\n`, `\xff`.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Bytes);

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for Blob {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Blob {
        Blob(bytes)
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        Blob(bytes.into())
    }
}

impl From<String> for Blob {
    fn from(text: String) -> Blob {
        Blob(text.into())
    }
}

impl From<&str> for Blob {
    fn from(text: &str) -> Blob {
        Blob(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        unescape(&text).map(Blob::from).ok_or_else(|| D::Error::custom(format!("not escaped bytes: {text}")))
    }
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let unescaped = match byte {
            b'\\' => match rest.next()? {
                b't' => b'\t',
                b'r' => b'\r',
                b'n' => b'\n',
                b'x' => hex_digit(rest.next()?)? << 4 | hex_digit(rest.next()?)?,
                quoted @ (b'\'' | b'"' | b'\\') => quoted,
                _ => return None,
            },
            b' '..=b'~' => byte,
            _ => return None,
        };
        bytes.push(unescaped);
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all = Blob::from((0..=255).collect::<Vec<u8>>());
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Blob>(&text).unwrap(), all);
    }

    #[test]
    fn text_that_is_not_escaped_bytes_is_refused() {
        for text in [r"\q", r"\x", r"\xg0", "\\", "é", "\n"] {
            assert_eq!(unescape(text), None, "{text:?}");
        }
    }
}
