//! The client's side of one HTTP/2 connection that carries gRPC (RFC 9113; gRPC over HTTP2), without the socket: bytes
//! go in, events come out, and what is to be written gathers in one buffer.
//!
//! The windows that are offered are so large that they are refilled a few times in a run. Frames stay at the 16 KiB
//! that clients ask for in practice. The server's own windows and its bound on streams are kept to.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
};

use proto::http2::{
    PREFACE,
    frame::{
        self, DEFAULT_FRAME_BYTES, DEFAULT_WINDOW, HEAD_BYTES, Head, SETTING_ENABLE_PUSH, SETTING_HEADER_TABLE_SIZE,
        SETTING_INITIAL_WINDOW_SIZE, SETTING_MAX_CONCURRENT_STREAMS, SETTING_MAX_FRAME_SIZE,
    },
    hpack::{Decoder, Encoder, HpackError, TABLE_BYTES},
};
use tonic::{Code, Status};

#[cfg(test)]
mod tests;

/// What a stream, and the connection, may be sent before we say that there is room again; half of it used, we do.
const WINDOW: u32 = 1 << 30;
/// gRPC's prefix of a message: compressed or not, and its length.
const PREFIX_BYTES: usize = 5;
/// No message is as long; the length of one that is would be the sign of a stream out of step.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error(transparent)]
    Hpack(#[from] HpackError),
    #[error("the server breaks the protocol: {0}")]
    Protocol(&'static str),
    #[error("the server closes the connection: error code {code}, {text:?}")]
    GoAway { code: u32, text: String },
    #[error("this client does not take {0}")]
    Unsupported(&'static str),
}

/// Whether a call is over with its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// One message each way.
    Unary,
    /// Messages both ways until one side ends it.
    Stream,
}

#[derive(Debug)]
pub enum Event<'a> {
    Message {
        owner: usize,
        lane: Lane,
        message: Cow<'a, [u8]>,
    },
    /// The call is over; `Ok` is grpc-status 0.
    Ended {
        owner: usize,
        lane: Lane,
        result: Result<(), Status>,
    },
}

struct Stream {
    owner: usize,
    lane: Lane,
    send_window: i64,
    /// Received since the peer was last told that there is room.
    received: u32,
    /// The beginning of a message that spans frames, or of its prefix.
    partial: Vec<u8>,
    /// The message's length, once its prefix is there.
    expected: Option<usize>,
}

/// A message, or what is left of it, that waits for the server's window.
struct Blocked {
    stream: u32,
    bytes: Vec<u8>,
    sent: usize,
    end: bool,
}

/// A call for which the server has no stream yet.
struct Waiting {
    owner: usize,
    lane: Lane,
    path: &'static str,
    message: Vec<u8>,
}

/// What a header block said.
#[derive(Debug, Clone, Default, PartialEq)]
struct Meaning {
    http_status: Option<u16>,
    grpc_status: Option<i32>,
    grpc_message: String,
}

/// A block that left the header table as it was, and the table it was read with: seen again with the same table, it
/// means the same.
struct Seen {
    changes: u64,
    block: Vec<u8>,
    meaning: Meaning,
}

/// DATA of a frame that is not all handed out.
struct Open {
    stream: u32,
    begin: usize,
    end: usize,
    last: bool,
}

pub struct Connection {
    /// To be written to the socket.
    pub out: Vec<u8>,
    authority: String,
    encoder: Encoder,
    decoder: Decoder,
    seen: [Option<Seen>; 2],
    streams: HashMap<u32, Stream>,
    next_stream: u32,
    waiting: VecDeque<Waiting>,
    blocked: VecDeque<Blocked>,
    send_window: i64,
    received: u32,
    open: Option<Open>,
    /// A buffer that held a large message, to be used again.
    spare: Vec<u8>,
    /// The server's settings have come. Before, its bounds are not known.
    settled: bool,
    streams_max: usize,
    peer_initial_window: i64,
    peer_frame_bytes: usize,
}

