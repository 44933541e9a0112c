//! TLS of the connecting end. Source: etcd, `client/pkg/transport/listener.go` (ClientConfig).
//!
//! As in Go, a certificate that is itself in the file of authorities is trusted, also where it is marked as one of an
//! authority: `openssl req -x509` and `--auto-tls` make such certificates.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};

use crate::{Error, Result};

/// What a client trusts, and what it shows of itself.
///
/// `Tls::default()` trusts the authorities that the system trusts, and shows nothing. The files are read again at each
/// connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authorities' certificates, PEM. None: the system's.
    pub ca: Option<PathBuf>,
    /// The client's own certificate with its chain, and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that servers' certificates must be for. None: the endpoint's host.
    pub server_name: Option<String>,
    /// Takes any certificate. Whoever stands between client and server then reads and changes everything.
    pub insecure_skip_verify: bool,
}

impl Tls {
    /// Trusts the authorities of this file alone.
    pub fn with_ca(ca: impl Into<PathBuf>) -> Tls {
        Tls { ca: Some(ca.into()), ..Tls::default() }
    }

    /// Shows this certificate, whose key is in the other file.
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Tls {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    pub(crate) fn server_name(&self, host: &str) -> Result<ServerName<'static>> {
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_string())
            .map_err(|_| Error::Tls(format!("{name:?} is no name a certificate can be for")))
    }

    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = if self.insecure_skip_verify {
            Arc::new(Anyone(provider.clone()))
        } else {
            Arc::new(Authorities::new(self.ca.as_deref(), provider.clone())?)
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Tls(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let der = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| of_file(key, error))?;
                let fits = builder.with_client_auth_cert(chain, der);
                fits.map_err(|error| of_file(certificate, format!("with the key {}: {error}", key.display())))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn of_file(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Tls(format!("{}: {reason}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| of_file(path, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| of_file(path, error))?;
    if all.is_empty() { Err(of_file(path, "there is no certificate in it")) } else { Ok(all) }
}

#[derive(Debug)]
struct Authorities {
    inner: Arc<WebPkiServerVerifier>,
    /// The certificates of the file of authorities.
    given: HashSet<CertificateDer<'static>>,
}

impl Authorities {
    fn new(ca: Option<&Path>, provider: Arc<CryptoProvider>) -> Result<Authorities> {
        let mut roots = RootCertStore::empty();
        let mut given = HashSet::new();
        match ca {
            Some(path) => {
                for certificate in certificates(path)? {
                    given.insert(certificate.clone());
                    roots.add(certificate).map_err(|error| of_file(path, error))?;
                }
            }
            None => {
                // Some of the system's may be in a form that is not understood.
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    let reason = "this system has no certificates of authorities; name a file of them (--cacert)";
                    return Err(Error::Tls(reason.to_string()));
                }
            }
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Authorities { inner: inner.map_err(|error| Error::Tls(error.to_string()))?, given })
    }
}

impl ServerCertVerifier for Authorities {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match found {
            // webpki looks at the times first, so what it refuses for another reason is within them.
            Err(rustls::Error::InvalidCertificate(reason))
                if self.given.contains(end_entity) && !is_of_time(&reason) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            found => found,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn is_of_time(reason: &CertificateError) -> bool {
    matches!(
        reason,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

/// Asks for no more than that the server has the key of the certificate it shows.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
