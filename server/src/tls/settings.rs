//! What the TLS flags of one side mean together. Source: etcd, `client/pkg/transport/listener.go`,
//! `server/embed/config.go`, `server/embed/etcd.go`.

use std::path::PathBuf;

use super::protocol::Protocol;
use crate::{config::Listen, flags::Flags};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Peer,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What a certificate must say beside coming from the right authority.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Allowed {
    #[default]
    Any,
    CommonNames(Vec<String>),
    /// One of these names or addresses must be among those it is issued for.
    Hostnames(Vec<String>),
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub side: Side,
    pub pair: Option<Pair>,
    /// Shown when connecting to others, if it is another than `pair`.
    pub client_pair: Option<Pair>,
    pub trusted_ca_file: Option<PathBuf>,
    pub crl_file: Option<PathBuf>,
    pub client_cert_auth: bool,
    pub allowed: Allowed,
    /// Whether a certificate is held against the address it comes from.
    pub check_san: bool,
    /// The name that others' certificates must hold in place of the host of their URL.
    pub server_name: Option<String>,
    pub auto: Option<Auto>,
    /// Whether a listener takes TLS.
    pub listens: bool,
    /// Only HTTP/2 is spoken to others.
    pub asks_for_http2: bool,
    pub protocol: Protocol,
}

/// A certificate is made when there is none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auto {
    pub hosts: Vec<String>,
    pub validity_years: u32,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "KeyFile and CertFile must both be present[key: {key}, cert: {cert}]: give --{prefix}cert-file and --{prefix}key-file"
    )]
    HalfPair { prefix: &'static str, cert: String, key: String },
    #[error(
        "ClientKeyFile and ClientCertFile must both be present or both absent: key: {key}, cert: {cert}]: give --{prefix}client-cert-file and --{prefix}client-key-file"
    )]
    HalfClientPair { prefix: &'static str, cert: String, key: String },
    #[error("--discovery-cert and --discovery-key must both be given, or neither")]
    HalfDiscoveryPair,
    #[error("AllowedCNs and AllowedHostnames are mutually exclusive (cns={names:?}, hostnames={hosts:?})")]
    TwoKindsAllowed { names: Vec<String>, hosts: Vec<String> },
    #[error("TLS key/cert (--cert-file, --key-file) must be provided for client url {0} with HTTPS scheme")]
    NoClientPair(String),
    #[error("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url {0}")]
    NoMetricsPair(String),
    #[error(
        "cannot listen on TLS for {0}: KeyFile and CertFile are not presented: give --peer-cert-file and --peer-key-file"
    )]
    NoPeerPair(String),
    #[error("unexpected TLS version {0:?} (must be one of: TLS1.2, TLS1.3)")]
    Version(String),
    #[error("min version ({min}) is greater than max version ({max})")]
    VersionsCrossed { min: String, max: String },
    #[error("cipher suites cannot be configured when only TLS1.3 is enabled")]
    SuitesOfTls13,
    #[error("unexpected TLS cipher suite {name:?}; these are taken: {known}")]
    UnknownSuite { name: String, known: String },
    #[error(
        "TLS cipher suite {0} is weak (CBC, RC4, or no forward secrecy), and Pintle does not have it; leave it out"
    )]
    WeakSuite(String),
    #[error("--self-signed-cert-validity={0:?}: it takes a whole number of years greater than 0")]
    Validity(String),
}

