//! The configuration file of `--config-file`: YAML, whose keys are the flags' names.
//! Source: etcd, `server/embed/config.go` (Config, configYAML, configFromFile).
//!
//! ```text
//! name: infra0                      --name=infra0
//! grpc-keepalive-interval: 5000000  --grpc-keepalive-interval=5000000ns
//! log-outputs: [stderr, etcd.log]   --log-outputs=stderr,etcd.log
//! client-transport-security:
//!   cert-file: server.crt           --cert-file=server.crt
//! ```
//!
//! etcd turns the YAML into JSON and that into a Go struct. So types are strict (a number is no string), durations are
//! whole nanoseconds, `null` is as good as leaving the key out, keys may be written in either case, and a key that the
//! struct lacks is passed over; here with a warning. With a file, nothing else counts: neither flags nor environment.

use serde_json::Value;

use crate::flags::{self, FlagError, Flags};

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("open {path}: {error}")]
    Open { path: String, error: std::io::Error },
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
    #[error("error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into Go {target}")]
    Type { found: String, target: String },
    #[error(transparent)]
    Flag(#[from] FlagError),
}

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Bool,
    /// With the name of Go's type, and its bounds.
    Number(&'static str, i128, i128),
    Duration,
    List,
}

const UINT: Kind = Kind::Number("uint", 0, u64::MAX as i128);
const UINT32: Kind = Kind::Number("uint32", 0, u32::MAX as i128);
const UINT64: Kind = Kind::Number("uint64", 0, u64::MAX as i128);
const INT: Kind = Kind::Number("int", i64::MIN as i128, i64::MAX as i128);
const INT64: Kind = Kind::Number("int64", i64::MIN as i128, i64::MAX as i128);

/// The keys that are neither text nor, as the flag tells, a boolean.
const KINDS: &[(&str, Kind)] = &[
    ("auth-token-ttl", UINT),
    ("backend-batch-interval", Kind::Duration),
    ("backend-batch-limit", INT),
    ("bcrypt-cost", UINT),
    ("bootstrap-defrag-threshold-megabytes", UINT),
    ("cipher-suites", Kind::List),
    ("compact-hash-check-time", Kind::Duration),
    ("compaction-batch-limit", INT),
    ("compaction-sleep-interval", Kind::Duration),
    ("corrupt-check-time", Kind::Duration),
    ("distributed-tracing-sampling-rate", INT),
    ("downgrade-check-time", Kind::Duration),
    ("election-timeout", UINT),
    ("grpc-keepalive-interval", Kind::Duration),
    ("grpc-keepalive-min-time", Kind::Duration),
    ("grpc-keepalive-timeout", Kind::Duration),
    ("heartbeat-interval", UINT),
    ("log-outputs", Kind::List),
    ("max-concurrent-streams", UINT32),
    ("max-learners", INT),
    ("max-request-bytes", UINT),
    ("max-snapshots", UINT),
    ("max-txn-ops", UINT),
    ("max-wals", UINT),
    ("quota-backend-bytes", INT64),
    ("self-signed-cert-validity", UINT),
    ("snapshot-catchup-entries", UINT64),
    ("snapshot-count", UINT64),
    ("warning-apply-duration", Kind::Duration),
    ("warning-unary-request-duration", Kind::Duration),
    ("watch-progress-notify-interval", Kind::Duration),
];

/// Keys that the struct's second part holds, which Go's errors tell apart. An empty text is as good as none for them.
const SECOND_PART: &[&str] = &[
    "listen-peer-urls",
    "listen-client-urls",
    "listen-client-http-urls",
    "initial-advertise-peer-urls",
    "advertise-client-urls",
    "cors",
    "host-whitelist",
    "feature-gates",
];

/// Flags without a key of their own at the top: they are in a section, or not in the file at all.
const NOT_AT_TOP: &[&str] = &[
    "auto-tls",
    "cert-file",
    "client-cert-allowed-hostname",
    "client-cert-auth",
    "client-cert-file",
    "client-crl-file",
    "client-key-file",
    "config-file",
    "discovery",
    "discovery-cacert",
    "discovery-cert",
    "discovery-dial-timeout",
    "discovery-endpoints",
    "discovery-fallback",
    "discovery-insecure-skip-tls-verify",
    "discovery-insecure-transport",
    "discovery-keepalive-time",
    "discovery-keepalive-timeout",
    "discovery-key",
    "discovery-password",
    "discovery-proxy",
    "discovery-request-timeout",
    "discovery-token",
    "discovery-user",
    "key-file",
    "peer-auto-tls",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "peer-cert-file",
    "peer-client-cert-auth",
    "peer-client-cert-file",
    "peer-client-key-file",
    "peer-crl-file",
    "peer-key-file",
    "peer-skip-client-san-verification",
    "peer-trusted-ca-file",
    "raft-read-timeout",
    "raft-write-timeout",
    "socket-reuse-address",
    "socket-reuse-port",
    "trusted-ca-file",
    "version",
];

