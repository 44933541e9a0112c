//! PEM files, and what is made of them: read anew when one has changed, so that certificates are replaced without a
//! restart. etcd reads its files at each handshake; here a handshake costs one look at each file's time and size.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::Mutex;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::{TlsError, protocol::Protocol, settings::Pair};

/// How a file looked. A link that points elsewhere shows another inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let metadata = fs::metadata(path).ok()?;
        Some(Stamp { modified: metadata.modified().ok()?, bytes: metadata.len(), inode: metadata.ino() })
    }
}

type Make<T> = dyn Fn() -> Result<T, TlsError> + Send + Sync;

/// Something made of files, kept until they change. Files that cannot be used (half written, say) change nothing.
pub struct Reloaded<T> {
    files: Vec<PathBuf>,
    make: Box<Make<T>>,
    state: Mutex<State<T>>,
}

struct State<T> {
    current: Arc<T>,
    /// As the files were when they were last read, with success or without.
    seen: Vec<Option<Stamp>>,
}

impl<T> Reloaded<T> {
    pub fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let seen = stamps(&files);
        let current = Arc::new(make()?);
        Ok(Reloaded { files, make: Box::new(make), state: Mutex::new(State { current, seen }) })
    }

    pub fn get(&self) -> Arc<T> {
        // Before the files are read: what changes in between is seen next time.
        let now = stamps(&self.files);
        let mut state = self.state.lock();
        if state.seen != now {
            state.seen = now;
            match (self.make)() {
                Ok(made) => {
                    state.current = Arc::new(made);
                    tracing::info!(files = ?self.files, "read the changed TLS files");
                }
                Err(error) => tracing::warn!(%error, "cannot use the changed TLS files; keeping what was read before"),
            }
        }
        state.current.clone()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|path| Stamp::of(path)).collect()
}

pub fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::Io { path: path.into(), error })
}

pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |reason: String| TlsError::File { path: path.into(), reason };
    let all = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|e| error(e.to_string()))?;
    if all.is_empty() { Err(error("there is no certificate in it".into())) } else { Ok(all) }
}

/// A certificate with its chain and key, which fit together.
pub fn certified_key(pair: &Pair, protocol: &Protocol) -> Result<Arc<CertifiedKey>, TlsError> {
    let certificates = certificates(&pair.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&pair.key)?)
        .map_err(|error| TlsError::File { path: pair.key.clone(), reason: error.to_string() })?;
    let key = CertifiedKey::from_der(certificates, key, &protocol.provider);
    let key = key.map_err(|error| TlsError::Pair { cert: pair.cert.clone(), key: pair.key.clone(), error })?;
    Ok(Arc::new(key))
}

/// The authorities in a file, or the system's.
pub fn authorities(path: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = path else {
        // Some of the system's may be in a form that is not understood.
        roots.add_parsable_certificates(system_roots()?);
        return Ok(roots);
    };
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsError::File { path: path.into(), reason: error.to_string() })?;
    }
    Ok(roots)
}

/// The certificates of a file of authorities, which are trusted themselves.
pub fn trusted(path: Option<&Path>) -> Result<HashSet<CertificateDer<'static>>, TlsError> {
    path.map_or_else(|| Ok(HashSet::new()), |path| Ok(certificates(path)?.into_iter().collect()))
}

/// Where Linux systems keep the authorities they trust, as Go looks for them.
const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let given = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let places = given.map_or_else(|| SYSTEM_ROOTS.iter().map(PathBuf::from).collect(), |given| vec![given]);
    for place in places {
        match certificates(&place) {
            Err(TlsError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => continue,
            found => return found,
        }
    }
    Err(TlsError::NoSystemRoots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_only_when_it_has_changed_and_only_if_it_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        fs::write(&path, "1").unwrap();
        let reads = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let make = {
            let (path, reads) = (path.clone(), reads.clone());
            move || {
                reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let text = String::from_utf8(read(&path)?).unwrap();
                text.parse::<u32>().map_err(|e| TlsError::File { path: path.clone(), reason: e.to_string() })
            }
        };
        let number = Reloaded::new(vec![path.clone()], make).unwrap();
        assert_eq!((*number.get(), *number.get()), (1, 1));
        assert_eq!(reads.load(std::sync::atomic::Ordering::Relaxed), 1);
        fs::write(&path, "half").unwrap();
        assert_eq!((*number.get(), *number.get()), (1, 1));
        assert_eq!(reads.load(std::sync::atomic::Ordering::Relaxed), 2, "a bad file is not read at each handshake");
        fs::remove_file(&path).unwrap();
        assert_eq!(*number.get(), 1);
        fs::write(&path, "23").unwrap();
        assert_eq!(*number.get(), 23);
    }
}
