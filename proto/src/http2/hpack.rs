//! Header compression (RFC 7541): blocks are read whatever they hold, and written as a client of gRPC needs.
//!
//! Both directions use the dynamic table, as real clients and servers do: a server that had to read or write every
//! field anew for each request would be measured at work it does not have in practice.

use std::collections::VecDeque;

use super::huffman;

/// The table size both sides begin with (RFC 9113, section 6.5.2).
pub const TABLE_BYTES: usize = 4096;
/// What an entry counts for, besides its name and value (section 4.1).
const ENTRY_BYTES: usize = 32;

/// Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

const INDEXED: u8 = 0x80;
const LITERAL_KEPT: u8 = 0x40;
const TABLE_SIZE: u8 = 0x20;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HpackError {
    #[error("a header block ends within a field")]
    Short,
    #[error("a number in a header block is too large")]
    Number,
    #[error("a header block names entry {0}, which does not exist")]
    Index(usize),
    #[error("a string in a header block is not Huffman code")]
    Huffman,
    #[error("the header table was set to {0} bytes, more than was offered")]
    TableSize(usize),
    #[error("the size of the header table is set behind a field")]
    LateTableSize,
}

/// Appends a number whose first byte shares its upper bits with `flags` (section 5.1).
fn put_number(out: &mut Vec<u8>, flags: u8, prefix_bits: u32, number: usize) {
    let limit = (1 << prefix_bits) - 1;
    if number < limit {
        return out.push(flags | number as u8);
    }
    out.push(flags | limit as u8);
    let mut rest = number - limit;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a field that the peer does not keep (section 6.2.2).
pub fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    match STATIC.iter().position(|entry| entry.0.as_bytes() == name) {
        Some(index) => put_number(out, 0, 4, index + 1),
        None => {
            out.push(0);
            put_number(out, 0, 7, name.len());
            out.extend_from_slice(name);
        }
    }
    put_number(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

/// Appends a field that the peer keeps as its newest (section 6.2.1).
pub fn put_kept_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(LITERAL_KEPT);
    put_number(out, 0, 7, name.len());
    out.extend_from_slice(name);
    put_number(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

/// Appends a field of the table: the static one's from 1 on, then what was kept, newest first (section 6.1).
pub fn put_indexed(out: &mut Vec<u8>, index: usize) {
    put_number(out, INDEXED, 7, index);
}

/// Appends that the table is to hold no more than `bytes` (section 6.3).
pub fn put_table_size(out: &mut Vec<u8>, bytes: usize) {
    put_number(out, TABLE_SIZE, 5, bytes);
}

/// The index of the newest field that was kept.
pub const NEWEST: usize = STATIC.len() + 1;

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_number(out, 0, 7, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Turns the headers of requests into blocks. Each field that is not in the static table is kept in the peer's table
/// when it is first sent, and is one byte from then on.
#[derive(Default)]
pub struct Encoder {
    /// Oldest first. Never evicted: a run has a handful of methods, far from [`TABLE_BYTES`].
    kept: Vec<(&'static str, String)>,
    bytes: usize,
}

impl Encoder {
    pub fn field(&mut self, out: &mut Vec<u8>, name: &'static str, value: &str) {
        if let Some(index) = STATIC.iter().position(|entry| *entry == (name, value)) {
            return put_number(out, INDEXED, 7, index + 1);
        }
        if let Some(age) = self.kept.iter().rev().position(|(n, v)| *n == name && v == value) {
            return put_number(out, INDEXED, 7, STATIC.len() + 1 + age);
        }
        self.bytes += name.len() + value.len() + ENTRY_BYTES;
        assert!(self.bytes <= TABLE_BYTES, "the header table has room for every method of a run");
        match STATIC.iter().position(|entry| entry.0 == name) {
            Some(index) => put_number(out, LITERAL_KEPT, 6, index + 1),
            None => {
                out.push(LITERAL_KEPT);
                put_string(out, name);
            }
        }
        put_string(out, value);
        self.kept.push((name, value.to_string()));
    }
}

type Text = Vec<u8>;

/// Reads the peer's blocks.
pub struct Decoder {
    /// Newest first.
    table: VecDeque<(Text, Text)>,
    bytes: usize,
    bytes_max: usize,
    changes: u64,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { table: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES, changes: 0 }
    }
}

impl Decoder {
    /// Grows with each change of the table. As long as it is the same, equal blocks mean the same.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<(), HpackError> {
        let mut rest = block;
        let mut begun = false;
        while let Some(&first) = rest.first() {
            let sets_size = first & (INDEXED | LITERAL_KEPT | TABLE_SIZE) == TABLE_SIZE;
            if sets_size && begun {
                return Err(HpackError::LateTableSize);
            }
            begun |= !sets_size;
            if first & INDEXED != 0 {
                let index = number(&mut rest, 7)?;
                let (name, value) = self.entry(index)?;
                field(name, value);
            } else if first & LITERAL_KEPT != 0 {
                let (name, value) = self.literal(&mut rest, 6)?;
                field(&name, &value);
                self.keep(name, value);
            } else if sets_size {
                let size = number(&mut rest, 5)?;
                if size > TABLE_BYTES {
                    return Err(HpackError::TableSize(size));
                }
                self.bytes_max = size;
                self.changes += 1;
                self.evict();
            } else {
                let (name, value) = self.literal(&mut rest, 4)?;
                field(&name, &value);
            }
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        if let Some((name, value)) = index.checked_sub(1).and_then(|index| STATIC.get(index)) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let kept = index.checked_sub(STATIC.len() + 1).and_then(|index| self.table.get(index));
        kept.map(|(name, value)| (&name[..], &value[..])).ok_or(HpackError::Index(index))
    }

    fn literal(&self, rest: &mut &[u8], prefix_bits: u32) -> Result<(Text, Text), HpackError> {
        let name = match number(rest, prefix_bits)? {
            0 => string(rest)?,
            index => self.entry(index)?.0.to_vec(),
        };
        Ok((name, string(rest)?))
    }

    fn keep(&mut self, name: Text, value: Text) {
        self.bytes += name.len() + value.len() + ENTRY_BYTES;
        self.table.push_front((name, value));
        self.changes += 1;
        self.evict();
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            let (name, value) = self.table.pop_back().expect("the bytes are those of the entries");
            self.bytes -= name.len() + value.len() + ENTRY_BYTES;
        }
    }
}

fn byte(rest: &mut &[u8]) -> Result<u8, HpackError> {
    let (&first, tail) = rest.split_first().ok_or(HpackError::Short)?;
    *rest = tail;
    Ok(first)
}

fn number(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, HpackError> {
    let limit = (1 << prefix_bits) - 1;
    let mut number = usize::from(byte(rest)?) & limit;
    if number < limit {
        return Ok(number);
    }
    // Lengths and indexes here are small: four more bytes are more than enough.
    for shift in [0, 7, 14, 21] {
        let next = byte(rest)?;
        number += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(HpackError::Number)
}

fn string(rest: &mut &[u8]) -> Result<Text, HpackError> {
    let huffman = rest.first().ok_or(HpackError::Short)? & 0x80 != 0;
    let length = number(rest, 7)?;
    let (text, tail) = rest.split_at_checked(length).ok_or(HpackError::Short)?;
    *rest = tail;
    if huffman { huffman::decode(text).ok_or(HpackError::Huffman) } else { Ok(text.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, HpackError> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(block, |name, value| fields.push(format!("{}={}", text(name), text(value))))?;
        Ok(fields)
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn three_requests_of_the_rfc_on_one_connection_are_decoded() {
        // Appendix C.4.
        let mut decoder = Decoder::default();
        let first = fields(&mut decoder, &hex("828684418cf1e3c2e5f23a6ba0ab90f4ff")).unwrap();
        assert_eq!(first, [":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com"]);
        let second = fields(&mut decoder, &hex("828684be5886a8eb10649cbf")).unwrap();
        assert_eq!(second[3..], [":authority=www.example.com", "cache-control=no-cache"]);
        let third = fields(&mut decoder, &hex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")).unwrap();
        assert_eq!(third[3..], [":authority=www.example.com", "custom-key=custom-value"]);
        assert_eq!((decoder.bytes, decoder.changes()), (164, 3));
    }

    #[test]
    fn a_smaller_table_evicts_the_oldest() {
        let mut decoder = Decoder::default();
        fields(&mut decoder, &hex("828684418cf1e3c2e5f23a6ba0ab90f4ff")).unwrap();
        fields(&mut decoder, &hex("5886a8eb10649cbf")).unwrap();
        // The table is set to 60 bytes: one entry of 53 stays.
        assert_eq!(fields(&mut decoder, &hex("3f1dbe")).unwrap(), ["cache-control=no-cache"]);
        assert_eq!(fields(&mut decoder, &hex("bf")), Err(HpackError::Index(63)));
    }

    #[test]
    fn what_the_encoder_writes_the_decoder_reads_and_a_second_time_it_is_one_byte_a_field() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let mut block = |path: &str| {
            let mut out = Vec::new();
            encoder.field(&mut out, ":method", "POST");
            encoder.field(&mut out, ":path", path);
            encoder.field(&mut out, "te", "trailers");
            out
        };
        let long = format!("/{}", "x".repeat(300));
        for (path, length) in [("/a", None), (&long, None), ("/a", Some(3)), (&long, Some(3))] {
            let block = block(path);
            assert!(length.is_none_or(|length| block.len() == length), "{block:?}");
            let expected = [":method=POST".to_string(), format!(":path={path}"), "te=trailers".to_string()];
            assert_eq!(fields(&mut decoder, &block).unwrap(), expected);
        }
    }

    #[test]
    fn broken_blocks_are_refused() {
        for (block, error) in [
            ("80", HpackError::Index(0)),
            ("ff", HpackError::Short),
            ("ffffffffffff", HpackError::Number),
            ("0003", HpackError::Short),
            ("0001788100", HpackError::Huffman),
            ("3fe2ff0f", HpackError::TableSize(262_145)),
            ("8220", HpackError::LateTableSize),
        ] {
            assert_eq!(fields(&mut Decoder::default(), &hex(block)), Err(error), "{block}");
        }
    }
}