/// A key of a section, the flag that it stands for, and what it takes.
type Key = (&'static str, &'static str, Kind);

struct Section {
    /// The path of keys to it.
    path: &'static [&'static str],
    /// Go's name for it in errors.
    go: &'static str,
    keys: &'static [Key],
}

const SECTIONS: &[Section] = &[
    Section {
        path: &["client-transport-security"],
        go: "configJSON.client-transport-security of type embed.securityConfig",
        keys: &[
            ("cert-file", "cert-file", Kind::Text),
            ("key-file", "key-file", Kind::Text),
            ("client-cert-file", "client-cert-file", Kind::Text),
            ("client-key-file", "client-key-file", Kind::Text),
            ("client-cert-auth", "client-cert-auth", Kind::Bool),
            ("trusted-ca-file", "trusted-ca-file", Kind::Text),
            ("auto-tls", "auto-tls", Kind::Bool),
            ("allowed-hostname", "client-cert-allowed-hostname", Kind::List),
        ],
    },
    Section {
        path: &["peer-transport-security"],
        go: "configJSON.peer-transport-security of type embed.securityConfig",
        keys: &[
            ("cert-file", "peer-cert-file", Kind::Text),
            ("key-file", "peer-key-file", Kind::Text),
            ("client-cert-file", "peer-client-cert-file", Kind::Text),
            ("client-key-file", "peer-client-key-file", Kind::Text),
            ("client-cert-auth", "peer-client-cert-auth", Kind::Bool),
            ("trusted-ca-file", "peer-trusted-ca-file", Kind::Text),
            ("auto-tls", "peer-auto-tls", Kind::Bool),
            ("allowed-cn", "peer-cert-allowed-cn", Kind::List),
            ("allowed-hostname", "peer-cert-allowed-hostname", Kind::List),
            ("skip-client-san-verification", "peer-skip-client-san-verification", Kind::Bool),
        ],
    },
    Section {
        path: &["socket-options"],
        go: "Config.socket-options of type transport.SocketOpts",
        keys: &[("reuse-port", "socket-reuse-port", Kind::Bool), ("reuse-address", "socket-reuse-address", Kind::Bool)],
    },
    // The one way to give revocation lists in etcd's file.
    Section {
        path: &["ClientTLSInfo"],
        go: "Config.ClientTLSInfo of type transport.TLSInfo",
        keys: &[("CRLFile", "client-crl-file", Kind::Text)],
    },
    Section {
        path: &["PeerTLSInfo"],
        go: "Config.PeerTLSInfo of type transport.TLSInfo",
        keys: &[("CRLFile", "peer-crl-file", Kind::Text)],
    },
    Section {
        path: &["discovery-config"],
        go: "Config.discovery-config of type v3discovery.DiscoveryConfig",
        keys: &[("token", "discovery-token", Kind::Text)],
    },
    Section {
        path: &["discovery-config", "client"],
        go: "Config.discovery-config.client of type clientv3.ConfigSpec",
        keys: &[
            ("endpoints", "discovery-endpoints", Kind::List),
            ("dial-timeout", "discovery-dial-timeout", Kind::Duration),
            ("request-timeout", "discovery-request-timeout", Kind::Duration),
            ("keepalive-time", "discovery-keepalive-time", Kind::Duration),
            ("keepalive-timeout", "discovery-keepalive-timeout", Kind::Duration),
        ],
    },
    Section {
        path: &["discovery-config", "client", "secure"],
        go: "Config.discovery-config.client.secure of type clientv3.SecureConfig",
        keys: &[
            ("cert", "discovery-cert", Kind::Text),
            ("key", "discovery-key", Kind::Text),
            ("cacert", "discovery-cacert", Kind::Text),
            ("insecure-transport", "discovery-insecure-transport", Kind::Bool),
            ("insecure-skip-tls-verify", "discovery-insecure-skip-tls-verify", Kind::Bool),
        ],
    },
    Section {
        path: &["discovery-config", "client", "auth"],
        go: "Config.discovery-config.client.auth of type clientv3.AuthConfig",
        keys: &[("username", "discovery-user", Kind::Text), ("password", "discovery-password", Kind::Text)],
    },
];

