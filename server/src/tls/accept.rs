//! The listening end. Source: etcd, `client/pkg/transport/listener.go` (ServerConfig), `listener_tls.go`.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::SingleCertAndKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    ClientCertificate, TlsError,
    files::{self, Reloaded},
    san,
    settings::{Pair, Settings},
    verify::{self, ClientVerifier, Revoked},
};

/// As etcd's: what a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Accepts TLS on the listeners of one side.
pub struct Acceptor {
    config: Reloaded<ServerConfig>,
    check_san: bool,
    with_identity: bool,
    rejected: &'static str,
}

impl Acceptor {
    /// `pair` is the one of the settings, or one that was made.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn new(settings: &Settings, pair: &Pair) -> Result<Acceptor, TlsError> {
        if let Some(shown) = &settings.client_pair {
            // Nothing connects to clients' ports with it; like etcd, Pintle looks whether it could.
            files::certified_key(shown, &settings.protocol)?;
        }
        let (settings_kept, pair_kept) = (settings.clone(), pair.clone());
        let config = Reloaded::new(files_of(settings, pair), move || server_config(&settings_kept, &pair_kept))?;
        Ok(Acceptor {
            config,
            check_san: settings.check_san,
            with_identity: settings.client_cert_auth,
            rejected: match settings.side {
                super::settings::Side::Client => "rejected connection on client endpoint",
                super::settings::Side::Peer => "rejected connection on peer endpoint",
            },
        })
    }

    /// One that also holds certificates against the addresses they come from.
    pub fn checking_san(self) -> Acceptor {
        Acceptor { check_san: true, ..self }
    }

    /// The encrypted connection, and who is at its other end. `None` when there is no one to serve; that is logged.
    pub async fn accept<S>(
        &self,
        stream: S,
        remote: Option<SocketAddr>,
    ) -> Option<(TlsStream<S>, Option<ClientCertificate>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match timeout(HANDSHAKE_MAX, self.handshake(stream, remote)).await {
            Ok(Ok(accepted)) => Some(accepted),
            // One that only looks whether the port is open.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Ok(Err(error)) => self.reject(remote, &error),
            Err(_) => self.reject(remote, &"the TLS handshake took too long"),
        }
    }

    fn reject<T>(&self, remote: Option<SocketAddr>, error: &dyn std::fmt::Display) -> Option<T> {
        let remote = remote.map(|remote| remote.to_string()).unwrap_or_default();
        tracing::warn!("remote-addr" = remote, %error, "{}", self.rejected);
        None
    }

    async fn handshake<S>(
        &self,
        stream: S,
        remote: Option<SocketAddr>,
    ) -> io::Result<(TlsStream<S>, Option<ClientCertificate>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsAcceptor::from(self.config.get()).accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let Some(certificate) = certificate else { return Ok((stream, None)) };
        if let Some(remote) = remote.filter(|_| self.check_san) {
            san::check(certificate, remote.ip()).await.map_err(io::Error::other)?;
        }
        let common_name = verify::common_name(certificate);
        let identity = self.with_identity.then_some(ClientCertificate { common_name });
        Ok((stream, identity))
    }
}

fn files_of(settings: &Settings, pair: &Pair) -> Vec<PathBuf> {
    let asked = settings.asks_for_certificate();
    let lists = [&settings.trusted_ca_file, &settings.crl_file].into_iter().flatten().filter(|_| asked);
    [&pair.cert, &pair.key].into_iter().chain(lists).cloned().collect()
}

fn server_config(settings: &Settings, pair: &Pair) -> Result<ServerConfig, TlsError> {
    let wrong = |error: &dyn std::fmt::Display| TlsError::Rustls(error.to_string());
    let protocol = &settings.protocol;
    let builder = ServerConfig::builder_with_provider(protocol.provider.clone())
        .with_protocol_versions(&protocol.versions)
        .map_err(|error| wrong(&error))?;
    let key = files::certified_key(pair, protocol)?;
    let builder = if settings.asks_for_certificate() {
        let roots = Arc::new(files::authorities(settings.trusted_ca_file.as_deref())?);
        let inner = WebPkiClientVerifier::builder_with_provider(roots, protocol.provider.clone());
        builder.with_client_cert_verifier(Arc::new(ClientVerifier {
            inner: inner.build().map_err(|error| wrong(&error))?,
            trusted: files::trusted(settings.trusted_ca_file.as_deref())?,
            allowed: settings.allowed.clone(),
            revoked: settings.crl_file.as_deref().map(Revoked::read).transpose()?.unwrap_or_default(),
        }))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Each connection is verified with the files of its time.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
