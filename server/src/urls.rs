//! The URLs of the command line: `scheme://host:port` or `unix://path`, kept as written, since member ids are computed
//! from the text.
//! Source: etcd, `client/pkg/types/urls.go`, `urlsmap.go`.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

/// `http://host:port`, `https://host:port`, `unix://path` or `unixs://path`. Ordered by its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    text: String,
    place: Place,
    is_tls: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Where to connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    Tcp(&'a str, u16),
    Unix(&'a std::path::Path),
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    /// A relative path is one below the working directory, as in etcd.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    #[error("{0}: the path of the Unix socket is missing")]
    NoSocket(String),
    #[error("URL address does not have the form \"host:port\": {0}")]
    Address(String),
    #[error("URL must not contain a path: {0}")]
    Path(String),
    #[error("no URL is given")]
    Empty,
    #[error("expected IP in URL for binding ({0})")]
    NoIp(String),
    #[error("unexpected empty host ({0})")]
    NoHost(String),
    #[error("{0:?} is not of the form name=url")]
    NoName(String),
}

impl Url {
    pub fn parse(text: &str) -> Result<Url, UrlError> {
        let text = text.trim();
        let error = |make: fn(String) -> UrlError| make(text.to_string());
        let (scheme, rest) = text.split_once("://").ok_or_else(|| error(UrlError::Scheme))?;
        let is_tls = match scheme {
            "http" | "unix" => false,
            "https" | "unixs" => true,
            _ => return Err(error(UrlError::Scheme)),
        };
        if scheme.starts_with("unix") {
            return match rest {
                "" => Err(error(UrlError::NoSocket)),
                path => Ok(Url { text: text.into(), place: Place::Unix(path.into()), is_tls }),
            };
        }
        if let Some(at) = rest.find(['/', '?', '#']) {
            return Err(error(if rest[..at].contains(':') { UrlError::Path } else { UrlError::Address }));
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| error(UrlError::Address))?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').ok_or_else(|| error(UrlError::Address))?,
            None if host.contains(':') => return Err(error(UrlError::Address)),
            None => host,
        };
        let port = port.parse().map_err(|_| error(UrlError::Address))?;
        Ok(Url { text: text.into(), place: Place::Tcp { host: host.into(), port }, is_tls })
    }

    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The name or address before the port; none of a Unix socket.
    pub fn host(&self) -> Option<&str> {
        match &self.place {
            Place::Tcp { host, .. } => Some(host),
            Place::Unix(_) => None,
        }
    }

    /// For the `Host` header.
    pub fn authority(&self) -> &str {
        match &self.place {
            Place::Tcp { .. } => self.text.split_once("://").map_or("", |(_, rest)| rest),
            Place::Unix(_) => "localhost",
        }
    }

    /// The name or address to connect to with its port, or the path of the socket.
    pub fn target(&self) -> Target<'_> {
        match &self.place {
            Place::Tcp { host, port } => Target::Tcp(host, *port),
            Place::Unix(path) => Target::Unix(path),
        }
    }

    /// A list separated by commas, sorted as etcd sorts it.
    pub fn parse_list(text: &str) -> Result<Vec<Url>, UrlError> {
        let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
        urls.sort();
        urls.dedup();
        Ok(urls)
    }

    /// Where to listen. Names but `localhost` are refused, as in etcd: what they mean may change.
    pub fn bind_address(&self) -> Result<Address, UrlError> {
        let (host, port) = match &self.place {
            Place::Tcp { host, port } => (host, *port),
            Place::Unix(path) => return Ok(Address::Unix(path.clone())),
        };
        let ip = match host.as_str() {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host.parse().map_err(|_| UrlError::NoIp(self.text.clone()))?,
        };
        Ok(Address::Tcp(SocketAddr::new(ip, port)))
    }

    /// Where others connect to.
    pub fn check_reachable(&self) -> Result<(), UrlError> {
        if self.host() == Some("") { Err(UrlError::NoHost(self.text.clone())) } else { Ok(()) }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn resolve(&self) -> Vec<SocketAddr> {
        let Place::Tcp { host, port } = &self.place else { return Vec::new() };
        let found = (host.as_str(), *port).to_socket_addrs();
        let mut addresses: Vec<SocketAddr> = found.map(|found| found.collect()).unwrap_or_default();
        addresses.sort();
        addresses
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether both lists, which are sorted, name the same addresses: by text, or else by what the names resolve to.
pub fn are_same(a: &[Url], b: &[Url]) -> bool {
    let resolved = |urls: &[Url]| {
        let mut all: Vec<_> = urls.iter().map(Url::resolve).collect();
        all.sort();
        all
    };
    a == b || (a.len() == b.len() && resolved(a) == resolved(b) && resolved(a).iter().all(|one| !one.is_empty()))
}

pub fn to_strings(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

pub fn join(urls: &[Url]) -> String {
    to_strings(urls).join(",")
}

pub fn has_duplicate<'a>(urls: impl IntoIterator<Item = &'a Url>) -> bool {
    let mut all: Vec<&Url> = urls.into_iter().collect();
    all.sort();
    all.windows(2).any(|pair| pair[0] == pair[1])
}

/// `name=url,…`: a name may come several times, once for each of its URLs.
pub fn parse_cluster(text: &str) -> Result<BTreeMap<String, Vec<Url>>, UrlError> {
    let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
    for part in text.split(',') {
        let (name, url) = part.trim().split_once('=').ok_or_else(|| UrlError::NoName(part.into()))?;
        if url.is_empty() {
            return Err(UrlError::Empty);
        }
        members.entry(name.into()).or_default().push(Url::parse(url)?);
    }
    for urls in members.values_mut() {
        urls.sort();
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_kept_as_written() {
        let url = Url::parse(" http://10.0.0.1:80").unwrap();
        assert_eq!(url.to_string(), "http://10.0.0.1:80");
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        assert_eq!(url.bind_address(), tcp("10.0.0.1:80"));
        assert_eq!(Url::parse("http://[::1]:2379").unwrap().bind_address(), tcp("[::1]:2379"));
        assert_eq!(Url::parse("https://localhost:1").unwrap().bind_address(), tcp("127.0.0.1:1"));
    }

    #[test]
    fn a_unix_socket_is_named_by_all_behind_the_scheme() {
        for (text, path) in [("unix:///tmp/a.sock", "/tmp/a.sock"), ("unixs://localhost:1", "localhost:1")] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.bind_address(), url.as_str()), (Ok(Address::Unix(path.into())), text));
            assert_eq!(url.is_tls(), text.starts_with("unixs"));
        }
        assert_eq!(Url::parse("unix://"), Err(UrlError::NoSocket("unix://".into())));
    }

    #[test]
    fn what_is_no_url_is_refused_with_the_reason() {
        let text = |text: &str| text.to_string();
        assert_eq!(Url::parse("ftp://a:1"), Err(UrlError::Scheme(text("ftp://a:1"))));
        assert_eq!(Url::parse("http://a"), Err(UrlError::Address(text("http://a"))));
        assert_eq!(Url::parse("http://a:1/x"), Err(UrlError::Path(text("http://a:1/x"))));
        assert_eq!(Url::parse("http://a:1").unwrap().bind_address(), Err(UrlError::NoIp(text("http://a:1"))));
        assert_eq!(Url::parse("http://:1").unwrap().check_reachable(), Err(UrlError::NoHost(text("http://:1"))));
    }

    #[test]
    fn a_cluster_gathers_the_urls_of_each_name() {
        let members = parse_cluster("a=http://h:2,b=http://h:3,a=http://h:1").unwrap();
        assert_eq!(to_strings(&members["a"]), ["http://h:1", "http://h:2"]);
        assert_eq!(to_strings(&members["b"]), ["http://h:3"]);
        assert_eq!(parse_cluster("http://h:1"), Err(UrlError::NoName("http://h:1".into())));
    }

    #[test]
    fn lists_of_urls_are_compared_by_what_they_resolve_to() {
        let list = |text: &str| Url::parse_list(text).unwrap();
        assert!(are_same(&list("http://a:1,http://b:1"), &list("http://b:1,http://a:1")));
        assert!(!are_same(&list("http://127.0.0.1:1"), &list("http://127.0.0.2:1")));
    }
}
