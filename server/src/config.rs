//! What the flags mean together. Source: etcd, `server/embed/config.go` (Validate), `server/config/config.go`.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr, time::Duration};

use raft::ChangePolicy;

use crate::{
    access::{Access, Allowed},
    auth::TokenOptions,
    backup,
    compactor::Retention,
    context::Limits,
    corruption,
    discovery::{Source, registry::Registry},
    duration,
    flags::Flags,
    gates::{GateError, Gates},
    logging::{self, Logging, LoggingError},
    quota,
    tls::{self, settings::SettingsError},
    tracing_export,
    tuning::{Tuning, Unreadable},
    urls::{self, Address, Url, UrlError},
};

/// etcd's bound, so that nobody waits forever for a leader.
const ELECTION_TIMEOUT_MAX_MS: u64 = 50_000;

/// What 0 stands for in `--grpc-keepalive-min-time`: grpc-go's own.
const DEFAULT_PING_MIN_TIME: Duration = Duration::from_secs(5 * 60);

#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    pub wal_dir: PathBuf,
    pub listen_client: Vec<Listen>,
    /// HTTP only; where there are some, `listen_client` is for gRPC only.
    pub listen_client_http: Vec<Listen>,
    pub listen_peer: Vec<Listen>,
    pub listen_metrics: Vec<Listen>,
    pub advertise_client: Vec<Url>,
    pub cluster: InitialCluster,
    /// All other members are removed at the start.
    pub force_new_cluster: bool,
    pub heartbeat: Duration,
    pub election_timeout: Duration,
    pub snapshot_count: u64,
    pub limits: Limits,
    pub change_policy: ChangePolicy,
    pub connections: Connections,
    pub client_tls: tls::Settings,
    pub peer_tls: tls::Settings,
    pub retention: Option<Retention>,
    pub watch_progress_interval: Duration,
    pub tuning: Tuning,
    pub tracing: Option<tracing_export::Settings>,
    pub corruption_checks: corruption::Intervals,
    /// None: a downgrade is ended by hand only.
    pub downgrade_check: Option<Duration>,
    pub auth: AuthOptions,
    pub gates: Gates,
    pub access: Access,
    /// Whether the RPCs are served as JSON, too.
    pub json_gateway: bool,
    /// Whether there is a web page about the cluster.
    pub console: bool,
    /// None: no backups are kept.
    pub backup: Option<backup::Settings>,
}

/// How users prove who they are.
#[derive(Debug, Clone)]
pub struct AuthOptions {
    pub tokens: TokenOptions,
    pub bcrypt_cost: u32,
    /// Whether the name on a client's certificate is that of a user.
    pub trusts_certificates: bool,
}

/// The members of a new cluster, as the flags give them.
#[derive(Debug, Clone)]
pub struct InitialCluster {
    /// Peer URLs by name, this member's among them.
    pub members: BTreeMap<String, Vec<Url>>,
    /// Where `members` are looked up first, unless the flags hold them.
    pub source: Source,
    pub token: String,
    /// The cluster runs already, and this member joins it.
    pub is_existing: bool,
    /// Whether the flags say who this member is; on a restart they need not.
    pub is_given: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub flag: &'static str,
    pub address: Address,
    /// Which of the two may come in. Both, where the flag names the address with both schemes.
    pub is_plain: bool,
    pub is_tls: bool,
}

