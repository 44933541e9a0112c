//! Messages read where they lie: a field is found by walking over the others, and nothing is copied.

/// A field's value as it is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in their order. What is no message ends the walk with `None` for its last item.
pub struct Fields<'a> {
    rest: &'a [u8],
}

pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Value<'a>)>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    #[inline]
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            5 => Value::Number(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some((u32::try_from(tag >> 3).ok()?, value))
    }

    #[inline]
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for (index, &byte) in self.rest.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Some(number);
            }
        }
        None
    }
}

/// The last value of a number, 0 if there is none, as protobuf has it.
pub fn number(message: &[u8], field: u32) -> i64 {
    let found = fields(message).flatten().filter_map(|(number, value)| match value {
        Value::Number(value) if number == field => Some(value as i64),
        _ => None,
    });
    found.last().unwrap_or(0)
}

/// A field of bytes, text or a message; the first, if there are several.
pub fn bytes(message: &[u8], field: u32) -> Option<&[u8]> {
    all(message, field).next()
}

pub fn all(message: &[u8], field: u32) -> impl Iterator<Item = &[u8]> {
    fields(message).flatten().filter_map(move |(number, value)| match value {
        Value::Bytes(value) if number == field => Some(value),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::{
        etcdserverpb::{RangeResponse, ResponseHeader},
        mvccpb::KeyValue,
    };

    use super::*;

    #[test]
    fn fields_are_found_as_prost_writes_them() {
        let kv = |key: &'static str| KeyValue { key: key.into(), mod_revision: -1, ..Default::default() };
        let answer = RangeResponse {
            header: Some(ResponseHeader { member_id: u64::MAX, revision: 300, ..Default::default() }),
            kvs: vec![kv("a"), kv("b")],
            count: 2,
            ..Default::default()
        };
        let message = answer.encode_to_vec();
        assert_eq!(number(bytes(&message, 1).unwrap(), 3), 300);
        assert_eq!(all(&message, 2).map(|kv| bytes(kv, 1).unwrap()).collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(number(bytes(&message, 2).unwrap(), 3), -1);
        assert_eq!((number(&message, 3), number(&message, 4)), (0, 2));
    }

    #[test]
    fn a_walk_over_what_is_no_message_ends() {
        for message in [&b"\x0a"[..], b"\x0a\x05abc", b"\x80", b"\x0b", &[0xff; 12]] {
            assert_eq!(fields(message).collect::<Vec<_>>(), [None], "{message:?}");
        }
    }
}
