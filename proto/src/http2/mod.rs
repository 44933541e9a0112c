//! HTTP/2 as it stands on the wire (RFC 9113): heads of frames, and compressed headers.

pub mod frame;
pub mod hpack;
mod huffman;

/// What a client sends first (section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
