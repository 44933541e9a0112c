//! The log, line by line as etcd's zap writes it: JSON with level, ts, caller and msg, or the same as console text.
//! Source: etcd, `server/embed/config_logging.go`, `client/pkg/logutil`.
//!
//! ```text
//! line.rs      an event as a line
//! outputs.rs   where lines go
//! rotate.rs    a file that is put aside when it is full
//! journal.rs   systemd's journal
//! ```

mod journal;
mod line;
mod outputs;
mod rotate;

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

pub use self::rotate::Rotation;
use self::{journal::Journal, line::Line, outputs::Outputs};

/// The target of the event that says why the process ends. zap has a level for that, tracing has none; it is logged at
/// any `--log-level`.
pub const FATAL: &str = "pintle::fatal";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Console,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Stderr,
    Stdout,
    Journal,
    /// Appended to.
    File(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    pub level: LevelFilter,
    pub format: Format,
    pub outputs: Vec<Output>,
    /// Of the one file among the outputs.
    pub rotation: Option<Rotation>,
}

/// What the logging flags may not be together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoggingError {
    #[error("multi logoutput for \"default\" is not supported yet")]
    DefaultAmongOthers,
    #[error(
        "running with systemd/journal but other '--log-outputs' values ({0:?}) are configured with 'default'; override 'default' value with something else"
    )]
    JournalAmongOthers(Vec<String>),
    #[error("--log-outputs requires a single file path when --log-rotate-config-json is defined")]
    RotationWithoutFile,
    #[error("improperly formatted log rotation config: {0}")]
    RotationSyntax(String),
    #[error("invalid log rotation config: {0}")]
    RotationType(String),
}

/// The value of `--log-outputs`. A name counts once, in order of the names as in etcd; `/dev/null` silences the rest.
pub fn outputs(text: &str) -> Result<Vec<Output>, LoggingError> {
    let mut names: Vec<&str> = text.split(',').collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > 1 && names.contains(&"default") {
        return Err(LoggingError::DefaultAmongOthers);
    }
    if names.len() > 1 && names.contains(&"systemd/journal") {
        return Err(LoggingError::JournalAmongOthers(names.into_iter().map(String::from).collect()));
    }
    if names.contains(&"/dev/null") {
        names = vec!["/dev/null"];
    }
    Ok(names.into_iter().map(Output::from).collect())
}

/// The value of `--log-rotation-config-json`, which goes with one file among the outputs.
pub fn rotation(json: &str, outputs: &[Output]) -> Result<Rotation, LoggingError> {
    let files = outputs.iter().filter(|output| matches!(output, Output::File(_) | Output::Journal)).count();
    if files != 1 {
        return Err(LoggingError::RotationWithoutFile);
    }
    Rotation::parse(json)
}

impl From<&str> for Output {
    fn from(name: &str) -> Output {
        match name {
            "default" | "stderr" => Output::Stderr,
            "stdout" => Output::Stdout,
            "systemd/journal" => Output::Journal,
            path => Output::File(path.into()),
        }
    }
}

/// openraft says at each attempt that a member did not answer, several times a second; `raft` says it once.
const REPETITIVE: [(&str, LevelFilter); 4] = [
    ("openraft::engine::handler::replication_handler", LevelFilter::ERROR),
    ("openraft::replication", LevelFilter::ERROR),
    ("openraft::core::heartbeat", LevelFilter::ERROR),
    ("openraft::core::raft_core", LevelFilter::ERROR),
];

/// etcd's names of levels. Above error there is only what ends the process.
pub fn level(name: &str) -> Option<LevelFilter> {
    Some(match name.to_lowercase().as_str() {
        "debug" => LevelFilter::DEBUG,
        "info" | "" => LevelFilter::INFO,
        "warn" => LevelFilter::WARN,
        "error" => LevelFilter::ERROR,
        "dpanic" | "panic" | "fatal" => LevelFilter::OFF,
        _ => return None,
    })
}