impl Connection {
    pub fn new(authority: String) -> Connection {
        let mut out = PREFACE.to_vec();
        put_head(&mut out, 12, frame::SETTINGS, 0, 0);
        for (name, value) in [(SETTING_ENABLE_PUSH, 0), (SETTING_INITIAL_WINDOW_SIZE, WINDOW)] {
            out.extend_from_slice(&name.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        put_window_update(&mut out, 0, WINDOW - DEFAULT_WINDOW as u32);
        Connection {
            out,
            authority,
            encoder: Encoder::default(),
            decoder: Decoder::default(),
            seen: [None, None],
            streams: HashMap::new(),
            next_stream: 1,
            waiting: VecDeque::new(),
            blocked: VecDeque::new(),
            send_window: DEFAULT_WINDOW,
            received: 0,
            open: None,
            spare: Vec::new(),
            settled: false,
            streams_max: usize::MAX,
            peer_initial_window: DEFAULT_WINDOW,
            peer_frame_bytes: DEFAULT_FRAME_BYTES,
        }
    }

    /// Whether the server's settings have come. Calls wait until then.
    pub fn settled(&self) -> bool {
        self.settled
    }

    fn may_open(&self) -> bool {
        self.streams.len() < self.streams_max
    }

    /// Begins a call with its first message. Returns the stream, for further messages; `None` when the call waits until
    /// the server's bound on streams lets it begin.
    pub fn call(&mut self, owner: usize, lane: Lane, path: &'static str, message: &[u8]) -> Option<u32> {
        if self.settled && self.may_open() {
            return Some(self.open(owner, lane, path, message));
        }
        self.waiting.push_back(Waiting { owner, lane, path, message: message.to_vec() });
        None
    }

    fn open_waiting(&mut self) {
        while self.may_open() {
            let Some(waiting) = self.waiting.pop_front() else { return };
            self.open(waiting.owner, waiting.lane, waiting.path, &waiting.message);
        }
    }

    fn open(&mut self, owner: usize, lane: Lane, path: &'static str, message: &[u8]) -> u32 {
        let id = self.next_stream;
        self.next_stream += 2;
        let at = self.out.len();
        self.out.extend_from_slice(&[0; HEAD_BYTES]);
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", &self.authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", concat!("pintle-bench/", env!("CARGO_PKG_VERSION"))),
        ] {
            self.encoder.field(&mut self.out, name, value);
        }
        let length = self.out.len() - at - HEAD_BYTES;
        let head = Head { length, kind: frame::HEADERS, flags: frame::END_HEADERS, stream: id };
        self.out[at..at + HEAD_BYTES].copy_from_slice(&head.bytes());
        let send_window = self.peer_initial_window;
        self.streams.insert(id, Stream { owner, lane, send_window, received: 0, partial: Vec::new(), expected: None });
        self.put(id, lane == Lane::Unary, message);
        id
    }

    /// Sends a message on a stream that is open.
    pub fn send(&mut self, stream: u32, message: &[u8]) {
        self.put(stream, false, message);
    }

    /// With `end`, the message is the last of our side.
    fn put(&mut self, stream: u32, end: bool, message: &[u8]) {
        let message_bytes = u32::try_from(message.len()).expect("a message is below 4 GiB");
        let [a, b, c, d] = message_bytes.to_be_bytes();
        let length = PREFIX_BYTES + message.len();
        let waits = self.blocked.iter().any(|blocked| blocked.stream == stream);
        if !waits && length <= self.room(stream) {
            self.take_room(stream, length);
            put_head(&mut self.out, length, frame::DATA, if end { frame::END_STREAM } else { 0 }, stream);
            self.out.extend_from_slice(&[0, a, b, c, d]);
            self.out.extend_from_slice(message);
            return;
        }
        let bytes = [&[0, a, b, c, d], message].concat();
        self.blocked.push_back(Blocked { stream, bytes, sent: 0, end });
        self.unblock();
    }

