//! TLS versions and cipher suites. Source: etcd, `client/pkg/tlsutil/versions.go`, `cipher_suites.go`.
//!
//! The suites of TLS 1.3 are always on: as with Go, the flag chooses among those of TLS 1.2 only.

use std::sync::Arc;

use rustls::{
    SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    version::{TLS12, TLS13},
};

use super::settings::SettingsError;

/// What both ends of all connections agree on.
#[derive(Debug, Clone)]
pub struct Protocol {
    pub provider: Arc<CryptoProvider>,
    pub versions: Vec<&'static SupportedProtocolVersion>,
}

/// Names of Go that name the same suite as another.
const ALIASES: [(&str, &str); 2] = [
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// Suites that Go has and Pintle does not: they have no forward secrecy, or a broken cipher.
const WEAK: [&str; 15] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

impl Protocol {
    /// `suites` is separated by commas; empty texts stand for etcd's defaults.
    pub fn parse(suites: &str, min: &str, max: &str) -> Result<Protocol, SettingsError> {
        let (lowest, highest) = (version(min)?.unwrap_or(12), version(max)?.unwrap_or(13));
        if lowest > highest {
            return Err(SettingsError::VersionsCrossed { min: min.into(), max: max.into() });
        }
        let mut provider = ring::default_provider();
        if !suites.is_empty() {
            if lowest == 13 {
                return Err(SettingsError::SuitesOfTls13);
            }
            provider.cipher_suites = chosen(suites)?;
        }
        let versions = match (lowest, highest) {
            (12, 12) => vec![&TLS12],
            (13, 13) => vec![&TLS13],
            _ => vec![&TLS13, &TLS12],
        };
        Ok(Protocol { provider: Arc::new(provider), versions })
    }
}

fn version(text: &str) -> Result<Option<u8>, SettingsError> {
    match text {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(12)),
        "TLS1.3" => Ok(Some(13)),
        _ => Err(SettingsError::Version(text.into())),
    }
}

/// Go's name; of a TLS 1.2 suite the two are the same, of a TLS 1.3 suite rustls says `TLS13_`.
fn name(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replace("TLS13_", "TLS_")
}

fn chosen(names: &str) -> Result<Vec<SupportedCipherSuite>, SettingsError> {
    let (mut chosen, rest): (Vec<_>, Vec<_>) =
        ring::ALL_CIPHER_SUITES.iter().copied().partition(|suite| suite.tls13().is_some());
    for wanted in names.split(',').map(str::trim) {
        let wanted = ALIASES.iter().find(|(alias, _)| *alias == wanted).map_or(wanted, |(_, name)| name);
        match rest.iter().find(|suite| name(suite) == wanted) {
            Some(suite) => chosen.push(*suite),
            None if chosen.iter().any(|suite| name(suite) == wanted) => {}
            None if WEAK.contains(&wanted) => return Err(SettingsError::WeakSuite(wanted.into())),
            None => {
                let known = ring::ALL_CIPHER_SUITES.iter().map(name).collect::<Vec<_>>().join(", ");
                return Err(SettingsError::UnknownSuite { name: wanted.into(), known });
            }
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(suites: &str, min: &str, max: &str) -> String {
        Protocol::parse(suites, min, max).unwrap_err().to_string()
    }

    #[test]
    fn versions_are_refused_in_etcds_words() {
        assert_eq!(Protocol::parse("", "TLS1.2", "").unwrap().versions.len(), 2);
        assert_eq!(Protocol::parse("", "TLS1.3", "TLS1.3").unwrap().versions, [&TLS13]);
        assert_eq!(refusal("", "SSL", ""), "unexpected TLS version \"SSL\" (must be one of: TLS1.2, TLS1.3)");
        assert_eq!(refusal("", "TLS1.3", "TLS1.2"), "min version (TLS1.3) is greater than max version (TLS1.2)");
        assert_eq!(
            refusal("TLS_AES_128_GCM_SHA256", "TLS1.3", ""),
            "cipher suites cannot be configured when only TLS1.3 is enabled"
        );
    }

    #[test]
    fn suites_go_by_gos_names() {
        let names =
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,TLS_AES_128_GCM_SHA256";
        let suites = Protocol::parse(names, "", "").unwrap().provider.cipher_suites.clone();
        assert_eq!(suites.iter().filter(|suite| suite.tls13().is_none()).count(), 2);
        assert_eq!(suites.iter().filter(|suite| suite.tls13().is_some()).count(), 3);
        assert!(refusal("x", "", "").starts_with("unexpected TLS cipher suite \"x\"; these are taken: TLS_"));
        assert!(refusal("TLS_RSA_WITH_AES_128_CBC_SHA", "", "").contains("is weak"));
    }
}
