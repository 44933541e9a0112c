//! The flags that all commands have.

use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgAction, Args};
use client::{Client, Credentials, Options, Tls};
use server::discovery::srv;

use crate::{
    failure::{self, Failure},
    number, password,
    print::{Format, Printer, Style},
};

/// Below this, servers take pings for an attack; etcd's own client never pings more often either.
const PING_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// What etcd's own client sends at most.
const REQUEST_BYTES_MAX: usize = 2 << 20;

#[derive(Args, Clone)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The servers' client URLs: host:port, http://…, https://…, unix://…
    #[arg(long, global = true, value_name = "URLS", value_delimiter = ',', default_value = "127.0.0.1:2379")]
    endpoints: Vec<String>,
    /// How answers are printed: fields, json, protobuf, simple, table.
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "simple")]
    write_out: String,
    /// Print keys and values as hexadecimal numbers.
    #[arg(long, global = true)]
    hex: bool,
    /// How long a request may take.
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = number::duration)]
    command_timeout: Duration,
    /// How long making a connection may take.
    #[arg(long, global = true, value_name = "DURATION", default_value = "2s", value_parser = number::duration)]
    dial_timeout: Duration,
    /// How often an idle connection is asked for a sign of life; 10s at least.
    #[arg(long, global = true, value_name = "DURATION", default_value = "2s", value_parser = number::duration)]
    keepalive_time: Duration,
    /// How long the sign of life may take.
    #[arg(long, global = true, value_name = "DURATION", default_value = "6s", value_parser = number::duration)]
    keepalive_timeout: Duration,
    /// Who is asked: name, or name:password. Without a password, it is asked for.
    #[arg(long, global = true, value_name = "NAME[:PASSWORD]")]
    user: Option<String>,
    /// The user's password.
    #[arg(long, global = true)]
    password: Option<String>,
    /// A token in place of user and password.
    #[arg(long, global = true, value_name = "TOKEN")]
    auth_jwt_token: Option<String>,
    /// Trust servers whose certificates were signed by one of these.
    #[arg(long, global = true, value_name = "FILE")]
    cacert: Option<String>,
    /// The certificate to show to servers.
    #[arg(long, global = true, value_name = "FILE")]
    cert: Option<String>,
    /// The key of that certificate.
    #[arg(long, global = true, value_name = "FILE")]
    key: Option<String>,
    /// Without TLS, where neither a URL nor a certificate asks for it.
    #[arg(long, global = true, action = ArgAction::SetFalse)]
    insecure_transport: bool,
    /// Take any certificate. For tests.
    #[arg(long, global = true)]
    insecure_skip_tls_verify: bool,
    /// Say on standard error what the global options are.
    #[arg(long, global = true)]
    debug: bool,
    /// The domain whose SRV records name the endpoints, in place of --endpoints.
    #[arg(long, short, global = true, value_name = "DOMAIN")]
    discovery_srv: Option<String>,
    /// The suffix of the SRV records' service.
    #[arg(long, global = true, value_name = "NAME")]
    discovery_srv_name: Option<String>,
    /// Take endpoints without TLS from SRV records, and certificates that are not for the domain.
    #[arg(long, global = true, action = ArgAction::SetFalse)]
    insecure_discovery: bool,
    /// A larger request is not sent; 0: 2 MiB.
    #[arg(long, global = true, value_name = "BYTES", default_value_t = 0)]
    max_request_bytes: usize,
    /// A larger answer is not taken; 0: 2 GiB.
    #[arg(long, global = true, value_name = "BYTES", default_value_t = 0)]
    max_recv_bytes: usize,
}

