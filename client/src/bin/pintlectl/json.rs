//! etcdctl's JSON: the wire's messages with the field names and the order of Go's structures, bytes as base64, empty
//! fields left out.

use client::{
    mvccpb,
    pb::{
        AlarmResponse, DeleteRangeResponse, HashKvResponse, LeaseGrantResponse, LeaseKeepAliveResponse,
        LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, MemberListResponse, PutResponse,
        RangeResponse, ResponseHeader, StatusResponse, WatchResponse,
    },
};
use serde::{Serialize, Serializer};

use crate::{members::Health, text::go_duration};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Bytes as base64.
#[derive(PartialEq, Default)]
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base64(self.0))
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0, |group, (i, byte)| group | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            // A chunk of n bytes fills n + 1 characters.
            let character = if i <= chunk.len() { ALPHABET[(group >> (18 - 6 * i)) as usize & 63] } else { b'=' };
            text.push(char::from(character));
        }
    }
    text
}

/// Structures whose empty fields are left out.
macro_rules! message {
    ($($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? { $($(#[$attribute:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Serialize, PartialEq, Default)]
        pub struct $name $(<$life>)? {
            $($(#[$attribute])* #[serde(skip_serializing_if = "is_default")] $field: $type,)*
        }
    )*};
}

message! {
    Header {
        cluster_id: u64,
        member_id: u64,
        revision: i64,
        raft_term: u64,
    }
    KeyValue<'a> {
        key: Base64<'a>,
        create_revision: i64,
        mod_revision: i64,
        version: i64,
        value: Base64<'a>,
        lease: i64,
    }
    Put<'a> {
        header: Option<Header>,
        prev_kv: Option<KeyValue<'a>>,
    }
    Get<'a> {
        header: Option<Header>,
        kvs: Vec<KeyValue<'a>>,
        more: bool,
        count: i64,
    }
    Delete<'a> {
        header: Option<Header>,
        deleted: i64,
        prev_kvs: Vec<KeyValue<'a>>,
    }
    Event<'a> {
        r#type: i32,
        kv: Option<KeyValue<'a>>,
        prev_kv: Option<KeyValue<'a>>,
    }
    LeaseRevoked {
        header: Option<Header>,
    }
    Status<'a> {
        header: Option<Header>,
        version: &'a str,
        #[serde(rename = "dbSize")]
        db_size: i64,
        leader: u64,
        #[serde(rename = "raftIndex")]
        raft_index: u64,
        #[serde(rename = "raftTerm")]
        raft_term: u64,
        #[serde(rename = "raftAppliedIndex")]
        raft_applied_index: u64,
        errors: &'a [String],
        #[serde(rename = "dbSizeInUse")]
        db_size_in_use: i64,
        #[serde(rename = "isLearner")]
        is_learner: bool,
        #[serde(rename = "storageVersion")]
        storage_version: &'a str,
        #[serde(rename = "dbSizeQuota")]
        db_size_quota: i64,
    }
    Hash {
        header: Option<Header>,
        hash: u32,
        compact_revision: i64,
        hash_revision: i64,
    }
    Member<'a> {
        #[serde(rename = "ID")]
        id: u64,
        name: &'a str,
        #[serde(rename = "peerURLs")]
        peer_urls: &'a [String],
        #[serde(rename = "clientURLs")]
        client_urls: &'a [String],
        #[serde(rename = "isLearner")]
        is_learner: bool,
    }
    Members<'a> {
        header: Option<Header>,
        members: Vec<Member<'a>>,
    }
    Alarm {
        #[serde(rename = "memberID")]
        member_id: u64,
        alarm: i32,
    }
    Alarms {
        header: Option<Header>,
        alarms: Vec<Alarm>,
    }
}

/// The header's fields stand beside the others here, and no field is ever left out.
#[derive(Serialize)]
pub struct LeaseGranted<'a> {
    #[serde(flatten)]
    header: Option<Header>,
    #[serde(rename = "ID")]
    id: i64,
    #[serde(rename = "TTL")]
    ttl: i64,
    #[serde(rename = "Error")]
    error: &'a str,
}

