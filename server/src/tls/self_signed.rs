//! `--auto-tls` and `--peer-auto-tls`: a certificate that a member makes for itself at its first start, and keeps.
//! Source: etcd, `client/pkg/transport/listener.go` (SelfCert).
//!
//! etcd's key is on the curve P-521, which ring does not have; Pintle's is on P-256.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::{
    TlsError,
    settings::{Auto, Pair, Side},
};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The pair in `<data-dir>/fixtures/<side>`; it is made when one of its files is missing.
pub fn ensure(data_dir: &Path, side: Side, auto: &Auto) -> Result<Pair, TlsError> {
    let dir = data_dir.join("fixtures").join(side.name());
    let pair = Pair { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
    if pair.cert.exists() && pair.key.exists() {
        return Ok(pair);
    }
    let created = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    created.map_err(|error| TlsError::Io { path: dir, error })?;
    let until = SystemTime::now() + YEAR * auto.validity_years;
    tracing::warn!(years = auto.validity_years, cert = %pair.cert.display(), "automatically generate certificates");
    let key = KeyPair::generate()?;
    let certificate = params(auto, until)?.self_signed(&key)?;
    write(&pair.key, &key.serialize_pem())?;
    write(&pair.cert, &certificate.pem())?;
    Ok(pair)
}

fn params(auto: &Auto, until: SystemTime) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(auto.hosts.clone())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.not_before = SystemTime::now().into();
    params.not_after = until.into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// Written whole under another name first, so that a crash leaves no half of it.
fn write(path: &Path, text: &str) -> Result<(), TlsError> {
    let write = || -> io::Result<()> {
        let unfinished = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(|error| TlsError::Io { path: path.into(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{files, protocol::Protocol};

    #[test]
    fn a_pair_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let auto = Auto { hosts: vec!["127.0.0.1".into()], validity_years: 2 };
        let pair = ensure(dir.path(), Side::Client, &auto).unwrap();
        assert!(files::certified_key(&pair, &Protocol::parse("", "", "").unwrap()).is_ok());
        let written = fs::read(&pair.cert).unwrap();
        assert_eq!(ensure(dir.path(), Side::Client, &auto).unwrap(), pair);
        assert_eq!(fs::read(&pair.cert).unwrap(), written);
        assert_ne!(ensure(dir.path(), Side::Peer, &auto).unwrap(), pair);
    }
}
