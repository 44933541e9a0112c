//! The log, line by line as etcd's zap writes it: JSON with level, ts, caller and msg, or the same as console text.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::{self, Write},
    sync::Arc,
};

use parking_lot::Mutex;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    filter::Targets,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Console,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Stderr,
    Stdout,
    /// Appended to.
    File(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    pub level: LevelFilter,
    pub format: Format,
    pub outputs: Vec<Output>,
}

impl From<&str> for Output {
    fn from(name: &str) -> Output {
        match name {
            "default" | "stderr" => Output::Stderr,
            "stdout" => Output::Stdout,
            path => Output::File(path.into()),
        }
    }
}

/// openraft says at each attempt that a member did not answer, several times a second; `raft` says it once.
const REPETITIVE: [(&str, LevelFilter); 3] = [
    ("openraft::replication", LevelFilter::ERROR),
    ("openraft::core::heartbeat", LevelFilter::ERROR),
    ("openraft::core::raft_core", LevelFilter::ERROR),
];

/// etcd's names of levels; those above error mean a stop of the process there.
pub fn level(name: &str) -> Option<LevelFilter> {
    Some(match name {
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" => LevelFilter::WARN,
        "error" | "dpanic" | "panic" | "fatal" => LevelFilter::ERROR,
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
        let open = |output: &Output| -> io::Result<Box<dyn Write + Send>> {
            Ok(match output {
                Output::Stderr => Box::new(io::stderr()),
                Output::Stdout => Box::new(io::stdout()),
                Output::File(path) => Box::new(open_file(path)?),
            })
        };
        let outputs = self.outputs.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Line { format: self.format })
            .with_writer(Outputs(Arc::new(Mutex::new(outputs))));
        // What libraries say of themselves matters only when it is wrong.
        let libraries = self.level.min(LevelFilter::WARN);
        let ours = ["pintle", "raft", "storage"].map(|target| (target, self.level));
        let filter = Targets::new().with_default(libraries).with_targets(REPETITIVE).with_targets(ours);
        tracing_subscriber::registry().with(filter).with(layer).init();
        Ok(())
    }
}

fn open_file(path: &str) -> io::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("--log-outputs={path}: {error}")))
}

type Sinks = Vec<Box<dyn Write + Send>>;

/// Every line goes to each of them.
#[derive(Clone)]
struct Outputs(Arc<Mutex<Sinks>>);

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = Outputs;

    fn make_writer(&'a self) -> Outputs {
        self.clone()
    }
}

impl Write for Outputs {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().iter_mut().try_for_each(|output| output.write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().iter_mut().try_for_each(|output| output.flush())
    }
}

struct Line {
    format: Format,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let (metadata, Fields { message, others }) = (event.metadata(), fields);
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let caller = format!("{}:{}", caller(metadata.file().unwrap_or("")), metadata.line().unwrap_or(0));
        match self.format {
            Format::Json => {
                let (caller, message) = (quoted(&caller), quoted(&message));
                write!(line, r#"{{"level":"{level}","ts":"{time}","caller":{caller},"msg":{message}"#)?;
                if !others.is_empty() {
                    write!(line, ",{others}")?;
                }
                writeln!(line, "}}")
            }
            Format::Console => {
                write!(line, "{time}\t{level}\t{caller}\t{message}")?;
                if !others.is_empty() {
                    write!(line, "\t{{{others}}}")?;
                }
                writeln!(line)
            }
        }
    }
}

/// A source file's folder and name, as zap shows it.
fn caller(file: &str) -> &str {
    let mut slashes = file.rmatch_indices('/').map(|(at, _)| at);
    match slashes.nth(1) {
        Some(at) => &file[at + 1..],
        None => file,
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The message, and the other fields as the inside of a JSON object.
#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: serde_json::Value) {
        if !self.others.is_empty() {
            self.others.push(',');
        }
        write!(self.others, "{}:{value}", quoted(&field.name().replace('_', "-"))).expect("a string takes all");
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => self.add(field, format!("{value:?}").into()),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.into(),
            _ => self.add(field, value.into()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let outputs = Outputs(Arc::new(Mutex::new(vec![Box::new(buffer.clone())])));
        let layer = tracing_subscriber::fmt::layer().event_format(Line { format }).with_writer(outputs);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = buffer.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_json_line_has_zaps_fields_and_its_own() {
        let line = logged(Format::Json, || tracing::warn!(member_id = 7, name = "a\"b", "it says \"no\""));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "warn");
        assert_eq!(value["msg"], "it says \"no\"");
        assert_eq!(value["member-id"], 7);
        assert_eq!(value["name"], "a\"b");
        assert!(value["caller"].as_str().unwrap().starts_with("src/logging.rs:"), "{line}");
        assert!(value["ts"].as_str().unwrap().ends_with('Z') && line.ends_with("}\n"));
    }

    #[test]
    fn a_console_line_is_text_with_the_fields_behind() {
        let line = logged(Format::Console, || tracing::info!(count = 2, "ready"));
        assert!(line.contains("\tinfo\t") && line.ends_with("\tready\t{\"count\":2}\n"), "{line}");
    }
}
