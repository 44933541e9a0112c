//! TLS for clients and members. Source: etcd, `client/pkg/transport`, `client/pkg/tlsutil`, `server/embed/etcd.go`.
//!
//! ```text
//! settings.rs      what the flags of one side (client or peer) say, and which combinations are refused
//! protocol.rs      TLS versions, and cipher suites by Go's names
//! files.rs         PEM files, read anew when they have changed
//! verify.rs        what is asked of a peer's certificate beyond its issuer: name, host, revocation
//! san.rs           whether a member connects from where its certificate says
//! accept.rs        the listening end of a connection
//! dial.rs          the connecting end
//! self_signed.rs   --auto-tls, --peer-auto-tls
//! ```
//!
//! Sessions are never resumed: each connection is held against the certificate, authority and revocation files as they
//! are when it begins.

pub mod accept;
pub mod dial;
mod files;
pub mod protocol;
mod san;
pub mod self_signed;
pub mod settings;
mod verify;

use std::sync::Arc;

pub use accept::Acceptor;
pub use dial::Dialer;
pub use settings::Settings;

use crate::config::Config;

/// Both ends of a member's connections.
pub struct Tls {
    pub client: Option<Arc<Acceptor>>,
    pub metrics: Option<Arc<Acceptor>>,
    pub peer: Option<Arc<Acceptor>>,
    pub dialer: Arc<Dialer>,
}

impl Tls {
    /// Reads the files. Certificates that are yet to be made are left out: those are written below the data directory,
    /// so it must be this member's.
    pub fn open(config: &Config, makes_certificates: bool) -> Result<Tls, TlsError> {
        let pair = |settings: &Settings| match &settings.auto {
            Some(auto) if makes_certificates => self_signed::ensure(&config.data_dir, settings.side, auto).map(Some),
            _ => Ok(settings.pair.clone()),
        };
        let (client, peer) = (pair(&config.client_tls)?, pair(&config.peer_tls)?);
        let acceptor = |settings: &Settings, pair: &Option<settings::Pair>| match pair {
            Some(pair) if settings.listens => Acceptor::new(settings, pair).map(Some),
            _ => Ok(None),
        };
        Ok(Tls {
            client: acceptor(&config.client_tls, &client)?.map(Arc::new),
            // As in etcd, where the metrics listeners alone of a client's are made with it.
            metrics: acceptor(&config.client_tls, &client)?.map(|acceptor| Arc::new(acceptor.checking_san())),
            peer: acceptor(&config.peer_tls, &peer)?.map(Arc::new),
            dialer: Arc::new(Dialer::new(&config.peer_tls, peer.as_ref())?),
        })
    }
}

/// What a verified client certificate says of its holder: an extension of each request on the connection. Only where
/// `--client-cert-auth` is given, as in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(dead_code)]
pub struct ClientCertificate {
    pub common_name: String,
}

/// An extension of each request that came over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secured;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {error}", path = path.display())]
    Io { path: std::path::PathBuf, error: std::io::Error },
    #[error("{path}: {reason}", path = path.display())]
    File { path: std::path::PathBuf, reason: String },
    #[error("{cert} and {key}: {error}", cert = cert.display(), key = key.display())]
    Pair { cert: std::path::PathBuf, key: std::path::PathBuf, error: rustls::Error },
    #[error("no certificate authority is given, and the system's are in none of the known places")]
    NoSystemRoots,
    #[error("TLS: {0}")]
    Rustls(String),
    #[error("making a certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// For `crate::fuzzing`: a file of certificates, one of revoked certificates, and a certificate as a client sends it.
#[cfg(fuzzing)]
pub fn fuzzing(path: &std::path::Path, data: &[u8]) {
    let _ = (files::certificates(path), files::authorities(Some(path)), files::trusted(Some(path)));
    let _ = verify::Revoked::read(path);
    let _ = verify::common_name(&data.into());
}
