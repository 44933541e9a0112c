//! Authorities and certificates made for a test.

#![allow(dead_code)] // Each test file uses a part of it.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub struct Authority {
    pub file: PathBuf,
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key in files, and in memory.
pub struct Issued {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub cert_pem: String,
    pub key_pem: String,
}

impl Authority {
    pub fn new(dir: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { file, dir: dir.into(), issuer: Issuer::new(params, key) }
    }

    /// One that is valid for `days` from yesterday on, with a serial number.
    pub fn issue(&self, name: &str, hosts: &[&str], serial: u64, days: u32) -> Issued {
        let hosts: Vec<String> = hosts.iter().map(|host| host.to_string()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        let yesterday = SystemTime::now() - DAY;
        params.not_before = (yesterday - DAY).into();
        params.not_after = (yesterday + DAY * days).into();
        let key = KeyPair::generate().unwrap();
        let cert_pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let at = |kind: &str| self.dir.join(format!("{name}-{serial}-{kind}.pem"));
        let issued = Issued { cert: at("cert"), key: at("key"), cert_pem, key_pem: key.serialize_pem() };
        fs::write(&issued.cert, &issued.cert_pem).unwrap();
        fs::write(&issued.key, &issued.key_pem).unwrap();
        issued
    }

    /// For this machine, valid.
    pub fn issue_here(&self, name: &str) -> Issued {
        self.issue(name, &["127.0.0.1", "localhost"], 7, 30)
    }

    /// A revocation list in DER.
    pub fn revoke(&self, serials: &[u64]) -> Vec<u8> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: SystemTime::now().into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (SystemTime::now() - DAY).into(),
            next_update: (SystemTime::now() + DAY).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

/// GET over TLS with HTTP/1.1, and the certificate that the server showed.
pub fn get(port: u16, path: &str, authority: &Path, shown: Option<&Issued>) -> Result<(String, Vec<u8>), io::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match shown {
        Some(shown) => {
            let chain = vec![CertificateDer::from_pem_slice(shown.cert_pem.as_bytes()).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(shown.key_pem.as_bytes()).unwrap())
        }
        None => Ok(config.with_no_client_auth()),
    };
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::new(config.unwrap()), name).unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = StreamOwned::new(connection, socket);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let certificate = stream.conn.peer_certificates().unwrap()[0].to_vec();
    Ok((String::from_utf8(answer).unwrap(), certificate))
}