/// Reads the file into what the same flags would give.
pub fn read(path: &str) -> Result<Flags, FileError> {
    let text = std::fs::read_to_string(path).map_err(|error| FileError::Open { path: path.into(), error })?;
    parse(&text)
}

fn parse(text: &str) -> Result<Flags, FileError> {
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    let value: Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| FileError::Yaml(error.to_string()))?;
    let mut flags = Flags::of_file();
    match value {
        Value::Null => {}
        Value::Object(keys) => {
            for (key, value) in &keys {
                read_top(&mut flags, key, value)?;
            }
        }
        other => return Err(mismatch(&other, "value of type embed.configYAML".into())),
    }
    Ok(flags)
}

fn read_top(flags: &mut Flags, key: &str, value: &Value) -> Result<(), FileError> {
    if SECTIONS.iter().any(|section| section.path.len() == 1 && is_key(section.path[0], key)) {
        return read_section(flags, &[key], value);
    }
    match flags::name_of(&key.to_lowercase()).filter(|name| !NOT_AT_TOP.contains(name)) {
        None => {
            flags.warnings.push(format!("the configuration file's key {key:?} is unknown, and passed over"));
            Ok(())
        }
        Some(name) => {
            let part = if SECOND_PART.contains(&name) { "configJSON" } else { "Config" };
            if part == "configJSON" && value.as_str() == Some("") {
                return Ok(());
            }
            read_value(flags, name, kind(name), value, &format!("configYAML.{part}.{name}"))
        }
    }
}

fn read_section(flags: &mut Flags, path: &[&str], value: &Value) -> Result<(), FileError> {
    let is_at = |section: &&Section| {
        section.path.len() == path.len() && section.path.iter().zip(path).all(|(known, key)| is_key(known, key))
    };
    let section = SECTIONS.iter().find(is_at).expect("the caller has found the path");
    let keys = match value {
        Value::Null => return Ok(()),
        Value::Object(keys) => keys,
        other => return Err(mismatch(other, format!("struct field configYAML.{}", section.go))),
    };
    let (go_path, go_type) = section.go.split_once(" of type ").expect("both stand in the table");
    let go_struct = go_type.split_once('.').map_or(go_type, |(_, name)| name);
    for (key, value) in keys {
        let below = [path, &[key.as_str()]].concat();
        let is_deeper = |section: &Section| {
            section.path.len() == below.len() && section.path.iter().zip(&below).all(|(known, key)| is_key(known, key))
        };
        if SECTIONS.iter().any(is_deeper) {
            read_section(flags, &below, value)?;
            continue;
        }
        match section.keys.iter().find(|(known, ..)| is_key(known, key)) {
            Some((known, name, kind)) => {
                read_value(flags, name, *kind, value, &format!("{go_struct}.{go_path}.{known}"))?;
            }
            None => {
                let key = below.join(".");
                flags.warnings.push(format!("the configuration file's key {key:?} is unknown, and passed over"));
            }
        }
    }
    Ok(())
}

/// Go's JSON takes keys in either case.
fn is_key(known: &str, key: &str) -> bool {
    known.eq_ignore_ascii_case(key)
}

fn kind(name: &str) -> Kind {
    match KINDS.iter().find(|(known, _)| *known == name) {
        Some((_, kind)) => *kind,
        None if flags::is_bool(name) => Kind::Bool,
        None => Kind::Text,
    }
}

fn read_value(flags: &mut Flags, name: &str, kind: Kind, value: &Value, field: &str) -> Result<(), FileError> {
    let wrong = |go_type: &str| mismatch(value, format!("struct field {field} of type {go_type}"));
    let text = match (kind, value) {
        (_, Value::Null) => return Ok(()),
        (Kind::Text, Value::String(text)) => text.clone(),
        (Kind::Text, _) => return Err(wrong("string")),
        (Kind::Bool, Value::Bool(is_on)) => is_on.to_string(),
        (Kind::Bool, _) => return Err(wrong("bool")),
        (Kind::Number(go_type, min, max), _) => whole(value)
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| exact(value, format!("struct field {field} of type {go_type}")))?
            .to_string(),
        (Kind::Duration, _) => {
            let nanos = whole(value).filter(|number| i64::try_from(*number).is_ok());
            let nanos = nanos.ok_or_else(|| exact(value, format!("struct field {field} of type time.Duration")))?;
            format!("{nanos}ns")
        }
        (Kind::List, Value::Array(elements)) => {
            let text = |element: &Value| match element {
                Value::String(text) => Ok(text.clone()),
                other => Err(mismatch(other, format!("struct field {field} of type string"))),
            };
            elements.iter().map(text).collect::<Result<Vec<_>, _>>()?.join(",")
        }
        (Kind::List, _) => return Err(wrong("[]string")),
    };
    Ok(flags.set(name, text)?)
}