    /// Bytes that one frame on this stream may carry now. A stream that is gone takes anything: it goes nowhere.
    fn room(&self, stream: u32) -> usize {
        let window = self.streams.get(&stream).map_or(i64::MAX, |stream| stream.send_window);
        usize::try_from(window.min(self.send_window)).unwrap_or(0).min(self.peer_frame_bytes)
    }

    fn take_room(&mut self, stream: u32, bytes: usize) {
        self.send_window -= bytes as i64;
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.send_window -= bytes as i64;
        }
    }

    /// Sends what there is room for now. A stream without room holds up no other.
    fn unblock(&mut self) {
        for _ in 0..self.blocked.len() {
            let mut blocked = self.blocked.pop_front().expect("there are so many");
            while self.streams.contains_key(&blocked.stream) {
                let rest = blocked.bytes.len() - blocked.sent;
                let length = rest.min(self.room(blocked.stream));
                if length == 0 {
                    self.blocked.push_back(blocked);
                    break;
                }
                self.take_room(blocked.stream, length);
                let flags = if blocked.end && length == rest { frame::END_STREAM } else { 0 };
                put_head(&mut self.out, length, frame::DATA, flags, blocked.stream);
                self.out.extend_from_slice(&blocked.bytes[blocked.sent..blocked.sent + length]);
                blocked.sent += length;
                if length == rest {
                    break;
                }
            }
        }
    }

    /// Gives back the buffer of a message, so that the next large one need not allocate.
    pub fn recycle(&mut self, message: Cow<'_, [u8]>) {
        if let Cow::Owned(mut buffer) = message {
            buffer.clear();
            self.spare = buffer;
        }
    }

    /// The next event in what was received. `at` is moved past what was read; `None` leaves at most the beginning of a
    /// frame, which belongs before what is received next.
    pub fn next<'a>(&mut self, input: &'a [u8], at: &mut usize) -> Result<Option<Event<'a>>, ConnectionError> {
        loop {
            if let Some(open) = self.open.take() {
                if let Some(event) = self.data(input, open)? {
                    return Ok(Some(event));
                }
                continue;
            }
            let Some(head) = Head::read(&input[*at..]) else { return Ok(None) };
            if !self.settled && head.kind != frame::SETTINGS {
                return Err(ConnectionError::Protocol("it does not speak HTTP/2"));
            }
            if head.length > DEFAULT_FRAME_BYTES {
                return Err(ConnectionError::Protocol("a frame is longer than was allowed"));
            }
            let begin = *at + HEAD_BYTES;
            let Some(payload) = input.get(begin..begin + head.length) else { return Ok(None) };
            *at = begin + head.length;
            let content = content_or(&head, payload)?;
            match head.kind {
                frame::DATA => {
                    self.count_received(&head);
                    // Where the content lies in the input: past the length of the padding, if there is one.
                    let begin = begin + usize::from(head.has(frame::PADDED));
                    let end = begin + content.len();
                    self.open = Some(Open { stream: head.stream, begin, end, last: head.has(frame::END_STREAM) });
                }
                frame::HEADERS => {
                    if let Some(event) = self.headers(&head, content)? {
                        return Ok(Some(event));
                    }
                }
                frame::RST_STREAM => {
                    let code = read_u32(content)?;
                    let result = Err(Status::internal(format!("the server reset the stream: error code {code}")));
                    if let Some(event) = self.ended(head.stream, result) {
                        return Ok(Some(event));
                    }
                }
                _ => self.control(&head, content)?,
            }
        }
    }

    /// The next message in DATA, or the end of a stream that ends without trailers.
    fn data<'a>(&mut self, input: &'a [u8], mut open: Open) -> Result<Option<Event<'a>>, ConnectionError> {
        // A stream that was reset may still have sent.
        let Some(stream) = self.streams.get_mut(&open.stream) else { return Ok(None) };
        if open.begin == open.end {
            if !open.last {
                return Ok(None);
            }
            let result = Err(Status::internal("the stream ended without a status"));
            return Ok(self.ended(open.stream, result));
        }
        let (owner, lane) = (stream.owner, stream.lane);
        let content = &input[open.begin..open.end];
        let untouched = stream.expected.is_none() && stream.partial.is_empty();
        if untouched
            && let Some(length) = message_length(content)?
            && let Some(message) = content.get(PREFIX_BYTES..PREFIX_BYTES + length)
        {
            open.begin += PREFIX_BYTES + length;
            self.open = Some(open);
            return Ok(Some(Event::Message { owner, lane, message: message.into() }));
        }
        let wanted = stream.expected.unwrap_or(PREFIX_BYTES) - stream.partial.len();
        let taken = wanted.min(content.len());
        stream.partial.extend_from_slice(&content[..taken]);
        open.begin += taken;
        self.open = Some(open);
        if stream.expected.is_none()
            && let Some(length) = message_length(&stream.partial)?
        {
            stream.partial = std::mem::take(&mut self.spare);
            stream.partial.reserve(length);
            stream.expected = Some(length);
        }
        if stream.expected != Some(stream.partial.len()) {
            return Ok(None);
        }
        stream.expected = None;
        Ok(Some(Event::Message { owner, lane, message: std::mem::take(&mut stream.partial).into() }))
    }

    fn headers<'a>(&mut self, head: &Head, block: &[u8]) -> Result<Option<Event<'a>>, ConnectionError> {
        if !head.has(frame::END_HEADERS) {
            return Err(ConnectionError::Unsupported("headers in several frames"));
        }
        let last = usize::from(head.has(frame::END_STREAM));
        let known = self.seen[last].as_ref();
        let known = known.is_some_and(|seen| seen.changes == self.decoder.changes() && seen.block == block);
        if !known {
            self.seen[last] = None;
            let before = self.decoder.changes();
            let meaning = meaning(&mut self.decoder, block)?;
            // A block that changed the table will not be sent like this again; it is kept until the next one only.
            let changes = if self.decoder.changes() == before { before } else { u64::MAX };
            self.seen[last] = Some(Seen { changes, block: block.to_vec(), meaning });
        }
        let meaning = &self.seen[last].as_ref().expect("it was put there").meaning;
        let result = match meaning {
            Meaning { http_status: Some(status), .. } if *status != 200 => {
                Err(Status::unknown(format!("HTTP status {status}")))
            }
            Meaning { grpc_status: Some(0), .. } => Ok(()),
            Meaning { grpc_status: Some(code), grpc_message, .. } => {
                Err(Status::new(Code::from_i32(*code), grpc_message))
            }
            Meaning { .. } if last == 0 => return Ok(None),
            Meaning { .. } => Err(Status::internal("the stream ended without a status")),
        };
        Ok(self.ended(head.stream, result))
    }

    fn ended(&mut self, stream: u32, result: Result<(), Status>) -> Option<Event<'static>> {
        let stream = self.streams.remove(&stream)?;
        self.open_waiting();
        Some(Event::Ended { owner: stream.owner, lane: stream.lane, result })
    }

    fn control(&mut self, head: &Head, payload: &[u8]) -> Result<(), ConnectionError> {
        match head.kind {
            frame::SETTINGS if head.has(frame::ACK) => {}
            frame::SETTINGS => {
                for setting in payload.chunks_exact(6) {
                    let name = u16::from_be_bytes([setting[0], setting[1]]);
                    self.setting(name, read_u32(&setting[2..])?)?;
                }
                self.settled = true;
                self.open_waiting();
                put_head(&mut self.out, 0, frame::SETTINGS, frame::ACK, 0);
                self.unblock();
            }
            frame::PING if head.has(frame::ACK) => {}
            frame::PING => {
                put_head(&mut self.out, payload.len(), frame::PING, frame::ACK, 0);
                self.out.extend_from_slice(payload);
            }
            frame::WINDOW_UPDATE => {
                let more = i64::from(read_u32(payload)? & 0x7fff_ffff);
                match head.stream {
                    0 => self.send_window += more,
                    id => {
                        if let Some(stream) = self.streams.get_mut(&id) {
                            stream.send_window += more;
                        }
                    }
                }
                self.unblock();
            }
            frame::GOAWAY => {
                let code = payload.get(4..8).map_or(Ok(0), read_u32)?;
                let text = String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into_owned();
                return Err(ConnectionError::GoAway { code, text });
            }
            frame::CONTINUATION => return Err(ConnectionError::Unsupported("headers in several frames")),
            frame::PUSH_PROMISE => return Err(ConnectionError::Protocol("a push was promised that was forbidden")),
            // Priorities, and kinds of frames that are not known, are to be ignored.
            _ => debug_assert!(head.kind == frame::PRIORITY || head.kind > frame::CONTINUATION),
        }
        Ok(())
    }

    fn setting(&mut self, name: u16, value: u32) -> Result<(), ConnectionError> {
        match name {
            SETTING_HEADER_TABLE_SIZE if (value as usize) < TABLE_BYTES => {
                return Err(ConnectionError::Unsupported("a header table smaller than the default"));
            }
            SETTING_MAX_CONCURRENT_STREAMS => self.streams_max = value as usize,
            SETTING_INITIAL_WINDOW_SIZE => {
                let more = i64::from(value) - self.peer_initial_window;
                self.peer_initial_window = i64::from(value);
                for stream in self.streams.values_mut() {
                    stream.send_window += more;
                }
            }
            SETTING_MAX_FRAME_SIZE => self.peer_frame_bytes = value as usize,
            _ => {}
        }
        Ok(())
    }

    fn count_received(&mut self, head: &Head) {
        let length = head.length as u32;
        self.received += length;
        if self.received > WINDOW / 2 {
            put_window_update(&mut self.out, 0, self.received);
            self.received = 0;
        }
        if let Some(stream) = self.streams.get_mut(&head.stream) {
            stream.received += length;
            if stream.received > WINDOW / 2 {
                put_window_update(&mut self.out, head.stream, stream.received);
                stream.received = 0;
            }
        }
    }
}