#[derive(Serialize)]
pub struct LeaseKeptAlive {
    #[serde(flatten)]
    header: Option<Header>,
    #[serde(rename = "ID")]
    id: i64,
    #[serde(rename = "TTL")]
    ttl: i64,
}

#[derive(Serialize)]
pub struct LeaseTimeToLive<'a> {
    #[serde(flatten)]
    header: Option<Header>,
    id: i64,
    ttl: i64,
    #[serde(rename = "granted-ttl")]
    granted_ttl: i64,
    keys: Option<Vec<Base64<'a>>>,
}

#[derive(Serialize)]
pub struct LeaseListed {
    id: i64,
}

#[derive(Serialize)]
pub struct Leases {
    #[serde(flatten)]
    header: Option<Header>,
    leases: Vec<LeaseListed>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Watch<'a> {
    header: Option<Header>,
    events: Vec<Event<'a>>,
    compact_revision: i64,
    canceled: bool,
    created: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EndpointStatus<'a> {
    endpoint: &'a str,
    status: Status<'a>,
}

#[derive(Serialize)]
pub struct EndpointHash<'a> {
    #[serde(rename = "Endpoint")]
    endpoint: &'a str,
    #[serde(rename = "HashKV")]
    hash: Hash,
}

#[derive(Serialize)]
pub struct EndpointHealth<'a> {
    endpoint: &'a str,
    health: bool,
    took: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

fn header(header: &Option<ResponseHeader>) -> Option<Header> {
    header.as_ref().map(|header| Header {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision,
        raft_term: header.raft_term,
    })
}

impl<'a> From<&'a mvccpb::KeyValue> for KeyValue<'a> {
    fn from(kv: &'a mvccpb::KeyValue) -> KeyValue<'a> {
        KeyValue {
            key: Base64(&kv.key),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: Base64(&kv.value),
            lease: kv.lease,
        }
    }
}

fn key_values(kvs: &[mvccpb::KeyValue]) -> Vec<KeyValue<'_>> {
    kvs.iter().map(KeyValue::from).collect()
}

impl<'a> From<&'a PutResponse> for Put<'a> {
    fn from(answer: &'a PutResponse) -> Put<'a> {
        Put { header: header(&answer.header), prev_kv: answer.prev_kv.as_ref().map(KeyValue::from) }
    }
}

impl<'a> From<&'a RangeResponse> for Get<'a> {
    fn from(answer: &'a RangeResponse) -> Get<'a> {
        Get { header: header(&answer.header), kvs: key_values(&answer.kvs), more: answer.more, count: answer.count }
    }
}

impl<'a> From<&'a DeleteRangeResponse> for Delete<'a> {
    fn from(answer: &'a DeleteRangeResponse) -> Delete<'a> {
        Delete { header: header(&answer.header), deleted: answer.deleted, prev_kvs: key_values(&answer.prev_kvs) }
    }
}

impl<'a> From<&'a WatchResponse> for Watch<'a> {
    fn from(response: &'a WatchResponse) -> Watch<'a> {
        let event = |event: &'a mvccpb::Event| Event {
            r#type: event.r#type,
            kv: event.kv.as_ref().map(KeyValue::from),
            prev_kv: event.prev_kv.as_ref().map(KeyValue::from),
        };
        Watch {
            header: header(&response.header),
            events: response.events.iter().map(event).collect(),
            compact_revision: response.compact_revision,
            canceled: response.canceled,
            created: response.created,
        }
    }
}

impl<'a> From<&'a LeaseGrantResponse> for LeaseGranted<'a> {
    fn from(answer: &'a LeaseGrantResponse) -> LeaseGranted<'a> {
        LeaseGranted { header: header(&answer.header), id: answer.id, ttl: answer.ttl, error: &answer.error }
    }
}

impl From<&LeaseRevokeResponse> for LeaseRevoked {
    fn from(answer: &LeaseRevokeResponse) -> LeaseRevoked {
        LeaseRevoked { header: header(&answer.header) }
    }
}

impl From<&LeaseKeepAliveResponse> for LeaseKeptAlive {
    fn from(answer: &LeaseKeepAliveResponse) -> LeaseKeptAlive {
        LeaseKeptAlive { header: header(&answer.header), id: answer.id, ttl: answer.ttl }
    }
}

