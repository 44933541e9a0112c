//! RangeStream: a Range whose answer comes in parts, all of one revision.

use bytes::{BufMut, Bytes, BytesMut};
use proto::etcdserverpb::{RangeRequest, RangeResponse};

use crate::{error::ReadError, store::Store};

/// Keys in the first part; later ones follow the size of those before.
const FIRST_KEYS: i64 = 16;
const KEYS_MAX: i64 = 10_000;

/// Reads a range part by part. The parts, merged, are what Range answers.
pub struct RangeCursor {
    store: Store,
    /// What is left to read; its revision is fixed.
    request: RangeRequest,
    part_bytes: usize,
    part_keys: i64,
    /// What the last part says.
    end: RangeResponse,
    done: bool,
}

impl Store {
    /// Begins reading a range in parts of about `part_bytes`. Orders and filters are not for this call.
    pub fn range_cursor(&self, request: &RangeRequest, part_bytes: usize) -> Result<RangeCursor, ReadError> {
        let counted = self.range(&RangeRequest { count_only: true, ..request.clone() })?;
        let mut request = request.clone();
        if request.revision <= 0 {
            request.revision = counted.header.as_ref().expect("a range has a header").revision;
        }
        let more = request.limit > 0 && counted.count > request.limit && !request.count_only;
        let end = RangeResponse { more, ..counted };
        let done = request.count_only || end.count == 0;
        let mut cursor =
            RangeCursor { store: self.clone(), request, part_bytes, part_keys: FIRST_KEYS, end, done: false };
        if done {
            cursor.request.limit = -1;
        }
        Ok(cursor)
    }
}

impl RangeCursor {
    /// The next part; None behind the last one, which alone has header, count and more.
    pub fn next_part(&mut self) -> Result<Option<RangeResponse>, ReadError> {
        if self.done {
            return Ok(None);
        }
        if self.request.limit < 0 {
            self.done = true;
            return Ok(Some(std::mem::take(&mut self.end)));
        }
        let limit = match self.request.limit {
            0 => self.part_keys,
            left => left.min(self.part_keys),
        };
        let part = self.store.range(&RangeRequest { limit, ..self.request.clone() })?;
        let bytes: usize = part.kvs.iter().map(|kv| kv.key.len() + kv.value.len() + 32).sum();
        if let Some(last) = part.kvs.last() {
            self.request.key = after(&last.key);
            let per_key = (bytes / part.kvs.len()).max(1);
            self.part_keys = ((self.part_bytes / per_key) as i64).clamp(1, KEYS_MAX);
        }
        let is_cut = self.request.limit > 0 && self.request.limit == part.kvs.len() as i64;
        if self.request.limit > 0 {
            self.request.limit -= part.kvs.len() as i64;
        }
        if is_cut || !part.more {
            self.done = true;
            return Ok(Some(RangeResponse { kvs: part.kvs, ..std::mem::take(&mut self.end) }));
        }
        Ok(Some(RangeResponse { kvs: part.kvs, ..Default::default() }))
    }
}

/// The key that follows `key` directly.
fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}