pub fn format(name: &str) -> Option<Format> {
    match name {
        "json" => Some(Format::Json),
        "console" => Some(Format::Console),
        _ => None,
    }
}

impl Logging {
    /// Opens the outputs; from here on the process logs to them.
    pub fn start(&self) -> io::Result<()> {
        let layer =
            tracing_subscriber::fmt::layer().event_format(Line { format: self.format }).with_writer(self.open()?);
        tracing_subscriber::registry().with(self.filter()).with(layer).init();
        Ok(())
    }

    fn open(&self) -> io::Result<Outputs> {
        let (mut sinks, mut journal): (Vec<Box<dyn io::Write + Send>>, _) = (Vec::new(), None);
        for output in &self.outputs {
            match (output, &self.rotation) {
                (Output::Stderr, _) => sinks.push(Box::new(io::stderr())),
                (Output::Stdout, _) => sinks.push(Box::new(io::stdout())),
                (Output::Journal, _) => journal = Some(Journal::connect()?),
                (Output::File(path), None) => sinks.push(Box::new(outputs::open_file(path)?)),
                (Output::File(path), Some(rotation)) => sinks.push(Box::new(rotate::File::open(path, *rotation)?)),
            }
        }
        Ok(Outputs::new(sinks, journal))
    }

    fn filter(&self) -> Targets {
        // What libraries say of themselves matters only when it is wrong.
        let libraries = self.level.min(LevelFilter::WARN);
        let ours = ["pintle", "server", "raft", "storage"].map(|target| (target, self.level));
        let repetitive = REPETITIVE.map(|(target, level)| (target, level.min(self.level)));
        let filter = Targets::new().with_default(libraries).with_targets(repetitive).with_targets(ours);
        filter.with_target(FATAL, LevelFilter::ERROR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_go_together_by_etcds_rules() {
        let file = |path: &str| Output::File(path.into());
        assert_eq!(outputs("default"), Ok(vec![Output::Stderr]));
        assert_eq!(outputs("b,stdout,a,b"), Ok(vec![file("a"), file("b"), Output::Stdout]));
        assert_eq!(outputs("stderr,/dev/null"), Ok(vec![file("/dev/null")]));
        assert_eq!(outputs("default,a"), Err(LoggingError::DefaultAmongOthers));
        assert_eq!(outputs("systemd/journal"), Ok(vec![Output::Journal]));
        assert!(matches!(outputs("systemd/journal,a"), Err(LoggingError::JournalAmongOthers(_))));
    }

    #[test]
    fn rotation_wants_one_file() {
        let json = r#"{"maxsize": 1}"#;
        assert!(rotation(json, &outputs("a,stderr").unwrap()).is_ok());
        for others in ["stderr", "a,b", "default"] {
            assert_eq!(rotation(json, &outputs(others).unwrap()), Err(LoggingError::RotationWithoutFile), "{others}");
        }
    }

    /// What the members' own code says carries the module that says it.
    const TARGET: &str = module_path!();

    #[test]
    fn what_a_member_tells_is_logged_and_what_libraries_tell_is_not() {
        let filter =
            Logging { level: LevelFilter::INFO, format: Format::Json, outputs: Vec::new(), rotation: None }.filter();
        assert!(filter.would_enable(TARGET, &tracing::Level::INFO), "{TARGET}");
        assert!(!filter.would_enable("hyper::server", &tracing::Level::INFO));
    }

    #[test]
    fn above_error_only_the_end_of_the_process_is_logged() {
        let filter = |level| {
            let level = super::level(level).unwrap();
            Logging { level, format: Format::Json, outputs: Vec::new(), rotation: None }.filter()
        };
        for level in ["panic", "fatal", "dpanic"] {
            assert!(!filter(level).would_enable(TARGET, &tracing::Level::ERROR));
            assert!(filter(level).would_enable(FATAL, &tracing::Level::ERROR));
        }
        assert!(filter("ERROR").would_enable(TARGET, &tracing::Level::ERROR));
        assert_eq!(super::level("loud"), None);
    }
}