impl<'a> From<&'a LeaseTimeToLiveResponse> for LeaseTimeToLive<'a> {
    fn from(answer: &'a LeaseTimeToLiveResponse) -> LeaseTimeToLive<'a> {
        let keys = (!answer.keys.is_empty()).then(|| answer.keys.iter().map(|key| Base64(key)).collect());
        LeaseTimeToLive {
            header: header(&answer.header),
            id: answer.id,
            ttl: answer.ttl,
            granted_ttl: answer.granted_ttl,
            keys,
        }
    }
}

impl From<&LeaseLeasesResponse> for Leases {
    fn from(answer: &LeaseLeasesResponse) -> Leases {
        let leases = answer.leases.iter().map(|lease| LeaseListed { id: lease.id }).collect();
        Leases { header: header(&answer.header), leases }
    }
}

impl<'a> From<&'a MemberListResponse> for Members<'a> {
    fn from(answer: &'a MemberListResponse) -> Members<'a> {
        let members = answer.members.iter().map(|member| Member {
            id: member.id,
            name: &member.name,
            peer_urls: &member.peer_ur_ls,
            client_urls: &member.client_ur_ls,
            is_learner: member.is_learner,
        });
        Members { header: header(&answer.header), members: members.collect() }
    }
}

impl From<&AlarmResponse> for Alarms {
    fn from(answer: &AlarmResponse) -> Alarms {
        let alarms = answer.alarms.iter().map(|alarm| Alarm { member_id: alarm.member_id, alarm: alarm.alarm });
        Alarms { header: header(&answer.header), alarms: alarms.collect() }
    }
}

impl<'a> From<&'a (String, StatusResponse)> for EndpointStatus<'a> {
    fn from((endpoint, status): &'a (String, StatusResponse)) -> EndpointStatus<'a> {
        let status = Status {
            header: header(&status.header),
            version: &status.version,
            db_size: status.db_size,
            leader: status.leader,
            raft_index: status.raft_index,
            raft_term: status.raft_term,
            raft_applied_index: status.raft_applied_index,
            errors: &status.errors,
            db_size_in_use: status.db_size_in_use,
            is_learner: status.is_learner,
            storage_version: &status.storage_version,
            db_size_quota: status.db_size_quota,
        };
        EndpointStatus { endpoint, status }
    }
}

impl<'a> From<&'a (String, HashKvResponse)> for EndpointHash<'a> {
    fn from((endpoint, answer): &'a (String, HashKvResponse)) -> EndpointHash<'a> {
        let hash = Hash {
            header: header(&answer.header),
            hash: answer.hash,
            compact_revision: answer.compact_revision,
            hash_revision: answer.hash_revision,
        };
        EndpointHash { endpoint, hash }
    }
}

impl<'a> From<&'a Health> for EndpointHealth<'a> {
    fn from(health: &'a Health) -> EndpointHealth<'a> {
        EndpointHealth {
            endpoint: &health.endpoint,
            health: health.error.is_none(),
            took: go_duration(health.took),
            error: health.error.as_deref(),
        }
    }
}

/// What was found at several endpoints.
pub fn each<'a, T, J: From<&'a T>>(found: &'a [T]) -> Vec<J> {
    found.iter().map(J::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        let encoded = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn empty_fields_are_left_out_and_the_others_keep_their_order() {
        let answer = RangeResponse {
            header: Some(ResponseHeader { cluster_id: 1, member_id: 2, revision: 7, raft_term: 0 }),
            kvs: vec![mvccpb::KeyValue { key: "a".into(), create_revision: 2, mod_revision: 5, ..Default::default() }],
            more: false,
            count: 1,
        };
        assert_eq!(
            serde_json::to_string(&Get::from(&answer)).unwrap(),
            r#"{"header":{"cluster_id":1,"member_id":2,"revision":7},"kvs":[{"key":"YQ==","create_revision":2,"mod_revision":5}],"count":1}"#
        );
        let nothing = LeaseTimeToLiveResponse { id: 4660, ttl: -1, ..Default::default() };
        assert_eq!(
            serde_json::to_string(&LeaseTimeToLive::from(&nothing)).unwrap(),
            r#"{"id":4660,"ttl":-1,"granted-ttl":0,"keys":null}"#
        );
    }
}
