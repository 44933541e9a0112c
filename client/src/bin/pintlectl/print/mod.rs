//! Answers in etcdctl's output formats. Source: etcd, `etcdctl/ctlv3/command/printer*.go`; where etcdctl 3.5 and later
//! versions print differently, it is 3.5's way.
//!
//! | module | holds |
//! |---|---|
//! | [`kv`], [`lease`], [`cluster`], [`endpoint`], [`auth`] | the answers, each in all its formats |
//! | [`json`], [`fields`], [`table`] | what the formats are made of |
//! | [`go`] | sizes, durations and quotes as Go prints them |

pub mod auth;
pub mod cluster;
pub mod endpoint;
pub mod fields;
pub mod go;
pub mod json;
pub mod kv;
pub mod lease;
pub mod table;

use std::io::{self, Write};

use fields::Fields;
use table::Table;

use crate::failure::{self, Failure};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Simple,
    Fields,
    Json,
    Protobuf,
    Table,
}

impl Format {
    pub fn named(name: &str) -> Result<Format, Failure> {
        match name {
            "simple" => Ok(Format::Simple),
            "fields" => Ok(Format::Fields),
            "json" => Ok(Format::Json),
            "protobuf" => Ok(Format::Protobuf),
            "table" => Ok(Format::Table),
            _ => Err(failure::bad_feature("unsupported output format")),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Simple => "simple",
            Format::Fields => "fields",
            Format::Json => "json",
            Format::Protobuf => "protobuf",
            Format::Table => "table",
        }
    }
}

/// What can be printed. Not every answer has every format.
pub trait Answer {
    fn simple(&self, style: Style) -> Vec<u8>;

    fn json(&self, style: Style) -> String;

    fn fields(&self) -> Option<Fields> {
        None
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        None
    }

    fn table(&self) -> Option<Table> {
        None
    }
}

/// How keys and values are shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Bytes as `\x61`, ids of members in hexadecimal.
    pub hex: bool,
    /// Values without their keys.
    pub value_only: bool,
}

/// Prints answers in the format asked for.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    pub format: Format,
    pub style: Style,
}

impl Printer {
    pub fn print(&self, answer: &dyn Answer) -> anyhow::Result<()> {
        print(&self.render(answer)?)
    }

    fn render(&self, answer: &dyn Answer) -> Result<Vec<u8>, Failure> {
        let bytes = match self.format {
            Format::Simple => Some(answer.simple(self.style)),
            Format::Json => Some((answer.json(self.style) + "\n").into_bytes()),
            Format::Fields => answer.fields().map(Fields::into_bytes),
            Format::Protobuf => answer.protobuf(),
            Format::Table => answer.table().map(|table| table.to_string().into_bytes()),
        };
        bytes.ok_or_else(|| failure::bad_feature(format!("{} not supported as output format", self.format.name())))
    }
}

/// Values may be any bytes, so they are written and not formatted.
pub fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// A line of text, the same in all formats.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    print(format!("{line}\n").as_bytes())
}
