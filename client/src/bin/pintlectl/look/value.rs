//! Values, readable: JSON over several lines, Kubernetes' protobuf field by field, text as it is, anything else escaped.
//!
//! Kubernetes stores `k8s\0` and a message `runtime.Unknown` around each object, with its API version and kind. Source:
//! Kubernetes, `apimachinery/pkg/runtime/generated.proto`, and `apimachinery/pkg/apis/meta/v1/generated.proto` for the
//! names of the metadata's fields. The kinds' own fields have numbers here and no names: their hundreds of descriptions
//! are not ours to carry along, and what changed can be seen without.

use crate::print::go::quote;

const KUBERNETES: &[u8] = b"k8s\0";
/// How deep messages are looked into.
const DEPTH_MAX: usize = 24;
/// `ObjectMeta`.
const METADATA: &[(u64, &str)] = &[
    (1, "name"),
    (2, "generateName"),
    (3, "namespace"),
    (4, "selfLink"),
    (5, "uid"),
    (6, "resourceVersion"),
    (7, "generation"),
    (8, "creationTimestamp"),
    (9, "deletionTimestamp"),
    (10, "deletionGracePeriodSeconds"),
    (11, "labels"),
    (12, "annotations"),
    (13, "ownerReferences"),
    (14, "finalizers"),
    (17, "managedFields"),
];
/// What most kinds have.
const OBJECT: &[(u64, &str)] = &[(1, "metadata"), (2, "spec"), (3, "status")];

pub fn readable(value: &[u8]) -> String {
    if let Some(object) = value.strip_prefix(KUBERNETES).and_then(kubernetes) {
        return object;
    }
    match std::str::from_utf8(value) {
        Ok(text) => match serde_json::from_str::<serde_json::Value>(text) {
            Ok(json) if json.is_object() || json.is_array() => {
                serde_json::to_string_pretty(&json).unwrap_or_else(|_| text.to_string())
            }
            _ if text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t') => text.to_string(),
            _ => quote(value),
        },
        Err(_) => quote(value),
    }
}

/// A value that is JSON, as it is.
pub fn json(value: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(value).ok()?;
    (json.is_object() || json.is_array()).then(|| json.to_string())
}

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// The fields of a message, in their order. None: it is no message.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = tag >> 3;
        if number == 0 {
            return None;
        }
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => Field::Number(u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => Field::Number(u64::from(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?))),
            _ => return None,
        };
        fields.push((number, field));
    }
    Some(fields)
}

fn text_of<'a>(fields: &[(u64, Field<'a>)], number: u64) -> Option<&'a [u8]> {
    fields.iter().find_map(|(found, field)| match field {
        Field::Bytes(bytes) if *found == number => Some(*bytes),
        _ => None,
    })
}

/// `runtime.Unknown`: the type (1) and the object's own bytes (2).
fn kubernetes(envelope: &[u8]) -> Option<String> {
    let envelope = fields(envelope)?;
    let kind = fields(text_of(&envelope, 1)?)?;
    let name = |number| String::from_utf8_lossy(text_of(&kind, number).unwrap_or_default()).into_owned();
    let mut out = format!("apiVersion: {}\nkind: {}\n", name(1), name(2));
    let object = text_of(&envelope, 2)?;
    fields(object)?;
    write(&mut out, object, OBJECT, 0);
    Some(out)
}

fn write(out: &mut String, message: &[u8], names: &[(u64, &str)], depth: usize) {
    let indent = "  ".repeat(depth);
    for (number, field) in fields(message).unwrap_or_default() {
        let name = names.iter().find(|(known, _)| *known == number).map(|(_, name)| (*name).to_string());
        let name = name.unwrap_or_else(|| number.to_string());
        match field {
            Field::Number(value) => *out += &format!("{indent}{name}: {value}\n"),
            Field::Bytes(bytes) => match as_text(bytes) {
                Some(text) => *out += &format!("{indent}{name}: {text}\n"),
                None if depth < DEPTH_MAX && fields(bytes).is_some() => {
                    *out += &format!("{indent}{name}:\n");
                    let names = if depth == 0 && number == 1 { METADATA } else { &[] };
                    write(out, bytes, names, depth + 1);
                }
                None => *out += &format!("{indent}{name}: {}\n", quote(bytes)),
            },
        }
    }
}

/// Bytes that are text rather than a message: both may hold, and then nearly always it is text.
fn as_text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    if !text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t') {
        return None;
    }
    Some(if text.contains('\n') || text.is_empty() { quote(bytes) } else { text.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(parts: &[(u8, &[u8])]) -> Vec<u8> {
        let field = |(number, bytes): &(u8, &[u8])| {
            let mut field = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
            field.extend_from_slice(bytes);
            field
        };
        parts.iter().flat_map(field).collect()
    }

    #[test]
    fn json_is_shown_over_several_lines_and_text_as_it_is() {
        assert_eq!(readable(br#"{"b":1,"a":[2]}"#), "{\n  \"a\": [\n    2\n  ],\n  \"b\": 1\n}");
        assert_eq!(readable("grüße\n".as_bytes()), "grüße\n");
        assert_eq!(readable(b"7"), "7");
        assert_eq!(readable(b"\x00\xff"), "\"\\x00\\xff\"");
        assert_eq!(json(b"{\"a\":1}").as_deref(), Some("{\"a\":1}"));
        assert_eq!((json(b"7"), json(b"x")), (None, None));
    }

    #[test]
    fn kubernetes_objects_are_shown_field_by_field() {
        let metadata = message(&[(1, b"web"), (3, b"default")]);
        let spec = message(&[(4, &message(&[(1, b"nginx\x01")]))]);
        let object = message(&[(1, &metadata), (2, &spec)]);
        let kind = message(&[(1, b"v1"), (2, b"Pod")]);
        let value = [KUBERNETES, &message(&[(1, &kind), (2, &object)])].concat();
        let expected = "\
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: default
spec:
  4:
    1: \"nginx\\x01\"
";
        assert_eq!(readable(&value), expected);
    }

    #[test]
    fn what_only_begins_as_a_kubernetes_object_is_escaped() {
        assert_eq!(readable(b"k8s\0\xff\xff"), "\"k8s\\x00\\xff\\xff\"");
        assert!(readable(&[KUBERNETES, &[0x0a, 0x7f]].concat()).starts_with('"'));
    }
}
