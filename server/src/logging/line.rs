//! A line of the log, as etcd's zap writes it.

use std::fmt::{self, Write as _};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use super::{FATAL, Format};

pub struct Line {
    pub format: Format,
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
            Level::ERROR if metadata.target() == FATAL => "fatal",
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
pub fn caller(file: &str) -> &str {
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
    use std::{io::Write, sync::Arc};

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::logging::outputs::Outputs;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let outputs = Outputs::new(vec![Box::new(buffer.clone())], None);
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
        assert!(value["caller"].as_str().unwrap().starts_with("logging/line.rs:"), "{line}");
        assert!(value["ts"].as_str().unwrap().ends_with('Z') && line.ends_with("}\n"));
    }

    #[test]
    fn what_ends_the_process_is_fatal() {
        let line = logged(Format::Json, || tracing::error!(target: FATAL, "the end"));
        assert!(line.contains(r#""level":"fatal""#), "{line}");
    }

    #[test]
    fn a_console_line_is_text_with_the_fields_behind() {
        let line = logged(Format::Console, || tracing::info!(count = 2, "ready"));
        assert!(line.contains("\tinfo\t") && line.ends_with("\tready\t{\"count\":2}\n"), "{line}");
    }
}
