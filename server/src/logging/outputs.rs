//! Where the lines of the log go: to each of the outputs, one line after the other.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    sync::Arc,
};

use parking_lot::Mutex;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::{
    FATAL,
    journal::{Journal, Priority},
    line,
};

type Sinks = Vec<Box<dyn Write + Send>>;

#[derive(Clone)]
pub struct Outputs {
    sinks: Arc<Mutex<Sinks>>,
    journal: Option<Arc<Journal>>,
}

impl Outputs {
    pub fn new(sinks: Sinks, journal: Option<Journal>) -> Outputs {
        Outputs { sinks: Arc::new(Mutex::new(sinks)), journal: journal.map(Arc::new) }
    }
}

/// Takes one line.
pub struct LineWriter<'a> {
    outputs: &'a Outputs,
    priority: Priority,
    /// The folder of the source file, which only the journal wants.
    package: String,
}

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { outputs: self, priority: Priority::Info, package: String::new() }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LineWriter<'a> {
        let priority = match *metadata.level() {
            Level::ERROR if metadata.target() == FATAL => Priority::Critical,
            Level::ERROR => Priority::Error,
            Level::WARN => Priority::Warning,
            Level::INFO => Priority::Info,
            Level::DEBUG | Level::TRACE => Priority::Debug,
        };
        let folder = || metadata.file().and_then(|file| line::caller(file).split('/').next()).unwrap_or_default();
        let package = self.journal.as_ref().map_or_else(String::new, |_| folder().into());
        LineWriter { outputs: self, priority, package }
    }
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.outputs.sinks.lock().iter_mut().try_for_each(|sink| sink.write_all(line))?;
        if let Some(journal) = &self.outputs.journal
            && journal.send(line, self.priority, &self.package).is_err()
        {
            // The line is not lost with the journal.
            io::stderr().write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.outputs.sinks.lock().iter_mut().try_for_each(|sink| sink.flush())
    }
}

pub fn open_file(path: &str) -> io::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("--log-outputs={path}: {error}")))
}
