//! Whether a certificate that names hosts or addresses comes from one of them. Source: etcd,
//! `client/pkg/transport/listener_tls.go` (checkCertSAN, isHostInDNS).

use std::{
    ffi::CStr,
    mem,
    net::{IpAddr, SocketAddr},
};

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// # Errors
/// Why the certificate does not fit.
pub async fn check(certificate: &CertificateDer<'_>, remote: IpAddr) -> Result<(), String> {
    let (addresses, names) = alternative_names(certificate)?;
    // A certificate that names nothing may come from anywhere.
    if (addresses.is_empty() && names.is_empty()) || addresses.contains(&remote.to_canonical()) {
        return Ok(());
    }
    if names.is_empty() {
        return Err(format!("x509: certificate is valid for {addresses:?}, not {remote}"));
    }
    if is_any_name_of(&names, remote).await {
        return Ok(());
    }
    Err(format!("tls: \"{remote}\" does not match any of DNSNames {names:?}"))
}

fn alternative_names(certificate: &CertificateDer<'_>) -> Result<(Vec<IpAddr>, Vec<String>), String> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let extension = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let (mut addresses, mut names) = (Vec::new(), Vec::new());
    for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.push(name.to_string()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                addresses.extend(v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)));
            }
            _ => {}
        }
    }
    Ok((addresses, names))
}

/// Asks for the address's name, and then for the names' addresses.
async fn is_any_name_of(names: &[String], remote: IpAddr) -> bool {
    let found = tokio::task::spawn_blocking(move || name_of(remote)).await.ok().flatten();
    if found.is_some_and(|found| names.iter().any(|name| fits(name, found.trim_end_matches('.')))) {
        return true;
    }
    for name in names.iter().filter(|name| !name.starts_with("*.")) {
        let resolved = tokio::net::lookup_host((name.as_str(), 0)).await;
        if resolved.is_ok_and(|mut all| all.any(|address| address.ip().to_canonical() == remote.to_canonical())) {
            return true;
        }
    }
    false
}

fn fits(name: &str, host: &str) -> bool {
    match name.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') => host.ends_with(suffix),
        _ => name == host,
    }
}

/// The name of an address, by the system's rules. It may ask the network, and block.
fn name_of(address: IpAddr) -> Option<String> {
    let address = socket2::SockAddr::from(SocketAddr::new(address, 0));
    let mut name = [0 as libc::c_char; libc::NI_MAXHOST as usize];
    // SAFETY: the address is a socket address of the length given, the buffer is writable and of the length given, and
    // no service name is asked for.
    let failed = unsafe {
        libc::getnameinfo(
            address.as_ptr().cast(),
            address.len(),
            name.as_mut_ptr(),
            mem::size_of_val(&name) as libc::socklen_t,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    if failed != 0 {
        return None;
    }
    // SAFETY: on success the buffer holds a string that ends with a zero byte.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    name.to_str().ok().map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        rcgen::generate_simple_self_signed(names).unwrap().cert.der().clone()
    }

    #[tokio::test]
    async fn a_certificate_comes_from_where_it_says() {
        let here = "127.0.0.1".parse().unwrap();
        assert_eq!(check(&certificate(&[]), here).await, Ok(()));
        assert_eq!(check(&certificate(&["10.0.0.1", "127.0.0.1"]), here).await, Ok(()));
        assert_eq!(check(&certificate(&["10.0.0.1", "localhost"]), here).await, Ok(()));
        let refused = check(&certificate(&["10.0.0.1"]), here).await.unwrap_err();
        assert!(refused.contains("not 127.0.0.1"), "{refused}");
        let refused = check(&certificate(&["*.nowhere.invalid"]), here).await.unwrap_err();
        assert_eq!(refused, "tls: \"127.0.0.1\" does not match any of DNSNames [\"*.nowhere.invalid\"]");
    }

    #[test]
    fn a_wildcard_stands_for_what_is_before_its_dot() {
        assert!(fits("*.example.com", "a.example.com") && fits("a.b", "a.b"));
        assert!(!fits("*.example.com", "example.com") && !fits("a.b", "c.b"));
    }
}