impl Global {
    /// A client, which has its token where it is to have one.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let discovered = self.discovered().await?;
        let mut tls = tls(&self.cacert, &self.cert, &self.key, self.insecure_transport, self.insecure_skip_tls_verify)?;
        if !self.insecure_discovery && !discovered.is_empty() {
            tls.get_or_insert_default().server_name = self.discovery_srv.clone();
        }
        let endpoints = match discovered.is_empty() {
            true => self.endpoints.iter().map(|endpoint| endpoint.trim().to_string()).collect(),
            false => discovered,
        };
        let default = Options::default();
        let options = Options {
            connect_timeout: self.dial_timeout,
            request_timeout: self.command_timeout,
            ping_interval: self.keepalive_time.max(PING_INTERVAL_MIN),
            ping_timeout: self.keepalive_timeout,
            tls,
            credentials: self.credentials()?,
            request_bytes_max: if self.max_request_bytes == 0 { REQUEST_BYTES_MAX } else { self.max_request_bytes },
            answer_bytes_max: if self.max_recv_bytes == 0 { default.answer_bytes_max } else { self.max_recv_bytes },
            ..default
        };
        let client = Client::with_options(endpoints, options).map_err(failure::bad_client)?;
        if client.options().credentials.is_some() {
            client.connection().await.map_err(failure::bad_connection)?;
        }
        Ok(client)
    }

    /// What DNS names, where a domain is given. Without TLS only where that is allowed.
    async fn discovered(&self) -> anyhow::Result<Vec<String>> {
        let Some(domain) = self.discovery_srv.as_deref().filter(|domain| !domain.is_empty()) else {
            return Ok(Vec::new());
        };
        let service = self.discovery_srv_name.as_deref().unwrap_or_default();
        let found = srv::client_urls(domain, service).await;
        let mut urls = found.with_context(|| format!("--discovery-srv={domain}"))?;
        if !self.insecure_discovery {
            urls.retain(|url| {
                let is_secure = url.starts_with("https://");
                if !is_secure {
                    eprintln!("ignoring discovered insecure endpoint {url:?}");
                }
                is_secure
            });
        }
        Ok(urls)
    }

    pub fn is_debug(&self) -> bool {
        self.debug
    }

    pub fn printer(&self) -> Result<Printer, Failure> {
        let style = Style { hex: self.hex, value_only: false };
        Ok(Printer { format: Format::named(&self.write_out)?, style })
    }

    fn credentials(&self) -> anyhow::Result<Option<Credentials>> {
        match &self.auth_jwt_token {
            Some(token) => Ok(Some(Credentials::Token(token.clone()))),
            None => credentials(self.user.as_deref(), self.password.as_deref(), "Password: "),
        }
    }
}

/// What `--user` and `--password` say. A password that is missing is asked for.
pub fn credentials(user: Option<&str>, password: Option<&str>, prompt: &str) -> anyhow::Result<Option<Credentials>> {
    let Some(user) = user else { return Ok(None) };
    let (user, password) = match (password, user.split_once(':')) {
        (Some(password), _) => (user, password.to_string()),
        (None, Some((user, password))) => (user, password.to_string()),
        (None, None) => (user, password::ask(prompt)?),
    };
    Ok(Some(Credentials::Password { user: user.to_string(), password }))
}

/// What the flags about TLS say. None: without TLS, unless a URL asks for it.
pub fn tls(
    ca: &Option<String>,
    certificate: &Option<String>,
    key: &Option<String>,
    is_insecure: bool,
    insecure_skip_verify: bool,
) -> Result<Option<Tls>, Failure> {
    for (name, file) in [("cacert", ca), ("cert", certificate), ("key", key)] {
        if file.as_deref() == Some("") {
            return Err(failure::bad_arguments(format!("empty string is passed to --{name} option")));
        }
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => {
            let name = |file: &Option<String>| file.clone().unwrap_or_default();
            let (key, certificate) = (name(key), name(certificate));
            let text = format!("KeyFile and CertFile must both be present[key: {key}, cert: {certificate}]");
            return Err(failure::bad_arguments(text));
        }
    };
    if is_insecure && !insecure_skip_verify && ca.is_none() && identity.is_none() {
        return Ok(None);
    }
    Ok(Some(Tls { ca: ca.as_ref().map(Into::into), identity, server_name: None, insecure_skip_verify }))
}
