//! The format `fields`: a line for each field. Source: etcd, `etcdctl/ctlv3/command/printer_fields.go`.

use std::fmt::Display;

use client::{mvccpb::KeyValue, pb::ResponseHeader};

use super::go::quote;

#[derive(Default)]
pub struct Fields(String);

impl Fields {
    /// With the header's fields first.
    pub fn of(header: &Option<ResponseHeader>) -> Fields {
        Fields::default().header(header)
    }

    pub fn header(self, header: &Option<ResponseHeader>) -> Fields {
        let header = (*header).unwrap_or_default();
        self.show("ClusterID", header.cluster_id)
            .show("MemberID", header.member_id)
            .show("Revision", header.revision)
            .show("RaftTerm", header.raft_term)
    }

    /// A field as it is.
    pub fn show(mut self, name: &str, value: impl Display) -> Fields {
        self.0 += &format!("\"{name}\" : {value}\n");
        self
    }

    /// A field between quotes.
    pub fn quoted(self, name: &str, value: impl AsRef<[u8]>) -> Fields {
        self.show(name, quote(value.as_ref()))
    }

    pub fn key_value(self, prefix: &str, kv: &KeyValue) -> Fields {
        self.quoted(&format!("{prefix}Key"), &kv.key)
            .show(&format!("{prefix}CreateRevision"), kv.create_revision)
            .show(&format!("{prefix}ModRevision"), kv.mod_revision)
            .show(&format!("{prefix}Version"), kv.version)
            .quoted(&format!("{prefix}Value"), &kv.value)
            .show(&format!("{prefix}Lease"), kv.lease)
    }

    /// The end of one of several parts.
    pub fn blank(self) -> Fields {
        self.line("")
    }

    pub fn line(mut self, line: &str) -> Fields {
        self.0 += line;
        self.0.push('\n');
        self
    }

    pub fn and(mut self, other: Fields) -> Fields {
        self.0 += &other.0;
        self
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}
