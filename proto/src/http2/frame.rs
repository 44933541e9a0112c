//! Frames of HTTP/2 (RFC 9113). Each begins with a head (section 4.1): length, kind, flags, stream.

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITIZED: u8 = 0x20;

pub const HEAD_BYTES: usize = 9;

// Section 6.5.2.
pub const SETTING_HEADER_TABLE_SIZE: u16 = 1;
pub const SETTING_ENABLE_PUSH: u16 = 2;
pub const SETTING_MAX_CONCURRENT_STREAMS: u16 = 3;
pub const SETTING_INITIAL_WINDOW_SIZE: u16 = 4;
pub const SETTING_MAX_FRAME_SIZE: u16 = 5;
pub const SETTING_MAX_HEADER_LIST_SIZE: u16 = 6;
pub const DEFAULT_WINDOW: i64 = 65_535;
pub const DEFAULT_FRAME_BYTES: usize = 16_384;

// Section 7.
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const INTERNAL_ERROR: u32 = 2;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    /// `None` while not all of it is there.
    pub fn read(bytes: &[u8]) -> Option<Head> {
        let head = bytes.first_chunk::<HEAD_BYTES>()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        // The highest bit is reserved, and ignored.
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some(Head { length, kind: head[3], flags: head[4], stream })
    }

    pub fn bytes(&self) -> [u8; HEAD_BYTES] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without padding (DATA, HEADERS) and without a priority (HEADERS). `None`: it is shorter than those.
    pub fn content<'a>(&self, mut payload: &'a [u8]) -> Option<&'a [u8]> {
        if self.has(PADDED) {
            let (&padding, rest) = payload.split_first()?;
            payload = rest.get(..rest.len().checked_sub(usize::from(padding))?)?;
        }
        if self.kind == HEADERS && self.has(PRIORITIZED) {
            payload = payload.get(5..)?;
        }
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let head = Head { length: 0x01_02_03, kind: HEADERS, flags: END_HEADERS | END_STREAM, stream: 0x7abc_def1 };
        assert_eq!(Head::read(&head.bytes()), Some(head));
        assert_eq!(Head::read(&head.bytes()[..8]), None);
    }

    #[test]
    fn padding_and_priority_are_no_content() {
        let head = |flags| Head { length: 0, kind: HEADERS, flags, stream: 1 };
        assert_eq!(head(0).content(b"abc"), Some(&b"abc"[..]));
        assert_eq!(head(PADDED).content(b"\x02abc__"), Some(&b"abc"[..]));
        assert_eq!(head(PADDED | PRIORITIZED).content(b"\x0112345abc_"), Some(&b"abc"[..]));
        assert_eq!(head(PADDED).content(b"\x04abc"), None);
        assert_eq!(head(PRIORITIZED).content(b"abc"), None);
    }
}
