//! The fields of answers that the client keeps in its header table (RFC 7541): those that every answer of gRPC has.

use proto::http2::hpack;

/// What the two fields of every answer of gRPC take in the client's table.
const KEPT_BYTES: u32 = (12 + 16 + 32) + (11 + 1 + 32);

pub const CONTENT_TYPE: (&[u8], &[u8]) = (b"content-type", b"application/grpc");
const GRPC_STATUS: (&[u8], &[u8]) = (b"grpc-status", b"0");

/// What this side has had the client keep of the fields of its answers.
pub struct Kept {
    /// The client keeps something.
    is_allowed: bool,
    /// The size of the table is to be told with the next block.
    new_size: Option<u32>,
    count: usize,
    content_type: Option<usize>,
    grpc_status: Option<usize>,
}

impl Default for Kept {
    fn default() -> Self {
        Kept { is_allowed: true, new_size: None, count: 0, content_type: None, grpc_status: None }
    }
}

impl Kept {
    pub fn resize(&mut self, bytes: u32) {
        self.is_allowed = bytes >= KEPT_BYTES;
        if !self.is_allowed {
            (self.count, self.content_type, self.grpc_status) = (0, None, None);
        }
        // What is more than both sides begin with is not used.
        if (bytes as usize) < hpack::TABLE_BYTES || self.new_size.is_some() {
            self.new_size = Some(bytes.min(hpack::TABLE_BYTES as u32));
        }
    }

    /// Begins a block.
    pub fn begin(&mut self, block: &mut Vec<u8>) {
        if let Some(size) = self.new_size.take() {
            hpack::put_table_size(block, size as usize);
        }
    }

    pub fn content_type(&mut self, block: &mut Vec<u8>) {
        Kept::put(self.is_allowed, &mut self.count, &mut self.content_type, CONTENT_TYPE, block);
    }

    pub fn grpc_status(&mut self, block: &mut Vec<u8>) {
        Kept::put(self.is_allowed, &mut self.count, &mut self.grpc_status, GRPC_STATUS, block);
    }

    fn put(
        is_allowed: bool,
        count: &mut usize,
        place: &mut Option<usize>,
        (name, value): (&[u8], &[u8]),
        block: &mut Vec<u8>,
    ) {
        match place {
            Some(place) => hpack::put_indexed(block, hpack::NEWEST + *count - 1 - *place),
            None if is_allowed => {
                hpack::put_kept_field(block, name, value);
                *place = Some(*count);
                *count += 1;
            }
            None => hpack::put_field(block, name, value),
        }
    }
}