/// How client connections are served.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    pub max_concurrent_streams: u32,
    /// None: no pings.
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Duration,
    /// Between two pings of a client. None: no limit, as for members.
    pub ping_min_time: Option<Duration>,
    pub reuse_port: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("--{flag}={value:?}: {reason}")]
    Url { flag: &'static str, value: String, reason: UrlError },
    #[error("--{flag}={value:?}: it takes {takes}")]
    Value { flag: &'static str, value: String, takes: &'static str },
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Tracing(#[from] tracing_export::SettingsError),
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error("--{flag} must be >0 (set to 0ms)")]
    Zero { flag: &'static str },
    #[error("--{flag} must be >0 (set to 0s)")]
    NoTime { flag: &'static str },
    #[error("--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]")]
    ElectionTooShort { election: u64, heartbeat: u64 },
    #[error("--election-timeout[{0}ms] is too long, and should be set less than {ELECTION_TIMEOUT_MAX_MS}ms")]
    ElectionTooLong(u64),
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    NoAdvertisedClientUrls,
    #[error(
        "couldn't find local name {name:?} in the initial cluster configuration: --initial-cluster={cluster} must hold --name={name}"
    )]
    NotAMember { name: String, cluster: String },
    #[error(
        "--initial-cluster has {name}={cluster} but --initial-advertise-peer-urls is {advertised}: the two must name the same URLs"
    )]
    OtherUrls { name: String, cluster: String, advertised: String },
    #[error("--initial-cluster={0} has duplicate url")]
    DuplicateUrl(String),
    #[error(
        "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\""
    )]
    ConflictingBootstrap,
    #[error("both --discovery-token and --discovery-endpoints must be set")]
    HalfARegistry,
    #[error("--discovery-endpoints must not contain empty endpoints")]
    EmptyEndpoint,
    #[error("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {0}")]
    SameListener(Address),
    #[error("--console needs the JSON gateway: take --enable-grpc-gateway=false away")]
    ConsoleWithoutGateway,
    #[error(transparent)]
    Tls(#[from] SettingsError),
}

/// The logging flags. They are read first, so that the rest can be complained about in the log.
pub fn logging(flags: &Flags) -> Result<Logging, ConfigError> {
    let error = |flag, takes| ConfigError::Value { flag, value: flags.get(flag).into(), takes };
    if flags.get("logger") != "zap" {
        return Err(error("logger", "zap"));
    }
    let outputs = logging::outputs(flags.get("log-outputs"))?;
    let rotation = match flags.is_true("enable-log-rotation") {
        true => Some(logging::rotation(flags.get("log-rotation-config-json"), &outputs)?),
        false => None,
    };
    Ok(Logging {
        level: logging::level(flags.get("log-level"))
            .ok_or_else(|| error("log-level", "debug, info, warn, error, panic or fatal"))?,
        format: logging::format(flags.get("log-format")).ok_or_else(|| error("log-format", "json or console"))?,
        outputs,
        rotation,
    })
}

