//! The command line and its `ETCD_…` environment twins, read by the rules of Go's flag package, which etcd uses:
//! `-name x`, `--name x`, `-name=x` and `--name=x` are one and the same, a boolean needs no value and takes one only
//! after `=`, the last of several wins, and the first word that is no flag is refused.
//!
//! | a flag | is |
//! |---|---|
//! | with a meaning here | taken |
//! | of etcd without a meaning here | accepted, with one line of warning |
//! | of v2 discovery, which is gone from etcd but for its help text | refused |
//! | not etcd's either | refused, with the nearest name |

use std::collections::BTreeMap;

const CONFIG_FILE_VARIABLE: &str = "ETCD_CONFIG_FILE";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Value,
    Bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Taken,
    /// Accepted with a warning.
    NoMeaning,
    /// Refused unless it is given its default.
    Gone,
}

struct Flag {
    name: &'static str,
    kind: Kind,
    used: Use,
    default: &'static str,
    help: &'static str,
}

macro_rules! flags {
    ($($kind:ident $used:ident $name:literal = $default:literal, $help:literal;)*) => {
        const FLAGS: &[Flag] = &[$(Flag {
            name: $name, kind: Kind::$kind, used: Use::$used, default: $default, help: $help,
        },)*];
    };
}

flags! {
    Value Taken "name" = "default", "human-readable name of this member";
    Value Taken "data-dir" = "", "data directory (default: <name>.pintle)";
    Value Taken "wal-dir" = "", "directory of the Raft log (default: inside the data directory)";
    Value Taken "listen-client-urls" = "http://localhost:2379", "where to listen for clients: gRPC, and HTTP unless --listen-client-http-urls is given";
    Value Taken "listen-client-http-urls" = "", "where to listen for clients that use HTTP only";
    Value Taken "advertise-client-urls" = "http://localhost:2379", "this member's client URLs, for clients and the other members";
    Value Taken "listen-peer-urls" = "http://localhost:2380", "where to listen for the other members";
    Value Taken "initial-advertise-peer-urls" = "http://localhost:2380", "this member's peer URLs, for the other members";
    Value Taken "initial-cluster" = "", "the members of a new cluster: name=peer-url,… (default: this member alone)";
    Value Taken "initial-cluster-token" = "etcd-cluster", "token that keeps clusters apart";
    Value Taken "initial-cluster-state" = "new", "new, or existing for a member that joins";
    Value Taken "heartbeat-interval" = "100", "milliseconds between heartbeats";
    Value Taken "election-timeout" = "1000", "milliseconds without a heartbeat until an election";
    Value Taken "snapshot-count" = "10000", "applied entries between two snapshots";
    Value Taken "quota-backend-bytes" = "0", "bytes the store may take before writes are refused (0: 2 GiB, negative: no quota)";
    Value Taken "max-request-bytes" = "1572864", "largest request in bytes";
    Value Taken "auth-token" = "simple", "kind of token: simple, or jwt,sign-method=…,priv-key=…,pub-key=…,ttl=…";
    Value Taken "auth-token-ttl" = "300", "seconds that a simple token is good for after its last use";
    Value Taken "bcrypt-cost" = "10", "cost of hashing a password, 4 to 31";
    Value Taken "max-txn-ops" = "128", "most operations in a transaction";
    Value Taken "max-concurrent-streams" = "4294967295", "most streams a client connection may have open";
    Value Taken "grpc-keepalive-min-time" = "5s", "shortest time between two pings of a client";
    Value Taken "grpc-keepalive-interval" = "2h", "time between the server's pings on a connection (0: none)";
    Value Taken "grpc-keepalive-timeout" = "20s", "time until an unanswered ping closes a connection";
    Bool  Taken "socket-reuse-port" = "false", "set SO_REUSEPORT on listeners";
    Bool  Taken "socket-reuse-address" = "false", "set SO_REUSEADDR on listeners, which is set in any case";
    Value Taken "auto-compaction-mode" = "periodic", "what --auto-compaction-retention counts: periodic or revision";
    Value Taken "auto-compaction-retention" = "0", "history to keep: hours or a duration, or revisions (0: never compact)";
    Value Taken "watch-progress-notify-interval" = "10m", "time between progress notifications of idle watches";
    Value Taken "corrupt-check-time" = "0s", "time between the leader's comparisons of all members' data (0: none)";
    Value Taken "compact-hash-check-time" = "1m", "time between comparisons of compaction hashes, with the gate CompactHashCheck";
    Value Taken "downgrade-check-time" = "5s", "time between looks at whether a downgrade is over (0: none)";
    Value Taken "listen-metrics-urls" = "", "where to serve /metrics and /health as well";
    Bool  Taken "enable-grpc-gateway" = "true", "serve the RPCs as JSON below /v3/";
    Value Taken "cors" = "*", "origins of web pages that may see HTTP answers, separated by commas (* or empty: all)";
    Value Taken "host-whitelist" = "*", "host names that HTTP requests without TLS may ask for, separated by commas (* or empty: all)";
    Value Taken "logger" = "zap", "zap, the one there is";
    Value Taken "log-level" = "info", "debug, info, warn, error, panic or fatal";
    Value Taken "log-format" = "json", "json or console";
    Value Taken "log-outputs" = "default", "default, stderr, stdout, systemd/journal or file paths, separated by commas";
    Bool  Taken "enable-log-rotation" = "false", "put the one log file aside when it is full";
    Value Taken "log-rotation-config-json" = r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#, "when it is full (megabytes), and how long what is put aside stays (days, number)";
    Value Taken "feature-gates" = "", "feature gates: name=true,…";
    Bool  Taken "initial-corrupt-check" = "false", "of etcd 3.5: the gate InitialCorruptCheck";
    Bool  Taken "compact-hash-check-enabled" = "false", "of etcd 3.5: the gate CompactHashCheck";
    Bool  Taken "enable-lease-checkpoint" = "false", "of etcd 3.5: the gate LeaseCheckpoint";
    Bool  Taken "enable-lease-checkpoint-persist" = "false", "of etcd 3.5: the gate LeaseCheckpointPersist";
    Bool  Taken "stop-grpc-service-on-defrag" = "false", "of etcd 3.5: the gate StopGRPCServiceOnDefrag";
    Bool  Taken "txn-mode-write-with-shared-buffer" = "true", "of etcd 3.5: the gate TxnModeWriteWithSharedBuffer";
    Value Taken "metrics" = "basic", "basic, or extensive: how long each RPC took, too";
    Value Taken "warning-apply-duration" = "100ms", "applying a batch of the log that takes longer is told of";
    Value Taken "warning-unary-request-duration" = "300ms", "a unary call that takes longer is told of";
    Value Taken "compaction-batch-limit" = "1000", "versions that compaction removes in one write, at most";
    Value Taken "compaction-sleep-interval" = "0s", "pause of a compaction after each write; 0: as long as the step took";
    Value Taken "snapshot-catchup-entries" = "5000", "log entries kept for followers that lag";
    Bool  Taken "unsafe-no-fsync" = "false", "do not sync the log: a crash of the machine loses data";
    Bool  Taken "memory-mlock" = "false", "keep what has been used in memory";
    Value Taken "bootstrap-defrag-threshold-megabytes" = "0", "defragment at the start if that frees as much (0: never)";
    Bool  Taken "enable-distributed-tracing" = "false", "send spans of calls to a collector (OTLP over gRPC)";
    Value Taken "distributed-tracing-address" = "localhost:4317", "host and port of the collector";
    Value Taken "distributed-tracing-service-name" = "etcd", "name of the service in spans";
    Value Taken "distributed-tracing-instance-id" = "", "name of this member in spans";
    Value Taken "distributed-tracing-sampling-rate" = "0", "spans in a million that are sent, of calls that belong to no trace";
    Value Taken "config-file" = "", "a YAML file with the flags' names as keys; with it neither flags nor environment count";
    Value Taken "cert-file" = "", "certificate for clients' connections";
    Value Taken "key-file" = "", "key of --cert-file";
    Value Taken "client-cert-file" = "", "certificate to show as a client (default: --cert-file)";
    Value Taken "client-key-file" = "", "key of --client-cert-file";
    Bool  Taken "client-cert-auth" = "false", "ask clients for a certificate of --trusted-ca-file";
    Value Taken "client-crl-file" = "", "list of revoked client certificates";
    Value Taken "client-cert-allowed-hostname" = "", "names or addresses, separated by commas, one of which a client's certificate must hold";
    Value Taken "trusted-ca-file" = "", "whose client certificates are taken";
    Bool  Taken "auto-tls" = "false", "make a certificate for clients' connections at the first start";
    Value Taken "peer-cert-file" = "", "certificate for the other members' connections";
    Value Taken "peer-key-file" = "", "key of --peer-cert-file";
    Value Taken "peer-client-cert-file" = "", "certificate to show to the other members (default: --peer-cert-file)";
    Value Taken "peer-client-key-file" = "", "key of --peer-client-cert-file";
    Bool  Taken "peer-client-cert-auth" = "false", "ask the other members for a certificate of --peer-trusted-ca-file";
    Value Taken "peer-trusted-ca-file" = "", "whose member certificates are taken";
    Bool  Taken "peer-auto-tls" = "false", "make a certificate for the other members' connections at the first start";
    Value Taken "peer-crl-file" = "", "list of revoked member certificates";
    Value Taken "peer-cert-allowed-cn" = "", "common names, separated by commas, one of which a member's certificate must hold";
    Value Taken "peer-cert-allowed-hostname" = "", "names or addresses, separated by commas, one of which a member's certificate must hold";
    Bool  Taken "peer-skip-client-san-verification" = "false", "do not compare a member's certificate with the address it connects from";
    Value Taken "cipher-suites" = "", "TLS 1.2 cipher suites, separated by commas, by Go's names";
    Value Taken "tls-min-version" = "TLS1.2", "TLS1.2 or TLS1.3";
    Value Taken "tls-max-version" = "", "TLS1.2 or TLS1.3 (default: the highest)";
    Value Taken "self-signed-cert-validity" = "1", "years that certificates of --auto-tls and --peer-auto-tls are valid for";
    Bool  Taken "strict-reconfig-check" = "true", "refuse changes of the membership that could cost the cluster its majority";
    Value Taken "discovery-token" = "", "the cluster's token in the registry of --discovery-endpoints";
    Value Taken "discovery-endpoints" = "", "an etcd where the members of a new cluster register and find each other";
    Value Taken "discovery-user" = "", "name[:password] for --discovery-endpoints";
    Value Taken "discovery-password" = "", "password for --discovery-endpoints";
    Value Taken "discovery-srv" = "", "DNS domain whose SRV records name the members of a new cluster";
    Value Taken "discovery-srv-name" = "", "suffix of the service's name in DNS";
    Value Taken "discovery-dial-timeout" = "2s", "for a connection to --discovery-endpoints";
    Value Taken "discovery-request-timeout" = "5s", "for an answer of --discovery-endpoints";
    Value Taken "discovery-keepalive-time" = "2s", "between two pings to --discovery-endpoints";
    Value Taken "discovery-keepalive-timeout" = "6s", "for the answer to such a ping";
    Bool  Taken "discovery-insecure-transport" = "true", "reach --discovery-endpoints without TLS, unless a certificate is given";
    Bool  Taken "discovery-insecure-skip-tls-verify" = "false", "do not verify the certificate of --discovery-endpoints";
    Value Taken "discovery-cert" = "", "certificate to show to --discovery-endpoints";
    Value Taken "discovery-key" = "", "key of --discovery-cert";
    Value Taken "discovery-cacert" = "", "whose certificates of --discovery-endpoints are taken";
    Bool  Taken "force-new-cluster" = "false", "go on alone with the data there is: all other members are removed";
    Value Taken "max-learners" = "1", "learners that the cluster may have at once";
    Bool  Taken "console" = "false", "serve a web page about the cluster on the client listeners, at /console/";
    Value Taken "backup-dir" = "", "directory for backups: full ones, and the log in between (empty: none)";
    Value Taken "backup-interval" = "24h", "time between full backups (0: only where the archived log begins)";
    Value Taken "backup-log-interval" = "1s", "longest time until what was applied is archived";
    Value Taken "backup-keep" = "7", "full backups that stay, with the log behind the oldest of them";
    Bool  Taken "version" = "false", "print the version and exit";

    Value NoMeaning "v2-deprecation" = "write-only", "";
    Bool  NoMeaning "pre-vote" = "true", "";
    Bool  NoMeaning "initial-election-tick-advance" = "true", "";
    Value NoMeaning "max-snapshots" = "5", "";
    Value NoMeaning "max-wals" = "5", "";
    Value NoMeaning "backend-bbolt-freelist-type" = "map", "";
    Value NoMeaning "backend-batch-interval" = "0s", "";
    Value NoMeaning "backend-batch-limit" = "0", "";
    Value NoMeaning "raft-read-timeout" = "5s", "";
    Value NoMeaning "raft-write-timeout" = "5s", "";
    Bool  NoMeaning "enable-v2" = "false", "";
    Bool  NoMeaning "enable-pprof" = "false", "";

    Value Gone "discovery" = "", "";
    Value Gone "discovery-proxy" = "", "";
    Value Gone "discovery-fallback" = "exit", "";
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    #[error("--{name} is no flag of pintle; the nearest is --{nearest} (pintle --help lists them)")]
    Unknown { name: String, nearest: &'static str },
    #[error("--{name} needs a value")]
    NoValue { name: &'static str },
    #[error("--{name}={value} is no boolean: it takes true or false")]
    NotABool { name: &'static str, value: String },
    #[error("{0:?} is no flag; values are given as --flag=value or --flag value")]
    NotAFlag(String),
    #[error(
        "--{name} is of v2 discovery, which etcd has taken out, too: --discovery-token and --discovery-endpoints, or --discovery-srv, take its place"
    )]
    Gone { name: &'static str },
    #[error("--help")]
    Help,
}

/// What was given, by flag name.
#[derive(Debug, Default)]
pub struct Flags {
    given: BTreeMap<&'static str, String>,
    /// One line each.
    pub warnings: Vec<String>,
    is_from_file: bool,
}

impl Flags {
    /// Reads the arguments (without the program's name) and, for flags that they do not hold, the environment.
    pub fn read(
        arguments: impl IntoIterator<Item = String>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Flags, FlagError> {
        let mut flags = Flags::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            flags.read_one(argument, &mut arguments)?;
        }
        let mut environment: Vec<(String, String)> = environment.into_iter().collect();
        let named_file = environment.iter().find(|(variable, _)| variable == CONFIG_FILE_VARIABLE);
        if let Some((_, path)) = named_file.filter(|_| flags.get("config-file").is_empty()) {
            flags.set("config-file", path.clone())?;
        }
        if !flags.get("config-file").is_empty() {
            // The file goes before all else.
            environment.clear();
        }
        for (variable, value) in environment {
            let Some(name) = variable.strip_prefix("ETCD_").filter(|_| !value.is_empty()) else { continue };
            match find(&name.to_lowercase().replace('_', "-")) {
                Some(flag) if flags.given.contains_key(flag.name) => {
                    let warning = format!("{variable} is passed over: --{} is given, and goes before it", flag.name);
                    flags.warnings.push(warning);
                }
                Some(flag) => flags.give(flag, value)?,
                None => flags.warnings.push(format!("{variable} in the environment belongs to no flag")),
            }
        }
        Ok(flags)
    }

    fn read_one(&mut self, argument: String, rest: &mut impl Iterator<Item = String>) -> Result<(), FlagError> {
        let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else {
            return Err(FlagError::NotAFlag(argument));
        };
        let text = text.strip_prefix('-').unwrap_or(text);
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (text, None),
        };
        if name == "help" || name == "h" {
            return Err(FlagError::Help);
        }
        let Some(flag) = find(name) else {
            return Err(FlagError::Unknown { name: name.into(), nearest: nearest(name) });
        };
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".into(),
            (None, Kind::Value) => rest.next().ok_or(FlagError::NoValue { name: flag.name })?,
        };
        self.give(flag, value)
    }

    fn give(&mut self, flag: &'static Flag, value: String) -> Result<(), FlagError> {
        let value = match flag.kind {
            Kind::Value => value,
            Kind::Bool => match boolean(&value) {
                Some(is_true) => is_true.to_string(),
                None => return Err(FlagError::NotABool { name: flag.name, value }),
            },
        };
        match flag.used {
            Use::Gone if value != flag.default => return Err(FlagError::Gone { name: flag.name }),
            Use::NoMeaning => {
                self.warnings.push(format!("--{} has no meaning for Pintle and is passed over", flag.name))
            }
            _ => {}
        }
        self.given.insert(flag.name, value);
        Ok(())
    }

    /// None given yet, for what a configuration file holds.
    pub fn of_file() -> Flags {
        Flags { is_from_file: true, ..Flags::default() }
    }

    pub fn is_from_file(&self) -> bool {
        self.is_from_file
    }

    /// Gives a flag its value; the name is one of the table.
    pub fn set(&mut self, name: &str, value: String) -> Result<(), FlagError> {
        self.give(find(name).expect("a flag of the table is set"), value)
    }

    /// What was given, else etcd's default.
    pub fn get(&self, name: &str) -> &str {
        match self.given.get(name) {
            Some(value) => value,
            None => find(name).expect("a flag of the table is asked for").default,
        }
    }

    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    pub fn is_true(&self, name: &str) -> bool {
        self.get(name) == "true"
    }
}

