//! Leases.
//!
//! In protobuf, etcdctl prints no more than the header of these answers: its own structures around them have no other
//! encoding.

use client::{
    LeaseId,
    pb::{
        LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse,
        ResponseHeader,
    },
};
use prost::Message as _;

use super::{
    Answer, Style,
    fields::Fields,
    json::{Object, base64, list},
};

fn header_alone(header: &Option<ResponseHeader>) -> Option<Vec<u8>> {
    Some(header.unwrap_or_default().encode_to_vec())
}

/// The header's fields stand beside the others here, and those are never left out.
fn object(header: &Option<ResponseHeader>) -> Object {
    Object::new().header_fields(&header.unwrap_or_default())
}

impl Answer for LeaseGrantResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        format!("lease {:016x} granted with TTL({}s)\n", self.id, self.ttl).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        object(&self.header)
            .field("ID", self.id.to_string())
            .field("TTL", self.ttl.to_string())
            .field("Error", super::json::text(&self.error))
            .end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(Fields::of(&self.header).show("ID", self.id).show("TTL", self.ttl))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        header_alone(&self.header)
    }
}

pub struct Revoked {
    pub id: LeaseId,
    pub answer: LeaseRevokeResponse,
}

impl Answer for Revoked {
    fn simple(&self, _: Style) -> Vec<u8> {
        format!("lease {:016x} revoked\n", self.id.0).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        Object::new().header(&self.answer.header).end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(Fields::of(&self.answer.header))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

impl Answer for LeaseKeepAliveResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        format!("lease {:016x} keepalived with TTL({})\n", self.id, self.ttl).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        object(&self.header).field("ID", self.id.to_string()).field("TTL", self.ttl.to_string()).end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(Fields::of(&self.header).show("ID", self.id).show("TTL", self.ttl))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        header_alone(&self.header)
    }
}

pub struct TimeToLive {
    pub answer: LeaseTimeToLiveResponse,
    /// Whether its keys were asked for.
    pub keys: bool,
}

impl Answer for TimeToLive {
    fn simple(&self, _: Style) -> Vec<u8> {
        let TimeToLive { answer, keys } = self;
        let id = answer.id;
        if answer.granted_ttl == 0 && answer.ttl == -1 {
            return format!("lease {id:016x} already expired\n").into_bytes();
        }
        let (granted, left) = (answer.granted_ttl, answer.ttl);
        let mut out = format!("lease {id:016x} granted with TTL({granted}s), remaining({left}s)").into_bytes();
        if *keys {
            out.extend_from_slice(b", attached keys([");
            out.extend_from_slice(&answer.keys.join(&b' '));
            out.extend_from_slice(b"])");
        }
        out.push(b'\n');
        out
    }

    fn json(&self, _: Style) -> String {
        let keys = &self.answer.keys;
        let keys = if keys.is_empty() { "null".to_string() } else { list(keys.iter().map(|key| base64(key))) };
        object(&self.answer.header)
            .field("id", self.answer.id.to_string())
            .field("ttl", self.answer.ttl.to_string())
            .field("granted-ttl", self.answer.granted_ttl.to_string())
            .field("keys", keys)
            .end()
    }

    fn fields(&self) -> Option<Fields> {
        let fields = Fields::of(&self.answer.header)
            .show("ID", self.answer.id)
            .show("TTL", self.answer.ttl)
            .show("GrantedTTL", self.answer.granted_ttl);
        Some(self.answer.keys.iter().fold(fields, |fields, key| fields.quoted("Key", key)))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        header_alone(&self.answer.header)
    }
}

impl Answer for LeaseLeasesResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        let leases = self.leases.iter().map(|lease| format!("{:016x}\n", lease.id));
        format!("found {} leases\n{}", self.leases.len(), leases.collect::<String>()).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        let leases = self.leases.iter().map(|lease| Object::new().field("id", lease.id.to_string()).end());
        object(&self.header).field("leases", list(leases)).end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.leases.iter().fold(Fields::of(&self.header), |fields, lease| fields.show("ID", lease.id)))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        header_alone(&self.header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simple(answer: &dyn Answer) -> String {
        String::from_utf8(answer.simple(Style::default())).unwrap()
    }

    #[test]
    fn a_lease_is_printed_with_its_keys() {
        let keys = vec!["a".into(), "b".into()];
        let answer = LeaseTimeToLiveResponse { id: 0x1234, ttl: 49, granted_ttl: 50, keys, header: None };
        assert_eq!(
            simple(&TimeToLive { answer, keys: true }),
            "lease 0000000000001234 granted with TTL(50s), remaining(49s), attached keys([a b])\n"
        );
        let gone = LeaseTimeToLiveResponse { id: 0x1234, ttl: -1, ..Default::default() };
        let gone = TimeToLive { answer: gone, keys: false };
        assert_eq!(simple(&gone), "lease 0000000000001234 already expired\n");
        assert_eq!(gone.json(Style::default()), r#"{"id":4660,"ttl":-1,"granted-ttl":0,"keys":null}"#);
    }
}
