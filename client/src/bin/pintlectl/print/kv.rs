//! Keys, transactions, events.

use client::{
    mvccpb::{Event, KeyValue},
    pb::{
        DeleteRangeResponse, PutResponse, RangeResponse, ResponseOp, TxnResponse, WatchResponse, response_op::Response,
    },
};
use prost::Message as _;

use super::{
    Answer, Style,
    fields::Fields,
    go,
    json::{Object, list},
};

fn line(out: &mut Vec<u8>, bytes: &[u8], hex: bool) {
    match hex {
        true => out.extend_from_slice(go::hex(bytes).as_bytes()),
        false => out.extend_from_slice(bytes),
    }
    out.push(b'\n');
}

fn key_value(out: &mut Vec<u8>, kv: &KeyValue, style: Style) {
    if !style.value_only {
        line(out, &kv.key, style.hex);
    }
    line(out, &kv.value, style.hex);
}

fn key_value_json(kv: &KeyValue) -> String {
    Object::new()
        .bytes("key", &kv.key)
        .number("create_revision", kv.create_revision)
        .number("mod_revision", kv.mod_revision)
        .number("version", kv.version)
        .bytes("value", &kv.value)
        .number("lease", kv.lease)
        .end()
}

impl Answer for PutResponse {
    fn simple(&self, style: Style) -> Vec<u8> {
        let mut out = b"OK\n".to_vec();
        self.prev_kv.iter().for_each(|kv| key_value(&mut out, kv, style));
        out
    }

    fn json(&self, _: Style) -> String {
        Object::new().header(&self.header).optional("prev_kv", self.prev_kv.as_ref().map(key_value_json)).end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.prev_kv.iter().fold(Fields::of(&self.header), |fields, kv| fields.key_value("Prev", kv)))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for RangeResponse {
    fn simple(&self, style: Style) -> Vec<u8> {
        let mut out = Vec::new();
        self.kvs.iter().for_each(|kv| key_value(&mut out, kv, style));
        out
    }

    fn json(&self, _: Style) -> String {
        Object::new()
            .header(&self.header)
            .list("kvs", self.kvs.iter().map(key_value_json))
            .flag("more", self.more)
            .number("count", self.count)
            .end()
    }

    fn fields(&self) -> Option<Fields> {
        let fields = self.kvs.iter().fold(Fields::of(&self.header), |fields, kv| fields.key_value("", kv));
        Some(fields.show("More", self.more).show("Count", self.count))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

impl Answer for DeleteRangeResponse {
    fn simple(&self, style: Style) -> Vec<u8> {
        let mut out = format!("{}\n", self.deleted).into_bytes();
        self.prev_kvs.iter().for_each(|kv| key_value(&mut out, kv, style));
        out
    }

    fn json(&self, _: Style) -> String {
        Object::new()
            .header(&self.header)
            .number("deleted", self.deleted)
            .list("prev_kvs", self.prev_kvs.iter().map(key_value_json))
            .end()
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(&self.header).show("Deleted", self.deleted);
        Some(self.prev_kvs.iter().fold(fields, |fields, kv| fields.key_value("Prev", kv)))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

/// The answer of an operation, and its name in JSON.
fn part(op: &ResponseOp) -> Option<(&'static str, &dyn Answer)> {
    match op.response.as_ref()? {
        Response::ResponseRange(answer) => Some(("response_range", answer)),
        Response::ResponsePut(answer) => Some(("response_put", answer)),
        Response::ResponseDeleteRange(answer) => Some(("response_delete_range", answer)),
        Response::ResponseTxn(answer) => Some(("response_txn", answer)),
    }
}

impl Answer for TxnResponse {
    fn simple(&self, style: Style) -> Vec<u8> {
        let mut out = if self.succeeded { b"SUCCESS\n".to_vec() } else { b"FAILURE\n".to_vec() };
        for (_, answer) in self.responses.iter().filter_map(part) {
            out.push(b'\n');
            out.extend(answer.simple(style));
        }
        out
    }

    fn json(&self, style: Style) -> String {
        let responses = self.responses.iter().map(|op| {
            let response = part(op).map_or_else(
                || "null".to_string(),
                |(name, answer)| Object::new().field(name, answer.json(style)).end(),
            );
            Object::new().field("Response", response).end()
        });
        Object::new().header(&self.header).flag("succeeded", self.succeeded).list("responses", responses).end()
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(&self.header).show("Succeeded", self.succeeded);
        let parts = self.responses.iter().filter_map(part).filter_map(|(_, answer)| answer.fields());
        Some(parts.fold(fields, Fields::and))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

/// The name of what happened.
pub fn event_name(event: &Event) -> &'static str {
    event.r#type().as_str_name()
}

fn event_json(event: &Event) -> String {
    Object::new()
        .number("type", event.r#type)
        .optional("kv", event.kv.as_ref().map(key_value_json))
        .optional("prev_kv", event.prev_kv.as_ref().map(key_value_json))
        .end()
}

impl Answer for WatchResponse {
    fn simple(&self, style: Style) -> Vec<u8> {
        let mut out = Vec::new();
        for event in &self.events {
            line(&mut out, event_name(event).as_bytes(), false);
            event.prev_kv.iter().chain(&event.kv).for_each(|kv| key_value(&mut out, kv, style));
        }
        out
    }

    fn json(&self, _: Style) -> String {
        Object::new()
            .field("Header", Object::new().header_fields(&self.header.unwrap_or_default()).end())
            .field("Events", list(self.events.iter().map(event_json)))
            .field("CompactRevision", self.compact_revision.to_string())
            .field("Canceled", self.canceled.to_string())
            .field("Created", self.created.to_string())
            .end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.events.iter().fold(Fields::of(&self.header), |fields, event| {
            let fields = fields.show("Type", event_name(event));
            let fields = event.prev_kv.iter().fold(fields, |fields, kv| fields.key_value("Prev", kv));
            event.kv.iter().fold(fields, |fields, kv| fields.key_value("", kv))
        }))
    }

    /// Only what etcdctl's own structure knows.
    fn protobuf(&self) -> Option<Vec<u8>> {
        let known = WatchResponse {
            header: self.header,
            events: self.events.clone(),
            compact_revision: self.compact_revision,
            canceled: self.canceled,
            created: self.created,
            ..Default::default()
        };
        Some(known.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use client::mvccpb::event::EventType;

    use super::*;

    #[test]
    fn a_change_is_printed_with_what_was_there_before() {
        let kv = |value: &'static str| KeyValue { key: "k".into(), value: value.into(), ..Default::default() };
        let event = Event { r#type: EventType::Delete.into(), kv: Some(kv("")), prev_kv: Some(kv("old")) };
        let response = WatchResponse { events: vec![event], ..Default::default() };
        assert_eq!(response.simple(Style::default()), b"DELETE\nk\nold\nk\n\n");
        let hex = Style { hex: true, value_only: false };
        assert_eq!(response.simple(hex), b"DELETE\n\\x6b\n\\x6f\\x6c\\x64\n\\x6b\n\n");
    }

    #[test]
    fn a_transaction_names_the_kinds_of_its_answers() {
        let put = Response::ResponsePut(PutResponse::default());
        let txn = TxnResponse { succeeded: true, responses: vec![ResponseOp { response: Some(put) }], header: None };
        let json = r#"{"succeeded":true,"responses":[{"Response":{"response_put":{}}}]}"#;
        assert_eq!(txn.json(Style::default()), json);
        assert_eq!(txn.simple(Style::default()), b"SUCCESS\n\nOK\n");
    }
}