/// The flag's own name, where there is such a flag.
pub fn name_of(name: &str) -> Option<&'static str> {
    find(name).map(|flag| flag.name)
}

pub fn is_bool(name: &str) -> bool {
    find(name).is_some_and(|flag| flag.kind == Kind::Bool)
}

/// A boolean as Go writes it.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// etcd moved flags out of `experimental-`; both names are one.
fn find(name: &str) -> Option<&'static Flag> {
    let of_name = |name: &str| FLAGS.iter().find(|flag| flag.name == name);
    of_name(name).or_else(|| of_name(name.strip_prefix("experimental-")?))
}

fn nearest(name: &str) -> &'static str {
    let nearest = FLAGS.iter().min_by_key(|flag| distance(flag.name, name));
    nearest.expect("there are flags").name
}

/// Edits that make one word the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "Usage: pintle [flags]\n\nAn etcd-compatible store. Every flag may be given as ETCD_<NAME> in the environment \
         too; flags go before it.\n\n",
    );
    for flag in FLAGS.iter().filter(|flag| flag.used == Use::Taken) {
        text.push_str(&format!("  --{} '{}'\n      {}\n", flag.name, flag.default, flag.help));
    }
    let rest = |used: Use| FLAGS.iter().filter(move |flag| flag.used == used).map(|flag| flag.name);
    let list = |used: Use| rest(used).collect::<Vec<_>>().join(" ");
    text.push_str(&format!("\nAccepted, without a meaning here:\n  {}\n", list(Use::NoMeaning)));
    text.push_str(&format!("\nRefused, since etcd has taken them out, too:\n  {}\n", list(Use::Gone)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Flags, FlagError> {
        Flags::read(arguments.iter().map(|a| a.to_string()), [])
    }

    #[test]
    fn all_of_gos_spellings_are_read_and_the_last_wins() {
        let spellings: [&[&str]; 4] = [&["-name", "n"], &["--name", "n"], &["-name=n"], &["--name=m", "--name=n"]];
        for arguments in spellings {
            assert_eq!(read(arguments).unwrap().get("name"), "n");
        }
        assert_eq!(read(&[]).unwrap().get("name"), "default");
    }

    #[test]
    fn a_boolean_takes_a_value_only_behind_an_equals_sign() {
        assert!(read(&["--version"]).unwrap().is_true("version"));
        assert!(!read(&["--version=f"]).unwrap().is_true("version"));
        assert_eq!(read(&["--version", "true"]).unwrap_err(), FlagError::NotAFlag("true".into()));
        let wrong = FlagError::NotABool { name: "version", value: "yes".into() };
        assert_eq!(read(&["--version=yes"]).unwrap_err(), wrong);
    }

    #[test]
    fn an_unknown_flag_is_refused_with_the_nearest() {
        let unknown = FlagError::Unknown { name: "hartbeat-intervall".into(), nearest: "heartbeat-interval" };
        assert_eq!(read(&["--hartbeat-intervall=1"]).unwrap_err(), unknown);
        assert_eq!(read(&["--name"]).unwrap_err(), FlagError::NoValue { name: "name" });
    }

    #[test]
    fn a_flag_without_a_meaning_warns_and_an_unsafe_one_is_refused() {
        assert_eq!(read(&["--max-wals=3"]).unwrap().warnings.len(), 1);
        assert_eq!(read(&["--discovery=x"]).unwrap_err(), FlagError::Gone { name: "discovery" });
        assert!(read(&["--force-new-cluster=false", "--auth-token", "simple"]).unwrap().warnings.is_empty());
    }

    #[test]
    fn flags_go_before_the_environment() {
        let environment = [("ETCD_NAME", "env"), ("ETCD_DATA_DIR", "dir"), ("ETCD_WALDIR", "x"), ("HOME", "h")];
        let environment = environment.map(|(variable, value)| (variable.to_string(), value.to_string()));
        let flags = Flags::read(["--name=flag".to_string()], environment).unwrap();
        assert_eq!((flags.get("name"), flags.get("data-dir")), ("flag", "dir"));
        assert_eq!(flags.warnings.len(), 2, "{:?}", flags.warnings);
    }

    #[test]
    fn a_configuration_file_goes_before_the_environment() {
        let environment = [("ETCD_CONFIG_FILE", "a.yml"), ("ETCD_VERSION", "no boolean")];
        let environment = environment.map(|(variable, value)| (variable.to_string(), value.to_string()));
        assert_eq!(Flags::read([], environment.clone()).unwrap().get("config-file"), "a.yml");
        let flags = Flags::read(["--config-file=b.yml".to_string()], environment).unwrap();
        assert_eq!(flags.get("config-file"), "b.yml");
    }

    #[test]
    fn every_flag_of_etcd_is_there_and_documented_as_it_is() {
        let documented = include_str!("../../docs/compatibility.md");
        for name in include_str!("etcd_flags.txt").lines().filter(|line| !line.starts_with('#')) {
            let flag = FLAGS.iter().find(|flag| flag.name == name);
            let flag = flag.unwrap_or_else(|| panic!("--{name} is not in the table"));
            let row = documented.lines().find(|line| line.starts_with(&format!("| `--{name}` |")));
            let row = row.unwrap_or_else(|| panic!("--{name} is not in docs/compatibility.md"));
            let columns: Vec<&str> = row.split(" |").map(|column| column.trim_matches(['|', ' '])).collect();
            assert_eq!(columns[1], format!("`ETCD_{}`", name.to_uppercase().replace('-', "_")), "--{name}");
            let states: &[&str] = match flag.used {
                Use::Taken => &["same", "differs"],
                Use::NoMeaning => &["accepted"],
                Use::Gone => &["same"],
            };
            assert!(states.contains(&columns[3]), "--{name} is {:?}, and documented as {}", flag.used, columns[3]);
        }
    }

    #[test]
    fn an_experimental_name_is_the_flag_itself() {
        let flags = read(&["--experimental-watch-progress-notify-interval=5s"]).unwrap();
        assert_eq!(flags.get("watch-progress-notify-interval"), "5s");
    }
}