impl Config {
    pub fn from_flags(flags: &Flags) -> Result<Config, ConfigError> {
        let name = flags.get("name").to_string();
        let data_dir = match flags.get("data-dir") {
            "" => PathBuf::from(format!("{name}.pintle")),
            dir => dir.into(),
        };
        let wal_dir = match flags.get("wal-dir") {
            "" => data_dir.join("member").join("wal"),
            dir => dir.into(),
        };
        let listen_peer = listen(flags, "listen-peer-urls")?;
        let listen_client = listen(flags, "listen-client-urls")?;
        let listen_client_http = listen(flags, "listen-client-http-urls")?;
        let listen_metrics = listen(flags, "listen-metrics-urls")?;
        if let Some(twice) =
            listen_client_http.iter().find(|http| listen_client.iter().any(|l| l.address == http.address))
        {
            return Err(ConfigError::SameListener(twice.address.clone()));
        }
        let client_tls = tls::Settings::client(flags, [&listen_client, &listen_client_http, &listen_metrics])?;
        let peer_tls = tls::Settings::peer(flags, [&listen_peer])?;
        let advertise_peer = advertised(flags, "initial-advertise-peer-urls")?;
        let advertise_client = advertised(flags, "advertise-client-urls")?;
        let is_existing = match flags.get("initial-cluster-state") {
            "new" => false,
            "existing" => true,
            _ => return Err(invalid(flags, "initial-cluster-state", "new or existing")),
        };
        let (heartbeat, election_timeout) = timing(flags)?;
        let is_given = |flag| flags.is_given(flag) && !flags.is_from_file();
        if is_given("listen-client-urls") && !flags.is_given("advertise-client-urls") {
            return Err(ConfigError::NoAdvertisedClientUrls);
        }
        let retention = Retention::parse(flags.get("auto-compaction-mode"), flags.get("auto-compaction-retention"))
            .map_err(|error| invalid(flags, error.flag, error.takes))?;
        let cluster = initial_cluster(flags, &name, &advertise_peer, is_existing)?;
        let quota_backend_bytes = match number(flags, "quota-backend-bytes")? {
            0 => quota::DEFAULT_BYTES,
            bytes => bytes,
        };
        let tuning = Tuning::from_flags(flags, quota_backend_bytes);
        Ok(Config {
            name,
            data_dir,
            wal_dir,
            listen_client,
            listen_client_http,
            listen_peer,
            listen_metrics,
            advertise_client,
            cluster,
            force_new_cluster: flags.is_true("force-new-cluster"),
            heartbeat,
            election_timeout,
            snapshot_count: number(flags, "snapshot-count")?,
            change_policy: ChangePolicy {
                is_strict: flags.is_true("strict-reconfig-check"),
                learners_max: number(flags, "max-learners")?,
            },
            limits: Limits {
                max_request_bytes: number(flags, "max-request-bytes")?,
                max_txn_ops: number(flags, "max-txn-ops")?,
                quota_backend_bytes,
            },
            connections: Connections {
                max_concurrent_streams: number(flags, "max-concurrent-streams")?,
                keepalive_interval: Some(time(flags, "grpc-keepalive-interval")?).filter(|time| !time.is_zero()),
                keepalive_timeout: time(flags, "grpc-keepalive-timeout")?,
                ping_min_time: match time(flags, "grpc-keepalive-min-time")? {
                    Duration::ZERO => Some(DEFAULT_PING_MIN_TIME),
                    time => Some(time),
                },
                reuse_port: flags.is_true("socket-reuse-port"),
            },
            client_tls,
            peer_tls,
            retention,
            watch_progress_interval: time(flags, "watch-progress-notify-interval")?,
            tracing: tracing_export::Settings::from_flags(flags)?,
            tuning: tuning.map_err(|Unreadable { flag, takes }| invalid(flags, flag, takes))?,
            corruption_checks: corruption_checks(flags)?,
            downgrade_check: Some(time(flags, "downgrade-check-time")?).filter(|time| !time.is_zero()),
            auth: AuthOptions {
                tokens: TokenOptions {
                    text: flags.get("auth-token").into(),
                    ttl: Duration::from_secs(number(flags, "auth-token-ttl")?),
                },
                bcrypt_cost: number(flags, "bcrypt-cost")?,
                trusts_certificates: flags.is_true("client-cert-auth"),
            },
            gates: Gates::from_flags(flags)?,
            access: access(flags)?,
            json_gateway: flags.is_true("enable-grpc-gateway"),
            console: console(flags)?,
            backup: backup_settings(flags)?,
        })
    }
}

/// The page reads through the gateway.
fn console(flags: &Flags) -> Result<bool, ConfigError> {
    let wanted = flags.is_true("console");
    if wanted && !flags.is_true("enable-grpc-gateway") {
        return Err(ConfigError::ConsoleWithoutGateway);
    }
    Ok(wanted)
}

fn corruption_checks(flags: &Flags) -> Result<corruption::Intervals, ConfigError> {
    let compact_hash = time(flags, "compact-hash-check-time")?;
    if compact_hash.is_zero() {
        return Err(ConfigError::NoTime { flag: "compact-hash-check-time" });
    }
    let periodic = Some(time(flags, "corrupt-check-time")?).filter(|time| !time.is_zero());
    Ok(corruption::Intervals { periodic, compact_hash })
}

