//! An HTTP/2 connection for gRPC calls that costs next to nothing: requests are laid out beforehand, and while answers
//! come in, only the heads of frames and messages are looked at. Source: RFC 9113, sections 3.4, 4.1 and 6; RFC 7541.

use std::{io, path::Path};

use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const WINDOW_MAX: u32 = (1 << 31) - 1;
const WINDOW_INITIAL: u32 = (1 << 16) - 1;
const SETTING_INITIAL_WINDOW_SIZE: u16 = 4;
const FRAME_HEAD: usize = 9;
/// A byte that says whether the message is compressed, and its length.
const MESSAGE_HEAD: usize = 5;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:method: POST` and `:scheme: http` of the static table.
const POST_HTTP: [u8; 2] = [0x83, 0x86];
/// The headers that the first request has put into the dynamic table, the first one first.
const AS_BEFORE: [u8; 5] = [0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];

/// A connection on which one method is called.
pub struct Connection {
    stream: UnixStream,
    method: &'static str,
    requests: u32,
    to_send: Vec<u8>,
    received: Vec<u8>,
    /// Bytes of `received` that have been looked at.
    seen: usize,
    /// Streams that have ended, and messages that have come, since [`Connection::take`].
    ended: usize,
    messages: usize,
}

impl Connection {
    /// Returns when the member has accepted.
    pub async fn open(socket: &Path, method: &'static str) -> io::Result<Connection> {
        let mut connection = Connection {
            stream: UnixStream::connect(socket).await?,
            method,
            requests: 0,
            to_send: PREFACE.to_vec(),
            received: Vec::with_capacity(1 << 20),
            seen: 0,
            ended: 0,
            messages: 0,
        };
        let window = [&SETTING_INITIAL_WINDOW_SIZE.to_be_bytes()[..], &WINDOW_MAX.to_be_bytes()].concat();
        connection.frame(SETTINGS, 0, 0, &window);
        connection.frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_INITIAL).to_be_bytes());
        connection.send().await?;
        while connection.received.len() < FRAME_HEAD {
            connection.read().await?;
        }
        assert_eq!(connection.received[3], SETTINGS, "the first frame of a server");
        connection.frame(SETTINGS, ACK, 0, &[]);
        connection.send().await?;
        Ok(connection)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).expect("frames are short");
        self.to_send.extend_from_slice(&len.to_be_bytes()[1..]);
        self.to_send.extend_from_slice(&[kind, flags]);
        self.to_send.extend_from_slice(&stream.to_be_bytes());
        self.to_send.extend_from_slice(payload);
    }

    /// A request to be sent with the next [`Connection::send`]. Its stream ends with it, or stays open for more.
    pub fn request(&mut self, request: &impl Message, is_last: bool) {
        let stream = 2 * self.requests + 1;
        let headers =
            if self.requests == 0 { first_headers(self.method) } else { [&POST_HTTP[..], &AS_BEFORE].concat() };
        self.requests += 1;
        self.frame(HEADERS, END_HEADERS, stream, &headers);
        let message = request.encode_to_vec();
        let len = u32::try_from(message.len()).expect("messages are short");
        let message = [&[0][..], &len.to_be_bytes(), &message].concat();
        self.frame(DATA, if is_last { END_STREAM } else { 0 }, stream, &message);
    }

    pub async fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.to_send).await?;
        self.to_send.clear();
        Ok(())
    }

    /// Waits until so many streams have ended.
    pub async fn ended(&mut self, streams: usize) -> io::Result<()> {
        while self.ended < streams {
            self.read().await?;
        }
        Ok(())
    }

    /// Waits until so many messages have come.
    pub async fn messages(&mut self, messages: usize) -> io::Result<()> {
        while self.messages < messages {
            self.read().await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some(Frame { kind, flags, payload, .. }) = frame_at(&self.received[self.seen..]) {
            self.seen += FRAME_HEAD + payload.len();
            self.ended += usize::from(matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0);
            match kind {
                DATA => self.messages += messages_in(payload).count(),
                RST_STREAM | GOAWAY => {
                    let reason = format!("the server ended it: {}", payload.escape_ascii());
                    return Err(io::Error::new(io::ErrorKind::ConnectionReset, reason));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The messages that have come, in the order of the requests. They are forgotten.
    pub fn take<M: Message + Default>(&mut self) -> Vec<M> {
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(Frame { kind, stream, payload, .. }) = frame_at(&self.received[at..self.seen]) {
            at += FRAME_HEAD + payload.len();
            if kind == DATA {
                let messages = messages_in(payload).map(|bytes| M::decode(bytes).expect("an answer of the method"));
                found.extend(messages.map(|message| (stream, message)));
            }
        }
        self.received.drain(..self.seen);
        (self.seen, self.ended, self.messages) = (0, 0, 0);
        found.sort_by_key(|(stream, _)| *stream);
        found.into_iter().map(|(_, message)| message).collect()
    }
}

/// As gRPC clients send them. Those that are the same for each request go into the dynamic table.
fn first_headers(method: &str) -> Vec<u8> {
    let mut headers = POST_HTTP.to_vec();
    let text = |headers: &mut Vec<u8>, text: &str| {
        headers.push(u8::try_from(text.len()).expect("headers are short"));
        headers.extend_from_slice(text.as_bytes());
    };
    // Literals with incremental indexing, their names by the static table where it has them.
    for (name, value) in
        [(4, method), (1, "localhost"), (0, "trailers"), (31, "application/grpc"), (58, "instructions/1")]
    {
        headers.push(0x40 | name);
        if name == 0 {
            text(&mut headers, "te");
        }
        text(&mut headers, value);
    }
    headers
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

/// The first frame, if it is there whole.
fn frame_at(bytes: &[u8]) -> Option<Frame<'_>> {
    let head = bytes.get(..FRAME_HEAD)?;
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Some(Frame { kind: head[3], flags: head[4], stream, payload: bytes.get(FRAME_HEAD..FRAME_HEAD + len)? })
}

/// The messages of a data frame. The answers asked for here are so short that none is cut.
fn messages_in(mut payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let head = payload.get(..MESSAGE_HEAD)?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let message = payload.get(MESSAGE_HEAD..MESSAGE_HEAD + len).expect("a whole message");
        payload = &payload[MESSAGE_HEAD + len..];
        Some(message)
    })
}
