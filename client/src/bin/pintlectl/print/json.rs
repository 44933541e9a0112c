//! JSON as Go's encoder writes etcd's structures: fields in their order, empty ones left out, bytes as base64.

use client::pb::ResponseHeader;

/// An object in the making.
#[derive(Default)]
pub struct Object(String);

impl Object {
    pub fn new() -> Object {
        Object::default()
    }

    /// A field whose value is JSON already, and which is never left out.
    pub fn field(mut self, name: &str, value: impl AsRef<str>) -> Object {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0 += &text(name);
        self.0.push(':');
        self.0 += value.as_ref();
        self
    }

    pub fn optional(self, name: &str, value: Option<String>) -> Object {
        match value {
            Some(value) => self.field(name, value),
            None => self,
        }
    }

    pub fn number(self, name: &str, value: impl Into<i128>) -> Object {
        let value = value.into();
        self.optional(name, (value != 0).then(|| value.to_string()))
    }

    pub fn flag(self, name: &str, value: bool) -> Object {
        self.optional(name, value.then(|| "true".to_string()))
    }

    pub fn text(self, name: &str, value: &str) -> Object {
        self.optional(name, (!value.is_empty()).then(|| text(value)))
    }

    pub fn bytes(self, name: &str, value: &[u8]) -> Object {
        self.optional(name, (!value.is_empty()).then(|| base64(value)))
    }

    pub fn list(self, name: &str, values: impl Iterator<Item = String>) -> Object {
        let list = list(values);
        self.optional(name, (list != "[]").then_some(list))
    }

    pub fn header(self, header: &Option<ResponseHeader>) -> Object {
        self.optional("header", header.as_ref().map(|header| Object::new().header_fields(header).end()))
    }

    /// The header's fields beside the others.
    pub fn header_fields(self, header: &ResponseHeader) -> Object {
        self.number("cluster_id", header.cluster_id)
            .number("member_id", header.member_id)
            .number("revision", header.revision)
            .number("raft_term", header.raft_term)
    }

    pub fn end(mut self) -> String {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0.push('}');
        self.0
    }
}

pub fn list(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<String>>().join(","))
}

/// A string; what would be markup in HTML is escaped.
pub fn text(value: &str) -> String {
    let mut out = String::from('"');
    for character in value.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..' ' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out += &format!("\\u{:04x}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

/// A string of base64: RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4 + 2);
    text.push('"');
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0, |group, (i, byte)| group | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            // A chunk of n bytes fills n + 1 characters.
            let character = if i <= chunk.len() { ALPHABET[(group >> (18 - 6 * i)) as usize & 63] } else { b'=' };
            text.push(char::from(character));
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        let encoded = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        let expected = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(encoded, expected.map(|text| format!("\"{text}\"")));
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "\"+//+\"");
    }

    #[test]
    fn empty_fields_are_left_out_and_the_others_keep_their_order() {
        let object = Object::new().number("z", 1).number("none", 0).text("a", "<\n").flag("no", false);
        assert_eq!(object.list("l", std::iter::empty()).end(), r#"{"z":1,"a":"\u003c\n"}"#);
        assert_eq!(Object::new().end(), "{}");
    }
}