fn content_or<'a>(head: &Head, payload: &'a [u8]) -> Result<&'a [u8], ConnectionError> {
    match head.kind {
        frame::DATA | frame::HEADERS => {
            head.content(payload).ok_or(ConnectionError::Protocol("a frame is shorter than its padding"))
        }
        _ => Ok(payload),
    }
}

fn put_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&Head { length, kind, flags, stream }.bytes());
}

fn put_window_update(out: &mut Vec<u8>, stream: u32, more: u32) {
    put_head(out, 4, frame::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&more.to_be_bytes());
}

fn read_u32(bytes: &[u8]) -> Result<u32, ConnectionError> {
    let bytes = bytes.first_chunk().ok_or(ConnectionError::Protocol("a frame is too short for its kind"))?;
    Ok(u32::from_be_bytes(*bytes))
}

/// The length of the message that begins here; `None` while its prefix is not all there.
fn message_length(bytes: &[u8]) -> Result<Option<usize>, ConnectionError> {
    let Some([compressed, length @ ..]) = bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    if *compressed != 0 {
        return Err(ConnectionError::Unsupported("compressed messages"));
    }
    match u32::from_be_bytes(*length) as usize {
        length if length <= MESSAGE_BYTES_MAX => Ok(Some(length)),
        _ => Err(ConnectionError::Protocol("a message is too long")),
    }
}

fn meaning(decoder: &mut Decoder, block: &[u8]) -> Result<Meaning, HpackError> {
    let mut meaning = Meaning::default();
    decoder.decode(block, |name, value| {
        let text = || String::from_utf8_lossy(value);
        match name {
            b":status" => meaning.http_status = text().parse().ok(),
            // What is no number is no success.
            b"grpc-status" => meaning.grpc_status = Some(text().parse().unwrap_or(Code::Unknown as i32)),
            b"grpc-message" => meaning.grpc_message = unescaped(value),
            _ => {}
        }
    })?;
    Ok(meaning)
}

/// A status message without its percent-encoding (gRPC over HTTP2, "Responses").
fn unescaped(text: &[u8]) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        plain.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&plain).into_owned()
}
