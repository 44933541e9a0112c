//! TLS for clients and members.

/// What a verified client certificate says of its holder: an extension of each request on the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code)]
pub struct ClientCertificate {
    pub common_name: String,
}