impl Settings {
    pub fn client<'a>(
        flags: &Flags,
        listen: impl IntoIterator<Item = &'a Vec<Listen>>,
    ) -> Result<Settings, SettingsError> {
        let settings = Settings {
            crl_file: path(flags, "client-crl-file"),
            allowed: allowed(&[], &list(flags, "client-cert-allowed-hostname"))?,
            ..Settings::read(flags, Side::Client, flags.is_true("auto-tls"))?
        };
        settings.check(listen)
    }

    pub fn peer<'a>(
        flags: &Flags,
        listen: impl IntoIterator<Item = &'a Vec<Listen>>,
    ) -> Result<Settings, SettingsError> {
        let discovered = Some(flags.get("discovery-srv")).filter(|name| !name.is_empty());
        let settings = Settings {
            allowed: allowed(&list(flags, "peer-cert-allowed-cn"), &list(flags, "peer-cert-allowed-hostname"))?,
            check_san: !flags.is_true("peer-skip-client-san-verification"),
            ..Settings::read(flags, Side::Peer, flags.is_true("peer-auto-tls"))?
        };
        let server_name = discovered.filter(|_| settings.trusted_ca_file.is_none()).map(str::to_string);
        Settings { server_name, ..settings }.check(listen)
    }

    /// For the registry of `--discovery-endpoints`; none where it is reached without TLS. A certificate that is not to
    /// be verified is what [`Auto`] stands for, too.
    pub fn discovery(flags: &Flags) -> Result<Option<Settings>, SettingsError> {
        let pair = match (path(flags, "discovery-cert"), path(flags, "discovery-key")) {
            (Some(cert), Some(key)) => Some(Pair { cert, key }),
            (None, None) => None,
            _ => return Err(SettingsError::HalfDiscoveryPair),
        };
        let trusted_ca_file = path(flags, "discovery-cacert");
        if pair.is_none() && trusted_ca_file.is_none() && flags.is_true("discovery-insecure-transport") {
            return Ok(None);
        }
        let is_unverified = flags.is_true("discovery-insecure-skip-tls-verify");
        Ok(Some(Settings {
            pair,
            client_pair: None,
            trusted_ca_file,
            crl_file: None,
            client_cert_auth: false,
            auto: is_unverified.then(|| Auto { hosts: Vec::new(), validity_years: 1 }),
            asks_for_http2: true,
            ..Settings::read(flags, Side::Client, false)?
        }))
    }

    /// The flags that both sides have.
    fn read(flags: &Flags, side: Side, is_auto: bool) -> Result<Settings, SettingsError> {
        let names: [&'static str; 7] = match side {
            Side::Client => [
                "cert-file",
                "key-file",
                "client-cert-file",
                "client-key-file",
                "trusted-ca-file",
                "client-crl-file",
                "client-cert-auth",
            ],
            Side::Peer => [
                "peer-cert-file",
                "peer-key-file",
                "peer-client-cert-file",
                "peer-client-key-file",
                "peer-trusted-ca-file",
                "peer-crl-file",
                "peer-client-cert-auth",
            ],
        };
        let [cert, key, client_cert, client_key, trusted, crl, auth] = names;
        let protocol =
            Protocol::parse(flags.get("cipher-suites"), flags.get("tls-min-version"), flags.get("tls-max-version"))?;
        let pair = pair(flags, cert, key).map_err(|(cert, key)| SettingsError::HalfPair {
            prefix: side.prefix(),
            cert,
            key,
        })?;
        let client_pair = self::pair(flags, client_cert, client_key)
            .map_err(|(cert, key)| SettingsError::HalfClientPair { prefix: side.prefix(), cert, key })?;
        let years = flags.get("self-signed-cert-validity");
        let validity = years.parse().map_err(|_| SettingsError::Validity(years.into()))?;
        let auto = Auto { hosts: Vec::new(), validity_years: validity };
        if is_auto && pair.is_none() && validity == 0 {
            return Err(SettingsError::Validity(years.into()));
        }
        Ok(Settings {
            side,
            pair,
            client_pair,
            trusted_ca_file: path(flags, trusted),
            crl_file: path(flags, crl),
            client_cert_auth: flags.is_true(auth),
            allowed: Allowed::Any,
            check_san: false,
            server_name: None,
            auto: is_auto.then_some(auto),
            listens: false,
            asks_for_http2: false,
            protocol,
        })
    }

    /// Looks at the listeners: those with TLS need a certificate, and one that is made is made for their hosts.
    fn check<'a>(mut self, listen: impl IntoIterator<Item = &'a Vec<Listen>>) -> Result<Settings, SettingsError> {
        if self.auto.is_some() && self.pair.is_some() {
            tracing::warn!("ignoring {} auto TLS since certs given", self.side.name());
            self.auto = None;
        }
        for listen in listen.into_iter().flatten() {
            let address = listen.address.to_string();
            if listen.is_tls && self.pair.is_none() && self.auto.is_none() {
                return Err(match (self.side, listen.flag) {
                    (Side::Peer, _) => SettingsError::NoPeerPair(address),
                    (_, "listen-metrics-urls") => SettingsError::NoMetricsPair(address),
                    _ => SettingsError::NoClientPair(address),
                });
            }
            self.listens |= listen.is_tls;
            if listen.is_plain && listen.flag != "listen-metrics-urls" {
                self.warn_of_plain(&address);
            }
            let crate::urls::Address::Tcp(tcp) = &listen.address else { continue };
            if let Some(auto) = self.auto.as_mut().filter(|_| listen.flag != "listen-metrics-urls") {
                auto.hosts.push(tcp.ip().to_string());
            }
        }
        Ok(self)
    }

    fn warn_of_plain(&self, url: &str) {
        if self.pair.is_some() {
            tracing::warn!(
                url,
                "scheme is http or unix while key and cert files are present; ignoring key and cert files"
            );
        }
        if self.client_cert_auth {
            let flag = format!("--{}client-cert-auth", self.side.prefix());
            tracing::warn!(
                url,
                "scheme is http or unix while {flag} is enabled; ignoring client cert auth for this URL"
            );
        }
    }

    /// Whether others must show a certificate.
    pub fn asks_for_certificate(&self) -> bool {
        self.auto.is_none() && (self.client_cert_auth || self.trusted_ca_file.is_some())
    }
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Peer => "peer",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Side::Client => "",
            Side::Peer => "peer-",
        }
    }
}

