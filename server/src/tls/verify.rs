//! Verification of the other end's certificate: its authority, time and use by webpki, and by etcd's rules its common
//! name or host, and whether it is revoked. Source: etcd, `client/pkg/transport/listener.go`, `listener_tls.go`.
//!
//! A certificate that is itself in the file of authorities is trusted, as in Go, also where it is marked as one of an
//! authority: `openssl req -x509` makes such certificates.

use std::{collections::HashSet, path::Path, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime, pem::PemObject as _},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _, revocation_list::CertificateRevocationList};

use super::{TlsError, files, settings::Allowed};

/// Serial numbers of revoked certificates, as the bytes of the number without leading zeros.
#[derive(Debug, Default)]
pub struct Revoked(HashSet<Vec<u8>>);

impl Revoked {
    /// Reads a list in DER, as etcd takes it, or PEM. Like etcd it asks for nothing but the serial numbers.
    pub fn read(path: &Path) -> Result<Revoked, TlsError> {
        let error = |reason: String| TlsError::File { path: path.into(), reason };
        let bytes = files::read(path)?;
        let der = CertificateRevocationListDer::from_pem_slice(&bytes).map_or(bytes, |list| list.to_vec());
        let (_, list) = CertificateRevocationList::from_der(&der)
            .map_err(|reason| error(format!("no certificate revocation list: {reason}")))?;
        Ok(Revoked(list.iter_revoked_certificates().map(|one| one.user_certificate.to_bytes_be()).collect()))
    }

    fn holds(&self, certificate: &CertificateDer<'_>) -> Result<bool, Error> {
        Ok(self.0.contains(&parse(certificate)?.tbs_certificate.serial.to_bytes_be()))
    }
}

/// The common name of a certificate's subject; empty when there is none.
pub fn common_name(certificate: &CertificateDer<'_>) -> String {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return String::new() };
    let name = certificate.subject().iter_common_name().last().and_then(|name| name.as_str().ok());
    name.unwrap_or_default().to_string()
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let parsed = X509Certificate::from_der(certificate).map(|(_, certificate)| certificate);
    parsed.map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

impl Allowed {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let is_allowed = match self {
            Allowed::Any => true,
            Allowed::CommonNames(names) => names.contains(&common_name(certificate)),
            Allowed::Hostnames(hosts) => {
                let certificate = ParsedCertificate::try_from(certificate)?;
                let holds = |host: &String| {
                    let name = ServerName::try_from(host.as_str());
                    name.is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
                };
                hosts.iter().any(holds)
            }
        };
        if is_allowed { Ok(()) } else { Err(Error::General("client certificate authentication failed".into())) }
    }
}

/// What the certificate may be used for.
#[derive(Clone, Copy)]
enum Use {
    Client,
    Server,
}

/// Takes a certificate that stands among the authorities, where webpki refuses it for being an authority's.
fn trusted_itself(
    refused: Error,
    certificate: &CertificateDer<'_>,
    trusted: &HashSet<CertificateDer<'static>>,
    now: UnixTime,
    wanted: Use,
) -> Result<(), Error> {
    if !trusted.contains(certificate) {
        return Err(refused);
    }
    let parsed = parse(certificate)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    if now < from || now > to {
        return Err(CertificateError::Expired.into());
    }
    let uses = parsed.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    let is_for = uses.is_none_or(|uses| {
        let uses = uses.value;
        uses.any
            || matches!((wanted, uses.client_auth, uses.server_auth), (Use::Client, true, _) | (Use::Server, _, true))
    });
    if is_for { Ok(()) } else { Err(CertificateError::InvalidPurpose.into()) }
}

/// Asks a client for a certificate and looks at it.
#[derive(Debug)]
pub struct ClientVerifier {
    pub inner: Arc<dyn ClientCertVerifier>,
    pub trusted: HashSet<CertificateDer<'static>>,
    pub allowed: Allowed,
    pub revoked: Revoked,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Err(refused) = self.inner.verify_client_cert(end_entity, intermediates, now) {
            trusted_itself(refused, end_entity, &self.trusted, now, Use::Client)?;
        }
        self.allowed.check(end_entity)?;
        for certificate in [end_entity].into_iter().chain(intermediates) {
            if self.revoked.holds(certificate)? {
                return Err(CertificateError::Revoked.into());
            }
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Looks at the certificate of a member that is connected to.
#[derive(Debug)]
pub struct ServerVerifier {
    pub trust: Trust,
    pub provider: Arc<CryptoProvider>,
    pub allowed: Allowed,
}

#[derive(Debug)]
pub enum Trust {
    Authorities {
        inner: Arc<dyn ServerCertVerifier>,
        trusted: HashSet<CertificateDer<'static>>,
    },
    /// Members that made their certificates themselves know nothing of each other's: the connection is encrypted, and
    /// who is at its other end is taken on trust, as in etcd.
    Anyone,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Authorities { inner, trusted } = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let verified = inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let Err(refused) = verified {
            trusted_itself(refused, end_entity, trusted, now, Use::Server)?;
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        }
        self.allowed.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
