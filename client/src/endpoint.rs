//! One server's address, and the connection to it.
//!
//! | written | means |
//! |---|---|
//! | `host:port` | TLS where [`Options::tls`] is set |
//! | `http://host:port`, `https://host:port` | without TLS, with TLS |
//! | `unix:///path`, `unix://path`, `unix:path` | a socket of this machine; TLS where [`Options::tls`] is set |
//! | `unixs://…`, `unixs:…` | the same with TLS |
//!
//! The forms are those of etcd's client, `client/v3/internal/endpoint/endpoint.go`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::Instant,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::{Error, Options, Result, tls::Tls};

/// After the first failure an endpoint is passed over for this long; twice as long after each further one.
const PASSED_OVER_FIRST: Duration = Duration::from_millis(250);
const PASSED_OVER_MOST: Duration = Duration::from_secs(8);

/// What a server may send before it must hear that it was read. HTTP/2's 64 KiB would make a large answer, or many
/// streams together, wait for the way there and back again and again.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// What an endpoint's text means.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    address: Address,
    is_tls: bool,
    /// The name that the server's certificate must be for.
    server_name: String,
}

impl Place {
    fn parse(text: &str, tls_by_default: bool) -> Result<Place, String> {
        for (scheme, is_tls) in [("unix:", tls_by_default), ("unixs:", true)] {
            if let Some(rest) = text.strip_prefix(scheme) {
                return Place::socket(rest.strip_prefix("//").unwrap_or(rest), is_tls);
            }
        }
        let (is_tls, rest) = match text.split_once("://") {
            None => (tls_by_default, text),
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(format!("the scheme {scheme:?} is not known")),
        };
        let uri: Uri = format!("http://{rest}").parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("it has no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
        let port = uri.port_u16().ok_or("it has no port; etcd's and Pintle's is usually 2379")?;
        Ok(Place { address: Address::Tcp(host.clone(), port), is_tls, server_name: host })
    }

    fn socket(path: &str, is_tls: bool) -> Result<Place, String> {
        let name = Path::new(path).file_name().and_then(|name| name.to_str()).ok_or("it has no path")?;
        // A name like `host:port` is that of etcd's own tests; the certificate is for the host.
        let server_name = name.split(':').next().unwrap_or(name).to_string();
        Ok(Place { address: Address::Unix(path.into()), is_tls, server_name })
    }

    /// What requests are addressed to. A socket's path would be no valid authority.
    fn origin(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        match &self.address {
            Address::Tcp(host, port) if host.contains(':') => format!("{scheme}://[{host}]:{port}"),
            Address::Tcp(host, port) => format!("{scheme}://{host}:{port}"),
            Address::Unix(_) => format!("{scheme}://localhost"),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn dial(place: &Place, tls: Option<&Tls>) -> io::Result<Box<dyn Stream>> {
    let stream: Box<dyn Stream> = match &place.address {
        Address::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
    };
    let Some(tls) = tls.filter(|_| place.is_tls) else { return Ok(stream) };
    // The files are read at each connection, so that certificates can be replaced while the client runs.
    let config = tls.config().map_err(io::Error::other)?;
    let name = tls.server_name(&place.server_name).map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    passed_over_until: Option<Instant>,
}

/// An endpoint of a client.
#[derive(Debug)]
pub(crate) struct Member {
    pub url: String,
    pub channel: Channel,
    health: Mutex<Health>,
}

impl Member {
    /// Checks what it is given; connects when the first request is sent.
    pub fn new(url: &str, options: &Options) -> Result<Arc<Member>> {
        let refused = |reason: String| Error::Endpoint { url: url.to_string(), reason };
        let place = Place::parse(url, options.tls.is_some()).map_err(refused)?;
        let tls = if place.is_tls { Some(options.tls.clone().unwrap_or_default()) } else { None };
        if let Some(tls) = &tls {
            tls.config()?;
            tls.server_name(&place.server_name)?;
        }
        let endpoint = Endpoint::from_shared(place.origin())
            .map_err(|error| refused(error.to_string()))?
            .connect_timeout(options.connect_timeout)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(options.ping_interval)
            .keep_alive_timeout(options.ping_timeout)
            .keep_alive_while_idle(true);
        let named = url.to_string();
        let connector = tower::service_fn(move |_uri: Uri| {
            let (place, tls, named) = (place.clone(), tls.clone(), named.clone());
            async move {
                let stream = dial(&place, tls.as_ref()).await;
                stream.map(TokioIo::new).map_err(|error| io::Error::new(error.kind(), format!("{named}: {error}")))
            }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        Ok(Arc::new(Member { url: url.to_string(), channel, health: Mutex::default() }))
    }

    /// Something was answered.
    pub fn works(&self) {
        *self.health.lock() = Health::default();
    }

    /// A request failed for a reason that is the server's or the way's to it.
    pub fn failed(&self) {
        let mut health = self.health.lock();
        let factor = 2u32.saturating_pow(health.failures.min(16));
        health.failures = health.failures.saturating_add(1);
        health.passed_over_until = Some(Instant::now() + (PASSED_OVER_FIRST * factor).min(PASSED_OVER_MOST));
    }

    /// Whether nothing speaks against sending a request there.
    pub fn is_healthy(&self) -> bool {
        self.health.lock().passed_over_until.is_none_or(|until| until <= Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(text, false).unwrap()
    }

    #[test]
    fn endpoints_are_read_as_etcds_client_reads_them() {
        let tcp = |host: &str, port| Address::Tcp(host.to_string(), port);
        assert_eq!(place("127.0.0.1:2379").address, tcp("127.0.0.1", 2379));
        assert_eq!(place("http://[::1]:1").address, tcp("::1", 1));
        assert_eq!(place("http://[::1]:1").origin(), "http://[::1]:1");
        assert!(place("https://a:1").is_tls && !place("http://a:1").is_tls && !place("a:1").is_tls);
        assert!(Place::parse("a:1", true).unwrap().is_tls);
        assert!(!Place::parse("http://a:1", true).unwrap().is_tls, "http is without TLS whatever else is given");
        for (text, path) in [("unix:///tmp/s:1", "/tmp/s:1"), ("unix://s:1", "s:1"), ("unix:s:1", "s:1")] {
            assert_eq!(place(text).address, Address::Unix(path.into()), "{text}");
            assert_eq!(place(text).server_name, "s");
        }
        assert!(place("unixs:///tmp/s").is_tls);
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_the_reason() {
        for (text, reason) in [
            ("ftp://a:1", "scheme"),
            ("http://", "empty"),
            ("", "empty"),
            ("a b", "invalid"),
            ("localhost", "port"),
            ("http://localhost", "port"),
            (":2379", "host"),
            ("unix://", "path"),
        ] {
            let error = Place::parse(text, false).unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
