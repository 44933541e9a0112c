//! The wire: etcd's v3 API, the commands Pintle replicates, etcd's errors, and the types every crate shares.
//!
//! | module | holds |
//! |---|---|
//! | [`etcdserverpb`], [`mvccpb`], [`authpb`], [`v3electionpb`], [`v3lockpb`] | etcd's messages, clients and servers, under etcd's package names |
//! | [`raw`] | the Watch service with events that are encoded once and shared |
//! | [`command`] | what the Raft log holds, and what applying it answers |
//! | [`peer`] | what members say to each other |
//! | [`codec`] | how messages become bytes on a connection |
//! | [`http2`] | frames and compressed headers |
//! | [`EtcdError`] | etcd's errors: gRPC code and text |
//! | [`Revision`], [`LeaseId`], [`MemberId`], [`ClusterId`], [`KeyRange`] | the values that pass between crates |
//!
//! Invariant: no I/O. `bytes` fields are [`bytes::Bytes`], so that a value is shared and never copied.

pub mod codec;
mod error;
pub mod http2;
mod types;

pub use error::EtcdError;
pub use types::{ClusterId, KeyRange, LeaseId, MemberId, Revision};

/// The descriptors of etcd's services, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.bin"));

macro_rules! packages {
    ($($(#[$doc:meta])* $module:ident = $package:literal;)*) => {$(
        $(#[$doc])*
        #[allow(clippy::all, rustdoc::all)]
        pub mod $module { tonic::include_proto!($package); }
    )*};
}

packages! {
    /// etcd's services and their messages.
    etcdserverpb = "etcdserverpb";
    /// Keys, versions and events.
    mvccpb = "mvccpb";
    /// Users, roles and permissions.
    authpb = "authpb";
    /// The Election service.
    v3electionpb = "v3electionpb";
    /// The Lock service.
    v3lockpb = "v3lockpb";
    /// The replicated commands and their outcomes.
    command = "command";
    /// What members say to each other.
    peer = "peer";
}

/// The Watch service with events as bytes: `repeated bytes` and `repeated Event` are one and the same on the wire, so
/// an event is encoded once, however many watchers it goes to.
pub mod raw {
    #![allow(clippy::all, rustdoc::all)]
    include!(concat!(env!("OUT_DIR"), "/raw/etcdserverpb.rs"));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::{etcdserverpb as pb, mvccpb, raw};

    #[test]
    fn a_raw_watch_response_has_the_bytes_of_the_typed_one() {
        let event = |key: &'static str| mvccpb::Event {
            r#type: mvccpb::event::EventType::Delete as i32,
            kv: Some(mvccpb::KeyValue { key: Bytes::from(key), mod_revision: 7, ..Default::default() }),
            prev_kv: Some(mvccpb::KeyValue { value: Bytes::from("v"), ..Default::default() }),
        };
        let events = vec![event("a"), event("b")];
        let header = Some(pb::ResponseHeader { cluster_id: 1, member_id: 2, revision: 7, raft_term: 3 });
        let shared = raw::WatchResponse {
            header: header.clone(),
            watch_id: 5,
            compact_revision: 4,
            cancel_reason: "why".into(),
            fragment: true,
            events: events.iter().map(|e| e.encode_to_vec().into()).collect(),
            ..Default::default()
        };
        let typed = pb::WatchResponse {
            header,
            watch_id: 5,
            compact_revision: 4,
            cancel_reason: "why".into(),
            fragment: true,
            events,
            ..Default::default()
        };
        assert_eq!(shared.encode_to_vec(), typed.encode_to_vec());
    }
}
