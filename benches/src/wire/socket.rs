//! A connection with its socket: what was received is turned into events, what has gathered is written at once.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, bail, ensure};

use super::{
    connection::{Connection, Event},
    epoll::Epoll,
};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

pub struct Socket {
    stream: TcpStream,
    pub http: Connection,
    /// How much of `http.out` is written.
    written: usize,
    waits_for_room: bool,
    /// The beginning of a frame whose rest was not there yet.
    carry: Vec<u8>,
    token: usize,
}

impl Socket {
    /// Connects to `http://host:port` and waits for readability under `token`.
    pub fn connect(url: &str, epoll: &Epoll, token: usize) -> anyhow::Result<Socket> {
        let authority = authority(url)?;
        let address = authority.to_socket_addrs()?.next().with_context(|| format!("{authority} has no address"))?;
        let stream = TcpStream::connect_timeout(&address, CONNECT_WITHIN)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, token)?;
        let http = Connection::new(authority.to_string());
        Ok(Socket { stream, http, written: 0, waits_for_room: false, carry: Vec::new(), token })
    }

    /// Writes what has gathered, as far as the kernel takes it.
    pub fn flush(&mut self, epoll: &Epoll) -> io::Result<()> {
        while self.written < self.http.out.len() {
            match self.stream.write(&self.http.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.written == self.http.out.len() {
            self.http.out.clear();
            self.written = 0;
        }
        let waits_for_room = self.written > 0;
        if waits_for_room != self.waits_for_room {
            epoll.set_writable(&self.stream, self.token, waits_for_room)?;
            self.waits_for_room = waits_for_room;
        }
        Ok(())
    }

    /// Reads once. Returns how much of the buffer is to be handed to [`Socket::next`].
    pub fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<usize> {
        let (carried, free) = buffer.split_at_mut(self.carry.len());
        match self.stream.read(free) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(count) => {
                carried.copy_from_slice(&self.carry);
                self.carry.clear();
                Ok(carried.len() + count)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The next event in what was read; `None` keeps what is left for the next read.
    pub fn next<'a>(&mut self, input: &'a [u8], at: &mut usize) -> anyhow::Result<Option<Event<'a>>> {
        let event = self.http.next(input, at)?;
        if event.is_none() {
            self.carry.extend_from_slice(&input[*at..]);
        }
        Ok(event)
    }
}

/// `host:port` of a URL.
pub fn authority(url: &str) -> anyhow::Result<&str> {
    let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let authority =
        authority.with_context(|| format!("{url:?} is not http://host:port, which is all the load takes"))?;
    ensure!(authority.contains(':') && !authority.contains('/'), "{url:?} is not http://host:port");
    Ok(authority)
}