fn path(flags: &Flags, flag: &'static str) -> Option<PathBuf> {
    Some(flags.get(flag)).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn list(flags: &Flags, flag: &'static str) -> Vec<String> {
    flags.get(flag).split(',').filter(|one| !one.is_empty()).map(str::to_string).collect()
}

/// Both, none, or what there is of them as the error.
fn pair(flags: &Flags, cert: &'static str, key: &'static str) -> Result<Option<Pair>, (String, String)> {
    match (path(flags, cert), path(flags, key)) {
        (Some(cert), Some(key)) => Ok(Some(Pair { cert, key })),
        (None, None) => Ok(None),
        _ => Err((flags.get(cert).into(), flags.get(key).into())),
    }
}

fn allowed(names: &[String], hosts: &[String]) -> Result<Allowed, SettingsError> {
    match (names, hosts) {
        ([], []) => Ok(Allowed::Any),
        (names, []) => Ok(Allowed::CommonNames(names.to_vec())),
        ([], hosts) => Ok(Allowed::Hostnames(hosts.to_vec())),
        (names, hosts) => Err(SettingsError::TwoKindsAllowed { names: names.to_vec(), hosts: hosts.to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(arguments: &[&str]) -> Result<Config, String> {
        let advertise = "--advertise-client-urls=http://127.0.0.1:1".to_string();
        let arguments = arguments.iter().map(|a| a.to_string()).chain([advertise]);
        Config::from_flags(&Flags::read(arguments, []).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn tls_listeners_need_a_certificate() {
        let client = "--listen-client-urls=https://127.0.0.1:1";
        assert_eq!(
            config(&[client]).unwrap_err(),
            "TLS key/cert (--cert-file, --key-file) must be provided for client url 127.0.0.1:1 with HTTPS scheme"
        );
        assert!(config(&["--listen-client-urls=unixs://a.sock"]).unwrap_err().contains("client url a.sock"));
        assert!(config(&["--listen-metrics-urls=https://127.0.0.1:1"]).unwrap_err().contains("metrics secure url"));
        assert!(config(&["--listen-peer-urls=https://127.0.0.1:1"]).unwrap_err().starts_with("cannot listen on TLS"));
        assert!(config(&[client, "--cert-file=c", "--key-file=k"]).is_ok());
        assert_eq!(config(&[client, "--auto-tls"]).unwrap().client_tls.auto.unwrap().hosts, ["127.0.0.1"]);
    }

    #[test]
    fn half_a_pair_is_refused() {
        assert!(config(&["--cert-file=c"]).unwrap_err().starts_with("KeyFile and CertFile must both be present"));
        assert!(config(&["--peer-key-file=k"]).unwrap_err().contains("--peer-cert-file"));
        assert!(config(&["--client-cert-file=k"]).unwrap_err().starts_with("ClientKeyFile and ClientCertFile"));
    }

    #[test]
    fn names_and_hosts_are_not_both_allowed() {
        let text = config(&["--peer-cert-allowed-cn=a,b", "--peer-cert-allowed-hostname=h"]).unwrap_err();
        assert!(text.contains("mutually exclusive") && text.contains(r#"["a", "b"]"#), "{text}");
        assert_eq!(
            config(&["--auto-tls", "--self-signed-cert-validity=0"]).map(|_| ()).unwrap_err(),
            "--self-signed-cert-validity=\"0\": it takes a whole number of years greater than 0"
        );
    }

    #[test]
    fn an_authority_alone_asks_for_certificates_as_well() {
        let settings = |arguments: &[&str]| config(arguments).unwrap().client_tls;
        assert!(settings(&["--trusted-ca-file=ca"]).asks_for_certificate());
        assert!(settings(&["--client-cert-auth"]).asks_for_certificate());
        assert!(!settings(&["--cert-file=c", "--key-file=k"]).asks_for_certificate());
        assert!(!settings(&["--auto-tls", "--trusted-ca-file=ca"]).asks_for_certificate());
    }

    #[test]
    fn an_address_may_take_both_plain_and_tls_connections() {
        let urls = "--listen-client-urls=http://127.0.0.1:1,https://127.0.0.1:1";
        let config = config(&[urls, "--cert-file=c", "--key-file=k"]).unwrap();
        assert_eq!(config.listen_client.len(), 1);
        assert!(config.listen_client[0].is_plain && config.listen_client[0].is_tls);
    }
}
