//! systemd's journal, by its native protocol: a datagram of `KEY=value` lines to a Unix socket. A value with a line break
//! in it is written as `KEY`, a line break, its length in 8 bytes (little-endian), the value.
//! Source of the keys: etcd, `client/pkg/logutil/zap_journal.go`.

use std::{io, os::unix::net::UnixDatagram, path::Path};

const SOCKET: &str = "/run/systemd/journal/socket";

/// syslog's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    Critical = 2,
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

pub struct Journal {
    socket: UnixDatagram,
    /// The program's name.
    identifier: String,
}

impl Journal {
    pub fn connect() -> io::Result<Journal> {
        Journal::connect_to(Path::new(SOCKET))
    }

    fn connect_to(path: &Path) -> io::Result<Journal> {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            Ok(socket)
        };
        let socket = connect().map_err(|error: io::Error| {
            io::Error::new(error.kind(), format!("can't find journal (dial unixgram {}: {error})", path.display()))
        })?;
        let program = std::env::args().next().unwrap_or_default();
        let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Journal { socket, identifier: name.unwrap_or_else(|| "pintle".into()) })
    }

    /// One line of the log. It fails when the journal is gone, or the line longer than a datagram.
    pub fn send(&self, line: &[u8], priority: Priority, package: &str) -> io::Result<()> {
        let mut datagram = Vec::with_capacity(line.len() + 128);
        field(&mut datagram, "PRIORITY", (priority as u8).to_string().as_bytes());
        field(&mut datagram, "PACKAGE", package.as_bytes());
        field(&mut datagram, "SYSLOG_IDENTIFIER", self.identifier.as_bytes());
        field(&mut datagram, "MESSAGE", line.strip_suffix(b"\n").unwrap_or(line));
        self.socket.send(&datagram)?;
        Ok(())
    }
}

fn field(datagram: &mut Vec<u8>, key: &str, value: &[u8]) {
    datagram.extend_from_slice(key.as_bytes());
    if value.contains(&b'\n') {
        datagram.push(b'\n');
        datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend_from_slice(value);
    datagram.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_datagram_of_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect_to(&path).unwrap();
        let mut received = [0; 1024];
        let mut receive = || {
            let length = receiver.recv(&mut received).unwrap();
            received[..length].to_vec()
        };
        journal.send(b"{}\n", Priority::Warning, "src").unwrap();
        let fields = format!("PRIORITY=4\nPACKAGE=src\nSYSLOG_IDENTIFIER={}\nMESSAGE={{}}\n", journal.identifier);
        assert_eq!(String::from_utf8(receive()).unwrap(), fields);
        journal.send(b"a\nb\n", Priority::Critical, "").unwrap();
        assert!(receive().ends_with(b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n"));
    }

    #[test]
    fn without_a_journal_there_is_an_error_that_says_so() {
        let error = Journal::connect_to(Path::new("/nowhere/socket")).err().unwrap();
        assert!(error.to_string().starts_with("can't find journal (dial unixgram /nowhere/socket"), "{error}");
    }
}
