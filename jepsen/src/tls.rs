//! Certificates for one run, and connections with them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    },
};
use tonic::transport::Channel;
use tower::service_fn;

use crate::process::endpoint_of;

/// A certificate authority and one certificate by it that all members and clients show.
#[derive(Clone)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    connector: TlsConnector,
}

impl Tls {
    /// Writes the files into `dir`.
    pub fn new(dir: &Path) -> Result<Tls> {
        let mut authority = CertificateParams::default();
        // Not the name of what it signs, which would then seem to be signed by itself.
        authority.distinguished_name.push(DnType::CommonName, "authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let mut member = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        member.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = member.signed_by(&key, &authority)?;

        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone())?;
        let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], secret)?;
        config.alpn_protocols = vec![b"h2".to_vec()];

        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        Ok(Tls {
            ca: write("ca.crt", authority.pem())?,
            cert: write("member.crt", certificate.pem())?,
            key: write("member.key", key.serialize_pem())?,
            connector: TlsConnector::from(Arc::new(config)),
        })
    }

    /// What members need to be told.
    pub fn flags(&self) -> Vec<String> {
        let (ca, cert, key) = (self.ca.display(), self.cert.display(), self.key.display());
        ["", "peer-"]
            .iter()
            .flat_map(|side| {
                [
                    format!("--{side}cert-file={cert}"),
                    format!("--{side}key-file={key}"),
                    format!("--{side}trusted-ca-file={ca}"),
                    format!("--{side}client-cert-auth"),
                ]
            })
            .collect()
    }

    /// A channel to a port of this machine that connects on first use.
    pub fn channel(&self, port: u16) -> Channel {
        let connector = self.connector.clone();
        let connect = service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(("127.0.0.1", port)).await?;
                let name = ServerName::try_from("localhost").expect("a name");
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        // The connector speaks TLS; the channel is not to know.
        endpoint_of(&format!("http://127.0.0.1:{port}")).connect_with_connector_lazy(connect)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tls").field("ca", &self.ca).finish_non_exhaustive()
    }
}
