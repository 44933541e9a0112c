//! The flags that all commands have.

use std::time::Duration;

use clap::{ArgAction, Args};
use client::{Client, Credentials, Options, Tls};

use crate::{
    failure::{self, Failure},
    number, password,
    print::{Format, Printer, Style},
};

/// Below this, servers take pings for an attack; etcd's own client never pings more often either.
const PING_INTERVAL_MIN: Duration = Duration::from_secs(10);

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
    // Endpoints are not looked up; whoever asks for it is told so.
    #[arg(long, short, global = true, hide = true, value_name = "DOMAIN")]
    discovery_srv: Option<String>,
    #[arg(long, global = true, hide = true, value_name = "NAME")]
    discovery_srv_name: Option<String>,
    #[arg(long, global = true, hide = true, action = ArgAction::SetFalse)]
    insecure_discovery: bool,
}

impl Global {
    /// A client, which has its token where it is to have one.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.refuse_discovery()?;
        let endpoints = self.endpoints.iter().map(|endpoint| endpoint.trim().to_string());
        let options = Options {
            connect_timeout: self.dial_timeout,
            request_timeout: self.command_timeout,
            ping_interval: self.keepalive_time.max(PING_INTERVAL_MIN),
            ping_timeout: self.keepalive_timeout,
            tls: tls(&self.cacert, &self.cert, &self.key, self.insecure_transport, self.insecure_skip_tls_verify)?,
            credentials: self.credentials()?,
            ..Options::default()
        };
        let client = Client::with_options(endpoints, options).map_err(failure::bad_client)?;
        if client.options().credentials.is_some() {
            client.connection().await.map_err(failure::bad_connection)?;
        }
        Ok(client)
    }

    fn refuse_discovery(&self) -> Result<(), Failure> {
        let Some(domain) = self.discovery_srv.as_deref().filter(|domain| !domain.is_empty()) else { return Ok(()) };
        let service = if self.insecure_discovery { "etcd-client" } else { "etcd-client-ssl" };
        let name = self.discovery_srv_name.as_deref().map_or(String::new(), |name| format!("-{name}"));
        let text = format!("--discovery-srv is not supported: give the endpoints of {domain} with --endpoints");
        let hint = format!("`dig +short SRV _{service}{name}._tcp.{domain}` shows them");
        Err(failure::bad_arguments(text).hint(hint))
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
