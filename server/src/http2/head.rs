//! The head of a request: its header block, read.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, uri};
use proto::http2::hpack::{Decoder, HpackError};

/// What is kept of the blocks that were read last: clients send the same few again and again.
pub const KNOWN_MAX: usize = 8;
/// What a field counts for besides its name and value (RFC 9113, section 6.5.2).
const FIELD_BYTES: usize = 32;

#[derive(Debug)]
pub struct Head {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// Of the body.
    pub length: Option<u64>,
}

/// Why there is no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// (RFC 9113, section 8.1.1.)
    Request,
    /// The fields are longer than they may be.
    TooLarge,
}

/// Reads the blocks of a connection.
pub struct Heads {
    decoder: Decoder,
    bytes_max: usize,
    /// Blocks that left the table as it was, and the table they were read with: seen again with the same table, they
    /// mean the same.
    known: Vec<(Vec<u8>, Arc<Head>)>,
    known_changes: u64,
}

impl Heads {
    pub fn new(bytes_max: usize) -> Heads {
        Heads { decoder: Decoder::default(), bytes_max, known: Vec::new(), known_changes: 0 }
    }

    /// # Errors
    /// When the table is not known any more: the connection must end.
    pub fn read(&mut self, block: &[u8]) -> Result<Result<Arc<Head>, Malformed>, HpackError> {
        let before = self.decoder.changes();
        if before != self.known_changes {
            self.known.clear();
            self.known_changes = before;
        }
        if let Some((_, head)) = self.known.iter().find(|(known, _)| known == block) {
            return Ok(Ok(head.clone()));
        }
        let (mut reading, mut bytes) = (Reading::default(), 0_usize);
        self.decoder.decode(block, |name, value| {
            bytes = bytes.saturating_add(name.len() + value.len() + FIELD_BYTES);
            if bytes <= self.bytes_max {
                reading.field(name, value);
            }
        })?;
        if bytes > self.bytes_max {
            return Ok(Err(Malformed::TooLarge));
        }
        let head = match reading.end() {
            Some(head) => Arc::new(head),
            None => return Ok(Err(Malformed::Request)),
        };
        if self.decoder.changes() == before {
            if self.known.len() == KNOWN_MAX {
                self.known.remove(0);
            }
            self.known.push((block.to_vec(), head.clone()));
        }
        Ok(Ok(head))
    }

    /// Reads trailers, which nobody asks for: whether they may stand there.
    pub fn read_trailers(&mut self, block: &[u8]) -> Result<bool, HpackError> {
        let mut is_lawful = true;
        self.decoder.decode(block, |name, _| is_lawful &= is_lawful_name(name))?;
        Ok(is_lawful)
    }
}

#[derive(Default)]
struct Reading {
    method: Option<Method>,
    scheme: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    headers: HeaderMap,
    length: Option<u64>,
    is_malformed: bool,
}

impl Reading {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        if self.take(name, value).is_none() {
            self.is_malformed = true;
        }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        if name.first() == Some(&b':') {
            if !self.headers.is_empty() {
                return None;
            }
            return match name {
                b":method" => once(&mut self.method, Method::from_bytes(value).ok()?),
                b":scheme" => once(&mut self.scheme, value.to_vec()),
                b":authority" => once(&mut self.authority, value.to_vec()),
                b":path" => once(&mut self.path, value.to_vec()),
                _ => None,
            };
        }
        // Of the connection, which is one of HTTP/1 (RFC 9113, section 8.2.2).
        let is_misplaced =
            matches!(name, b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade");
        if is_misplaced || !is_lawful_name(name) || (name == b"te" && value != b"trailers") {
            return None;
        }
        let value = HeaderValue::from_bytes(value).ok()?;
        if name == b"content-length" {
            let length = value.to_str().ok()?.parse().ok()?;
            if self.length.replace(length).is_some_and(|before| before != length) {
                return None;
            }
        }
        self.headers.try_append(HeaderName::from_lowercase(name).ok()?, value).ok()?;
        Some(())
    }

    fn end(self) -> Option<Head> {
        let (method, scheme, path) = (self.method?, self.scheme?, self.path?);
        if self.is_malformed || path.is_empty() {
            return None;
        }
        let mut parts = uri::Parts::default();
        parts.path_and_query = Some(path.as_slice().try_into().ok()?);
        if let Some(authority) = self.authority.filter(|authority| !authority.is_empty()) {
            parts.scheme = Some(scheme.as_slice().try_into().ok()?);
            parts.authority = Some(authority.as_slice().try_into().ok()?);
        }
        Some(Head { method, uri: Uri::from_parts(parts).ok()?, headers: self.headers, length: self.length })
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> Option<()> {
    field.replace(value).is_none().then_some(())
}

fn is_lawful_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.starts_with(b":") && !name.iter().any(u8::is_ascii_uppercase)
}

#[cfg(test)]
mod tests {
    use proto::http2::hpack::put_field;

    use super::*;

    const PUT: [(&str, &str); 4] =
        [(":method", "POST"), (":scheme", "http"), (":authority", "a:1"), (":path", "/etcdserverpb.KV/Put")];

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        fields.iter().for_each(|(name, value)| put_field(&mut block, name.as_bytes(), value.as_bytes()));
        block
    }

    fn read(fields: &[(&str, &str)]) -> Result<Arc<Head>, Malformed> {
        Heads::new(1000).read(&block(fields)).unwrap()
    }

    #[test]
    fn a_request_is_read() {
        let fields = [&PUT[..], &[("te", "trailers"), ("content-length", "7"), ("a", "b"), ("a", "c")]].concat();
        let head = read(&fields).unwrap();
        assert_eq!(head.method, Method::POST);
        assert_eq!(head.uri.path(), "/etcdserverpb.KV/Put");
        assert_eq!(head.uri.authority().unwrap(), "a:1");
        assert_eq!(head.length, Some(7));
        assert_eq!(head.headers.get_all("a").iter().count(), 2);
    }

    #[test]
    fn a_block_that_changes_nothing_is_read_once() {
        let (mut heads, block) = (Heads::new(1000), block(&PUT));
        let first = heads.read(&block).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &heads.read(&block).unwrap().unwrap()));
        // One that is kept changes the table.
        let mut kept = block.clone();
        proto::http2::hpack::put_kept_field(&mut kept, b"x", b"y");
        heads.read(&kept).unwrap().unwrap();
        assert!(!Arc::ptr_eq(&first, &heads.read(&block).unwrap().unwrap()));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let with = |more: &[(&'static str, &'static str)]| [&PUT[..], more].concat();
        for fields in [
            PUT[1..].to_vec(),
            PUT[..3].to_vec(),
            with(&[(":path", "/")]),
            with(&[(":status", "200")]),
            with(&[("a", "b"), (":authority", "c")]),
            with(&[("Upper", "x")]),
            with(&[("connection", "close")]),
            with(&[("te", "gzip")]),
            with(&[("content-length", "x")]),
            with(&[("content-length", "1"), ("content-length", "2")]),
            with(&[("a", "b\n")]),
            with(&[("", "b")]),
        ] {
            assert_eq!(read(&fields).unwrap_err(), Malformed::Request, "{fields:?}");
        }
        let long = "x".repeat(1000);
        let mut fields = PUT.to_vec();
        fields.push(("long", &long));
        assert_eq!(read(&fields).unwrap_err(), Malformed::TooLarge);
    }
}