fn backup_settings(flags: &Flags) -> Result<Option<backup::Settings>, ConfigError> {
    let (log_interval, keep) = (time(flags, "backup-log-interval")?, number(flags, "backup-keep")?);
    if log_interval.is_zero() {
        return Err(ConfigError::NoTime { flag: "backup-log-interval" });
    }
    if keep == 0 {
        return Err(invalid(flags, "backup-keep", "a number from 1 on"));
    }
    let interval = Some(time(flags, "backup-interval")?).filter(|time| !time.is_zero());
    let dir = PathBuf::from(flags.get("backup-dir"));
    let is_on = !dir.as_os_str().is_empty();
    Ok(is_on.then_some(backup::Settings { dir, interval, log_interval, keep }))
}

fn invalid(flags: &Flags, flag: &'static str, takes: &'static str) -> ConfigError {
    ConfigError::Value { flag, value: flags.get(flag).into(), takes }
}

fn number<N: FromStr>(flags: &Flags, flag: &'static str) -> Result<N, ConfigError> {
    flags.get(flag).parse().map_err(|_| invalid(flags, flag, "a whole number"))
}

fn time(flags: &Flags, flag: &'static str) -> Result<Duration, ConfigError> {
    duration::parse(flags.get(flag)).ok_or_else(|| invalid(flags, flag, "a duration such as 300ms, 5s or 1h30m"))
}

fn url_list(flags: &Flags, flag: &'static str) -> Result<Vec<Url>, ConfigError> {
    Url::parse_list(flags.get(flag)).map_err(|reason| bad_url(flags, flag, reason))
}

fn bad_url(flags: &Flags, flag: &'static str, reason: UrlError) -> ConfigError {
    ConfigError::Url { flag, value: flags.get(flag).into(), reason }
}

fn listen(flags: &Flags, flag: &'static str) -> Result<Vec<Listen>, ConfigError> {
    let is_optional = matches!(flag, "listen-metrics-urls" | "listen-client-http-urls");
    if is_optional && flags.get(flag).is_empty() {
        return Ok(Vec::new());
    }
    let mut all: Vec<Listen> = Vec::new();
    for url in url_list(flags, flag)? {
        let address = url.bind_address().map_err(|reason| bad_url(flags, flag, reason))?;
        let same = all.iter().position(|listen| listen.address == address).unwrap_or_else(|| {
            all.push(Listen { flag, address, is_plain: false, is_tls: false });
            all.len() - 1
        });
        all[same].is_tls |= url.is_tls();
        all[same].is_plain |= !url.is_tls();
    }
    Ok(all)
}

fn advertised(flags: &Flags, flag: &'static str) -> Result<Vec<Url>, ConfigError> {
    let urls = url_list(flags, flag)?;
    urls.iter().try_for_each(Url::check_reachable).map_err(|reason| bad_url(flags, flag, reason))?;
    Ok(urls)
}

/// Origins are URLs, and `*` or nothing stands for all of them; hosts are any words.
fn access(flags: &Flags) -> Result<Access, ConfigError> {
    let origins = match flags.get("cors") {
        "" | "*" => Allowed::All,
        _ => Allowed::from_list(urls::to_strings(&url_list(flags, "cors")?)),
    };
    let hosts = match flags.get("host-whitelist") {
        "" => Allowed::All,
        hosts => Allowed::from_list(hosts.split(',').map(String::from)),
    };
    Ok(Access { origins, hosts })
}

/// Heartbeat interval and election timeout.
fn timing(flags: &Flags) -> Result<(Duration, Duration), ConfigError> {
    let heartbeat: u64 = number(flags, "heartbeat-interval")?;
    let election: u64 = number(flags, "election-timeout")?;
    if heartbeat == 0 {
        return Err(ConfigError::Zero { flag: "heartbeat-interval" });
    }
    if election == 0 {
        return Err(ConfigError::Zero { flag: "election-timeout" });
    }
    if heartbeat.saturating_mul(5) > election {
        return Err(ConfigError::ElectionTooShort { election, heartbeat });
    }
    if election > ELECTION_TIMEOUT_MAX_MS {
        return Err(ConfigError::ElectionTooLong(election));
    }
    Ok((Duration::from_millis(heartbeat), Duration::from_millis(election)))
}

