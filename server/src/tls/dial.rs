//! The connecting end: streams to members. Source: etcd, `client/pkg/transport/listener.go` (ClientConfig),
//! `unix_listener.go`.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use raft::PeerStream;
use rustls::{
    ClientConfig,
    client::{Resumption, WebPkiServerVerifier},
    pki_types::ServerName,
    sign::SingleCertAndKey,
};
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{
    TlsError,
    files::{self, Reloaded},
    settings::{Pair, Settings},
    verify::{ServerVerifier, Trust},
};
use crate::urls::{Target, Url};

/// Connects to members by their URLs.
pub struct Dialer {
    config: Option<Reloaded<ClientConfig>>,
    server_name: Option<String>,
}

impl Dialer {
    /// `pair` is the one of the settings, or one that was made.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn new(settings: &Settings, pair: Option<&Pair>) -> Result<Dialer, TlsError> {
        let shown = settings.client_pair.as_ref().filter(|_| settings.auto.is_none()).or(pair).cloned();
        let pair_files = shown.iter().flat_map(|pair| [pair.cert.clone(), pair.key.clone()]);
        let files: Vec<PathBuf> = pair_files.chain(settings.trusted_ca_file.clone()).collect();
        // Without an authority given only the system's could help, and there may be none: a cluster without TLS needs
        // none.
        let has_authority = settings.auto.is_some() || settings.trusted_ca_file.is_some();
        let is_used = has_authority || files::authorities(None).is_ok();
        let kept = settings.clone();
        let make = move || client_config(&kept, shown.as_ref());
        let config = is_used.then(|| Reloaded::new(files, make)).transpose()?;
        Ok(Dialer { config, server_name: settings.server_name.clone() })
    }

    /// Without TLS.
    pub fn plain() -> Dialer {
        Dialer { config: None, server_name: None }
    }

    /// Opens a connection to `url`.
    pub async fn connect(&self, url: &str) -> io::Result<Box<dyn PeerStream>> {
        self.connect_for(url, None).await
    }

    /// The same; over TCP it fails when the other side's kernel has not acknowledged what was sent for so long, however
    /// much else waits to be sent (tcp(7), TCP_USER_TIMEOUT).
    async fn connect_for(&self, url: &str, silence_max: Option<Duration>) -> io::Result<Box<dyn PeerStream>> {
        let invalid = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
        let url = Url::parse(url).map_err(|error| invalid(&error))?;
        let stream: Box<dyn PeerStream> = match url.target() {
            Target::Tcp(host, port) => {
                let stream = TcpStream::connect((host, port)).await?;
                stream.set_nodelay(true)?;
                SockRef::from(&stream).set_tcp_user_timeout(silence_max)?;
                Box::new(stream)
            }
            Target::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        if !url.is_tls() {
            return Ok(stream);
        }
        let config = self.config.as_ref().ok_or_else(|| invalid(&TlsError::NoSystemRoots))?;
        // Without a host it is this machine's socket.
        let name = self.server_name.as_deref().or(url.host()).unwrap_or("localhost").to_string();
        let name = ServerName::try_from(name).map_err(|error| invalid(&error))?;
        let stream = TlsConnector::from(config.get()).connect(name, stream).await?;
        Ok(Box::new(stream))
    }
}

/// What Raft connects with. What was sent may stay for so long without the receiving kernel's acknowledgement.
pub struct ForRaft {
    pub dialer: Arc<Dialer>,
    pub silence_max: Duration,
}

impl raft::Connect for ForRaft {
    fn connect(&self, url: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        let (dialer, silence_max) = (self.dialer.clone(), self.silence_max);
        async move { dialer.connect_for(&url, Some(silence_max)).await }.boxed()
    }
}

fn client_config(settings: &Settings, shown: Option<&Pair>) -> Result<ClientConfig, TlsError> {
    let protocol = &settings.protocol;
    let wrong = |error: &dyn std::fmt::Display| TlsError::Rustls(error.to_string());
    let trust = if settings.auto.is_some() {
        Trust::Anyone
    } else {
        let roots = files::authorities(settings.trusted_ca_file.as_deref())?;
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), protocol.provider.clone());
        Trust::Authorities {
            inner: inner.build().map_err(|error| wrong(&error))?,
            trusted: files::trusted(settings.trusted_ca_file.as_deref())?,
        }
    };
    let verifier = ServerVerifier { trust, provider: protocol.provider.clone(), allowed: settings.allowed.clone() };
    let builder = ClientConfig::builder_with_provider(protocol.provider.clone())
        .with_protocol_versions(&protocol.versions)
        .map_err(|error| wrong(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match shown {
        Some(pair) => {
            let key = files::certified_key(pair, protocol)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    if settings.asks_for_http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    #[tokio::test]
    async fn a_connection_of_raft_ends_when_nothing_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let silence_max = Duration::from_millis(300);
        let mut stream = Dialer::plain().connect_for(&url, Some(silence_max)).await.unwrap();
        // What it does not read fills both kernels' buffers.
        let _reader = listener.accept().await.unwrap();
        let written = async {
            loop {
                stream.write_all(&[0; 64 << 10]).await?;
            }
        };
        let ended: io::Result<()> = tokio::time::timeout(50 * silence_max, written).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
