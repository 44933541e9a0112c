//! Which HTTP requests are served: by the host they ask for, and to which web pages browsers may give the answers.
//! Source: etcd, `server/embed/serve.go` (accessController), `server/etcdserver/server_access_control.go`.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use crate::{
    context::Context,
    http,
    tls::{ClientCertificate, Secured},
};

const METHODS: HeaderValue = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
/// etcd's text.
const IGNORED_NAME: &str =
    "CommonName of client sending a request against gateway will be ignored and not used as expected";
const HEADERS: HeaderValue = HeaderValue::from_static("accept, content-type, authorization");

/// A list of the command line: `*` or nothing lets all through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    All,
    Only(BTreeSet<String>),
}

impl Allowed {
    pub fn from_list(list: impl IntoIterator<Item = String>) -> Allowed {
        let list: BTreeSet<String> = list.into_iter().collect();
        if list.is_empty() || list.contains("*") { Allowed::All } else { Allowed::Only(list) }
    }

    fn has(&self, value: &str) -> bool {
        match self {
            Allowed::All => true,
            Allowed::Only(list) => list.contains(value),
        }
    }
}

/// `--cors` and `--host-whitelist`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub origins: Allowed,
    /// Checked where there is no TLS, which binds a name to its server by itself.
    pub hosts: Allowed,
}

/// What the rules are decided by.
pub struct Control {
    pub access: Access,
    pub with_gateway: bool,
    pub ctx: Arc<Context>,
}

/// Middleware of the client listeners' HTTP endpoints.
pub async fn control(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let access = &control.access;
    let host = host(&request);
    let is_secured = request.extensions().get::<Secured>().is_some();
    if !is_secured && !access.hosts.has(&host) {
        tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
        return http::error(StatusCode::MISDIRECTED_REQUEST, &misdirected(&host));
    }
    if control.with_gateway && is_named(&request) && control.ctx.store.is_auth_enabled() {
        return http::error(StatusCode::BAD_REQUEST, IGNORED_NAME);
    }
    let cors = access.cors(request.headers());
    let mut response =
        if request.method() == Method::OPTIONS { StatusCode::OK.into_response() } else { next.run(request).await };
    response.headers_mut().extend(cors);
    response
}

impl Access {
    /// The headers that let a web page of the request's origin see the answer.
    fn cors(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let origin = match (&self.origins, headers.get(header::ORIGIN)) {
            (Allowed::All, _) => HeaderValue::from_static("*"),
            (Allowed::Only(list), Some(origin)) if origin.to_str().is_ok_and(|origin| list.contains(origin)) => {
                origin.clone()
            }
            (Allowed::Only(_), _) => return Vec::new(),
        };
        vec![
            (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
        ]
    }
}

/// Whether a call of the gateway comes with a certificate whose name its sender may take for a user's.
fn is_named(request: &Request) -> bool {
    let path = request.uri().path();
    let certificate = request.extensions().get::<ClientCertificate>();
    (path.starts_with("/v3/") || path.starts_with("/v3beta/"))
        && certificate.is_some_and(|certificate| !certificate.common_name.is_empty())
}

/// The host a request asks for, without its port.
fn host(request: &Request) -> String {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = header.or(request.uri().authority().map(|authority| authority.as_str())).unwrap_or_default();
    without_port(host).to_string()
}

/// As Go's net.SplitHostPort; whatever that does not take is left as it is.
fn without_port(host: &str) -> &str {
    let Some((name, _)) = host.rsplit_once(':') else { return host };
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(v6) => v6,
        None if name.contains([':', '[', ']']) => host,
        None => name,
    }
}

fn misdirected(host: &str) -> String {
    format!(
        "\nThe request arrived, but this member does not go by the name in its Host header.\n\n\
         Either of these helps:\n\
         - Turn TLS on: HTTPS requests are served by any name.\n\
         - Add the name to the flag: --host-whitelist {host:?}\n\n\
         The check is against DNS rebinding (CVE-2018-5702).\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Allowed {
        Allowed::from_list(items.iter().map(|item| item.to_string()))
    }

    #[test]
    fn a_star_and_nothing_let_all_through() {
        assert_eq!(list(&[]), Allowed::All);
        assert_eq!(list(&["a", "*"]), Allowed::All);
        assert!(list(&["a", "b"]).has("a") && !list(&["a", "b"]).has("c"));
    }

    #[test]
    fn a_host_loses_its_port_and_brackets() {
        for (host, name) in [
            ("localhost:2379", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:2379", "::1"),
            ("[::1]", "[::1]"),
            ("localhost:::", "localhost:::"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), name, "{host}");
        }
    }

    #[test]
    fn a_certificates_name_is_no_users_at_the_gateway() {
        let request = |path: &str, name: Option<&str>| {
            let mut request = Request::builder().uri(path).body(axum::body::Body::empty()).unwrap();
            if let Some(name) = name {
                request.extensions_mut().insert(ClientCertificate { common_name: name.into() });
            }
            request
        };
        assert!(is_named(&request("/v3/kv/put", Some("u"))) && is_named(&request("/v3beta/kv/put", Some("u"))));
        assert!(!is_named(&request("/v3/kv/put", Some(""))) && !is_named(&request("/v3/kv/put", None)));
        assert!(!is_named(&request("/health", Some("u"))));
    }

    #[test]
    fn only_a_listed_origin_is_named() {
        let origin = |origin: &'static str| HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static(origin))]);
        let named = |origins, headers: &HeaderMap| {
            let cors = Access { origins, hosts: Allowed::All }.cors(headers);
            cors.into_iter().find(|(name, _)| name == header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|(_, value)| value)
        };
        assert_eq!(named(Allowed::All, &HeaderMap::new()).unwrap(), "*");
        let only = list(&["http://a:1"]);
        assert_eq!(named(only.clone(), &origin("http://a:1")).unwrap(), "http://a:1");
        assert_eq!(named(only.clone(), &origin("http://b:1")), None);
        assert_eq!(named(only, &HeaderMap::new()), None);
    }
}