fn initial_cluster(
    flags: &Flags,
    name: &str,
    advertised: &[Url],
    is_existing: bool,
) -> Result<InitialCluster, ConfigError> {
    let text = flags.get("initial-cluster");
    let source = source(flags)?;
    let token = match &source {
        Source::Registry(registry) => registry.token.clone(),
        _ => flags.get("initial-cluster-token").into(),
    };
    let members = match text {
        "" => BTreeMap::from([(name.to_string(), advertised.to_vec())]),
        _ => urls::parse_cluster(text).map_err(|reason| bad_url(flags, "initial-cluster", reason))?,
    };
    let Some(own) = members.get(name) else {
        return Err(ConfigError::NotAMember { name: name.into(), cluster: text.into() });
    };
    // A member that joins has told the cluster its URLs before.
    if !is_existing && !urls::are_same(own, advertised) {
        let (cluster, advertised) = (urls::join(own), urls::join(advertised));
        return Err(ConfigError::OtherUrls { name: name.into(), cluster, advertised });
    }
    if urls::has_duplicate(members.values().flatten()) {
        return Err(ConfigError::DuplicateUrl(text.into()));
    }
    let is_looked_up = !matches!(source, Source::Flags);
    let is_given =
        !is_looked_up && (flags.is_given("initial-cluster") || flags.is_given("initial-advertise-peer-urls"));
    Ok(InitialCluster { members, source, token, is_existing, is_given })
}

/// Where the members of the cluster are named.
fn source(flags: &Flags) -> Result<Source, ConfigError> {
    let [domain, endpoints, token] =
        ["discovery-srv", "discovery-endpoints", "discovery-token"].map(|flag| flags.get(flag));
    let given = [flags.get("initial-cluster"), domain, endpoints].iter().filter(|value| !value.is_empty()).count();
    if given > 1 {
        return Err(ConfigError::ConflictingBootstrap);
    }
    if endpoints.is_empty() != token.is_empty() {
        return Err(ConfigError::HalfARegistry);
    }
    if !domain.is_empty() {
        return Ok(Source::Srv { domain: domain.into(), service: flags.get("discovery-srv-name").into() });
    }
    if endpoints.is_empty() {
        return Ok(Source::Flags);
    }
    let endpoints: Vec<String> = endpoints.split(',').map(|endpoint| endpoint.trim().to_string()).collect();
    if endpoints.iter().any(String::is_empty) {
        return Err(ConfigError::EmptyEndpoint);
    }
    Ok(Source::Registry(Registry {
        endpoints,
        token: token.into(),
        dial_timeout: time(flags, "discovery-dial-timeout")?,
        request_timeout: time(flags, "discovery-request-timeout")?,
        keepalive_interval: time(flags, "discovery-keepalive-time")?,
        keepalive_timeout: time(flags, "discovery-keepalive-timeout")?,
        user: user(flags.get("discovery-user"), flags.get("discovery-password")),
        tls: tls::Settings::discovery(flags)?,
    }))
}