/// A number without a fraction; `1e2` is one, too.
fn whole(value: &Value) -> Option<i128> {
    let number = value.as_number()?;
    let float = || number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e18);
    number.as_i128().or_else(|| float().map(|float| float as i128))
}

fn mismatch(found: &Value, target: String) -> FileError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    FileError::Type { found: found.into(), target }
}

/// As `mismatch`, for a number that does not fit a type of numbers.
fn exact(found: &Value, target: String) -> FileError {
    match found {
        Value::Number(number) => FileError::Type { found: format!("number {number}"), target },
        other => mismatch(other, target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn keys_are_flags_in_the_files_types() {
        let flags = parse(
            "name: n1\nSnapshot-Count: 7\npre-vote: off\nheartbeat-interval: 1e2\ngrpc-keepalive-interval: 5000000\n\
             log-outputs: [stderr, a.log]\ndata-dir:\nlisten-peer-urls: ''\nsocket-options: {reuse-port: true}\n",
        )
        .unwrap();
        assert_eq!((flags.get("name"), flags.get("snapshot-count")), ("n1", "7"));
        assert_eq!((flags.get("pre-vote"), flags.get("heartbeat-interval")), ("false", "100"));
        assert_eq!((flags.get("grpc-keepalive-interval"), flags.get("log-outputs")), ("5000000ns", "stderr,a.log"));
        assert!(flags.is_true("socket-reuse-port") && flags.is_from_file());
        assert!(!flags.is_given("data-dir") && !flags.is_given("listen-peer-urls"));
    }

    #[test]
    fn an_empty_file_gives_nothing() {
        assert!(!parse("").unwrap().is_given("name"));
        assert!(!parse("# only a comment\n").unwrap().is_given("name"));
    }

    #[test]
    fn a_key_that_etcd_lacks_is_passed_over_with_a_warning() {
        let flags = parse("nmae: n1\nraft-read-timeout: 1\nclient-transport-security: {x: 1}\n").unwrap();
        assert_eq!(flags.warnings.len(), 3, "{:?}", flags.warnings);
    }

    /// The texts are etcd 3.5.30's for the same files.
    #[test]
    fn another_type_is_refused_in_gos_words() {
        let prefix = "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal ";
        for (text, expected) in [
            ("snapshot-count: abc", "string into Go struct field configYAML.Config.snapshot-count of type uint64"),
            ("snapshot-count: 1.5", "number 1.5 into Go struct field configYAML.Config.snapshot-count of type uint64"),
            ("snapshot-count: -1", "number -1 into Go struct field configYAML.Config.snapshot-count of type uint64"),
            ("enable-pprof: 'true'", "string into Go struct field configYAML.Config.enable-pprof of type bool"),
            ("name: 123", "number into Go struct field configYAML.Config.name of type string"),
            (
                "grpc-keepalive-interval: 10m",
                "string into Go struct field configYAML.Config.grpc-keepalive-interval of type time.Duration",
            ),
            ("log-outputs: stderr", "string into Go struct field configYAML.Config.log-outputs of type []string"),
            ("log-outputs: [1]", "number into Go struct field configYAML.Config.log-outputs of type string"),
            (
                "client-transport-security: 1",
                "number into Go struct field configYAML.configJSON.client-transport-security of type embed.securityConfig",
            ),
            (
                "client-transport-security: {client-cert-auth: x}",
                "string into Go struct field securityConfig.configJSON.client-transport-security.client-cert-auth of type bool",
            ),
            ("just text", "string into Go value of type embed.configYAML"),
        ] {
            assert_eq!(refusal(text), format!("{prefix}{expected}"));
        }
        assert!(refusal("a: [\n").starts_with("error converting YAML to JSON: "));
        assert!(read("/nowhere/etcd.yml").unwrap_err().to_string().starts_with("open /nowhere/etcd.yml: "));
    }
}
