//! What a request shows of who makes it.

use tonic::{Request, metadata::MetadataMap};

use crate::tls::ClientCertificate;

/// A token, or the name on a client certificate, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    pub(super) token: Option<String>,
    pub(super) common_name: Option<String>,
}

impl Caller {
    pub fn of<T>(request: &Request<T>) -> Caller {
        let metadata = request.metadata();
        // The gateway calls with the server's own certificate: the name on it says nothing about who called the
        // gateway.
        let is_gateway = metadata.contains_key("grpcgateway-accept");
        let certificate = request.extensions().get::<ClientCertificate>().filter(|_| !is_gateway);
        Caller { token: token(metadata), common_name: certificate.map(|certificate| certificate.common_name.clone()) }
    }
}

/// gRPC clients send it as `token`, the gateway's as `authorization`.
fn token(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get("token").or_else(|| metadata.get("authorization"))?;
    let value = String::from_utf8_lossy(value.as_bytes());
    Some(value.strip_prefix("Bearer ").unwrap_or(&value).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(metadata: &[(&'static str, &'static str)], common_name: Option<&str>) -> Caller {
        let mut request = Request::new(());
        for (key, value) in metadata {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        if let Some(name) = common_name {
            request.extensions_mut().insert(ClientCertificate { common_name: name.into() });
        }
        Caller::of(&request)
    }

    #[test]
    fn a_token_comes_as_token_or_as_authorization() {
        let token = |token: &str| Caller { token: Some(token.into()), common_name: None };
        assert_eq!(caller(&[("token", "t.1")], None), token("t.1"));
        assert_eq!(caller(&[("authorization", "Bearer t.1")], None), token("t.1"));
        assert_eq!(caller(&[("authorization", "a"), ("token", "t")], None), token("t"));
        assert_eq!(caller(&[], None), Caller::default());
    }

    #[test]
    fn the_gateway_s_certificate_names_nobody() {
        assert_eq!(caller(&[], Some("cn")).common_name.as_deref(), Some("cn"));
        assert_eq!(caller(&[("grpcgateway-accept", "*/*")], Some("cn")), Caller::default());
    }
}