/// The password may stand behind the name. (etcd asks for one on the terminal where there is none.)
fn user(user: &str, password: &str) -> Option<(String, String)> {
    let (name, password) = match password {
        "" => user.split_once(':').unwrap_or((user, "")),
        password => (user, password),
    };
    (!name.is_empty()).then(|| (name.into(), password.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, ConfigError> {
        Config::from_flags(&Flags::read(arguments.iter().map(|a| a.to_string()), []).unwrap())
    }

    fn refusal(arguments: &[&str]) -> String {
        config(arguments).unwrap_err().to_string()
    }

    #[test]
    fn without_flags_it_is_a_single_node_on_etcds_ports() {
        let config = config(&[]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("default.pintle"));
        assert_eq!(config.wal_dir, PathBuf::from("default.pintle/member/wal"));
        assert_eq!(config.listen_client[0].address, Address::Tcp("127.0.0.1:2379".parse().unwrap()));
        assert_eq!(config.listen_peer[0].address, Address::Tcp("127.0.0.1:2380".parse().unwrap()));
        assert_eq!(urls::join(&config.cluster.members["default"]), "http://localhost:2380");
        assert_eq!(config.limits.max_request_bytes, 1_572_864);
        assert!(config.retention.is_none() && !config.cluster.is_given);
    }

    #[test]
    fn origins_are_urls_and_hosts_are_not() {
        let access = |arguments: &[&str]| config(arguments).map(|config| config.access);
        assert_eq!(access(&[]).unwrap(), Access { origins: Allowed::All, hosts: Allowed::All });
        assert_eq!(access(&["--cors=", "--host-whitelist="]), access(&[]));
        let only = |word: &str| Allowed::from_list([word.to_string()]);
        assert_eq!(access(&["--cors=http://a:1"]).unwrap().origins, only("http://a:1"));
        assert_eq!(access(&["--host-whitelist=a"]).unwrap().hosts, only("a"));
        assert!(refusal(&["--cors=a"]).contains("--cors"));
    }

    #[test]
    fn the_data_directory_and_the_cluster_follow_the_name() {
        let config = config(&["--name", "n1"]).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("n1.pintle"));
        assert!(config.cluster.members.contains_key("n1"));
    }

    #[test]
    fn the_election_timeout_is_bounded_on_both_sides() {
        assert_eq!(
            refusal(&["--heartbeat-interval=300"]),
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]"
        );
        assert_eq!(
            refusal(&["--election-timeout=50001"]),
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms"
        );
        assert_eq!(refusal(&["--heartbeat-interval=0"]), "--heartbeat-interval must be >0 (set to 0ms)");
    }

    #[test]
    fn a_refusal_names_the_flag_and_what_it_takes() {
        assert_eq!(refusal(&["--max-txn-ops=x"]), "--max-txn-ops=\"x\": it takes a whole number");
        assert_eq!(
            refusal(&["--listen-peer-urls=http://host:1"]),
            "--listen-peer-urls=\"http://host:1\": expected IP in URL for binding (http://host:1)"
        );
        assert!(refusal(&["--initial-cluster-state=old"]).ends_with("it takes new or existing"));
        assert!(refusal(&["--auto-compaction-mode=x"]).contains("--auto-compaction-mode"));
        assert_eq!(
            refusal(&["--listen-client-urls=http://127.0.0.1:1"]),
            "--advertise-client-urls is required when --listen-client-urls is set explicitly"
        );
    }

    #[test]
    fn the_cluster_holds_this_member_with_the_urls_it_advertises() {
        let advertise = "--initial-advertise-peer-urls=http://127.0.0.1:1";
        assert!(
            config(&["--name=a", advertise, "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.1:2"]).is_ok()
        );
        assert!(
            refusal(&["--name=c", advertise, "--initial-cluster=a=http://127.0.0.1:1"]).contains("local name \"c\"")
        );
        assert!(refusal(&["--name=a", "--initial-cluster=a=http://127.0.0.1:3"]).contains("must name the same URLs"));
        let twice = "--initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.1:1";
        assert!(refusal(&["--name=a", advertise, twice]).contains("duplicate url"));
    }

    #[test]
    fn members_come_from_one_place() {
        let endpoints = "--discovery-endpoints=127.0.0.1:1,http://127.0.0.1:2";
        assert_eq!(refusal(&[endpoints]), "both --discovery-token and --discovery-endpoints must be set");
        assert!(refusal(&[endpoints, "--discovery-token=t", "--discovery-srv=example.org"]).starts_with("multiple"));
        let found = config(&[endpoints, "--discovery-token=t", "--discovery-user=u:p"]).unwrap().cluster;
        let Source::Registry(registry) = found.source else { panic!("{found:?}") };
        assert_eq!((registry.endpoints.len(), found.token.as_str()), (2, "t"));
        assert_eq!(registry.user, Some(("u".into(), "p".into())));
        let found = config(&["--discovery-srv=example.org", "--discovery-srv-name=blue"]).unwrap().cluster;
        assert!(matches!(found.source, Source::Srv { service, .. } if service == "blue"));
    }
}
