//! The server's side of one HTTP/2 connection (RFC 9113), without the socket: bytes go in, events come out, and what is
//! to be written gathers. Sections named here are those of the RFC.
//!
//! Here is what comes; `protocol/sending.rs` has what goes, and `protocol/kept.rs` what the client keeps of it.

mod kept;
mod sending;

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use proto::http2::{
    frame::{
        self, CONTINUATION, DATA, DEFAULT_FRAME_BYTES, DEFAULT_WINDOW, GOAWAY, HEAD_BYTES, HEADERS, Head as FrameHead,
        PING, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
    hpack,
};
use tokio::time::Instant;

use self::kept::Kept;
use super::{
    head::{Head, Heads, Malformed},
    out::Out,
};
use crate::guard::pings::Pings;

/// What a client may send ahead on a stream, so that a large request is not slowed down by round trips.
const STREAM_WINDOW: u32 = 1 << 20;
/// On the connection: it may be filled with what is not read yet.
const CONNECTION_WINDOW: u32 = 2 << 20;
const WINDOW_MAX: i64 = (1 << 31) - 1;
const STREAM_ID_MAX: u32 = (1 << 31) - 1;
/// The fields of a request, as they are counted (section 6.5.2).
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Frames of one header block: one that is sent byte by byte is no request.
const BLOCK_FRAMES_MAX: usize = 64;

/// What a client has done. `T` is what the connection's owner keeps with a stream.
#[derive(Debug)]
pub enum Event<T> {
    /// `end`: it has no body.
    Request { stream: u32, head: Arc<Head>, end: bool },
    /// Of a body, in order; `end`: all of it has come.
    Data { stream: u32, bytes: Bytes, end: bool },
    /// A body has ended.
    End { stream: u32 },
    /// A stream is no more.
    Reset(T),
    /// A ping of ours was answered.
    Pong,
}

/// Why a connection has to end (section 5.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (error code {code})")]
pub struct Broken {
    pub code: u32,
    pub reason: &'static str,
}

fn broken<V>(code: u32, reason: &'static str) -> Result<V, Broken> {
    Err(Broken { code, reason })
}

/// How an answer ends, behind its last bytes.
#[derive(Debug, Clone)]
pub enum End {
    /// Without trailers.
    Plain,
    /// grpc-status 0.
    Success,
    /// A header block.
    Trailers(Vec<u8>),
}

struct Stream<T> {
    /// The client may send more.
    is_open: bool,
    receive_window: i64,
    /// Of a body that told its length: what has not come.
    length_left: Option<u64>,
    send_window: i64,
    /// Has to wait until there is room.
    pending: Bytes,
    /// Behind what is pending, nothing comes but this.
    end: Option<End>,
    /// It is among those that can go on.
    is_queued: bool,
    data: T,
}

/// A header block that goes on in further frames.
struct Block {
    stream: u32,
    ends_stream: bool,
    bytes: Vec<u8>,
    frames: usize,
}

/// Stream ids need no hash.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }

    fn write_u32(&mut self, id: u32) {
        // The table takes its index from the lowest bits, and a tag from the highest. (Fibonacci hashing.)
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub struct Connection<T> {
    pub out: Out,
    heads: Heads,
    streams: HashMap<u32, Stream<T>, BuildHasherDefault<IdHasher>>,
    streams_max: usize,
    last_stream: u32,
    block: Option<Block>,
    receive_window: i64,
    /// Read on the connection, and not told to the client yet.
    read: u32,
    send_window: i64,
    peer_window: i64,
    peer_frame_bytes: usize,
    kept: Kept,
    /// Streams that have something to send, and room on themselves.
    sendable: VecDeque<u32>,
    /// Streams whose owner may go on: all that it had sent is on its way.
    drained: Vec<u32>,
    /// Streams that were given up here, newest last.
    forgotten: VecDeque<u32>,
    pings: Option<Pings>,
    /// The client's settings have come.
    is_settled: bool,
    /// Later streams are not taken any more.
    last_taken: Option<u32>,
}

impl<T> Connection<T> {
    pub fn new(streams_max: u32, pings: Option<Pings>) -> Connection<T> {
        let mut out = Out::default();
        let settings = [
            (frame::SETTING_MAX_CONCURRENT_STREAMS, streams_max),
            (frame::SETTING_INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (frame::SETTING_MAX_HEADER_LIST_SIZE, HEAD_BYTES_MAX as u32),
        ];
        out.put_head(6 * settings.len(), SETTINGS, 0, 0);
        for (name, value) in settings {
            out.put(&name.to_be_bytes());
            out.put(&value.to_be_bytes());
        }
        let more = CONNECTION_WINDOW - DEFAULT_WINDOW as u32;
        out.put_frame(WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        Connection {
            out,
            heads: Heads::new(HEAD_BYTES_MAX),
            streams: HashMap::default(),
            streams_max: streams_max as usize,
            last_stream: 0,
            block: None,
            receive_window: i64::from(CONNECTION_WINDOW),
            read: 0,
            send_window: DEFAULT_WINDOW,
            peer_window: DEFAULT_WINDOW,
            peer_frame_bytes: DEFAULT_FRAME_BYTES,
            kept: Kept::default(),
            sendable: VecDeque::new(),
            drained: Vec::new(),
            forgotten: VecDeque::new(),
            pings,
            is_settled: false,
            last_taken: None,
        }
    }

    /// What the owner keeps with a stream; None when it is no more.
    pub fn data(&mut self, stream: u32) -> Option<&mut T> {
        self.streams.get_mut(&stream).map(|stream| &mut stream.data)
    }

    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// The next event in what was received, which is taken out of `input`. None leaves at most the beginning of a frame.
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<Option<Event<T>>, Broken>
    where
        T: Default,
    {
        loop {
            let Some(head) = FrameHead::read(input) else { return Ok(None) };
            if !self.is_settled && head.kind != SETTINGS {
                return broken(frame::PROTOCOL_ERROR, "the first frame is none of settings");
            }
            if head.length > DEFAULT_FRAME_BYTES {
                return broken(frame::FRAME_SIZE_ERROR, "a frame is longer than was allowed");
            }
            if input.len() < HEAD_BYTES + head.length {
                return Ok(None);
            }
            let payload = input.split_to(HEAD_BYTES + head.length).freeze().slice(HEAD_BYTES..);
            if let Some(event) = self.frame(&head, payload)? {
                return Ok(Some(event));
            }
        }
    }

    fn frame(&mut self, head: &FrameHead, payload: Bytes) -> Result<Option<Event<T>>, Broken>
    where
        T: Default,
    {
        if self.block.as_ref().is_some_and(|block| head.kind != CONTINUATION || head.stream != block.stream) {
            return broken(frame::PROTOCOL_ERROR, "a header block is interrupted");
        }
        let is_of_stream = matches!(head.kind, DATA | HEADERS | PRIORITY | RST_STREAM | CONTINUATION);
        let is_of_connection = matches!(head.kind, SETTINGS | PING | GOAWAY);
        if (is_of_stream && head.stream == 0) || (is_of_connection && head.stream != 0) {
            return broken(frame::PROTOCOL_ERROR, "a frame is on a stream that it is not for");
        }
        match head.kind {
            DATA => self.body(head, payload),
            HEADERS => {
                let content = content(head, &payload)?;
                if head.has(frame::PRIORITIZED) && depends_on_itself(head, &payload) {
                    // Section 5.3.1 of RFC 7540. The block counts for the table all the same.
                    self.heads.read_trailers(&content).or_else(compression)?;
                    self.last_stream = self.last_stream.max(head.stream);
                    return Ok(self.reset(head.stream, frame::PROTOCOL_ERROR));
                }
                let ends_stream = head.has(frame::END_STREAM);
                if head.has(frame::END_HEADERS) {
                    return self.headers(head.stream, &content, ends_stream);
                }
                self.block = Some(Block { stream: head.stream, ends_stream, bytes: content.to_vec(), frames: 1 });
                Ok(None)
            }
            CONTINUATION => {
                let Some(mut block) = self.block.take() else {
                    return broken(frame::PROTOCOL_ERROR, "a header block goes on that has not begun");
                };
                block.bytes.extend_from_slice(&payload);
                block.frames += 1;
                if block.frames > BLOCK_FRAMES_MAX || block.bytes.len() > 4 * HEAD_BYTES_MAX {
                    return broken(frame::ENHANCE_YOUR_CALM, "a header block is too long");
                }
                if head.has(frame::END_HEADERS) {
                    return self.headers(block.stream, &block.bytes, block.ends_stream);
                }
                self.block = Some(block);
                Ok(None)
            }
            RST_STREAM => {
                number(&payload)?;
                if head.stream > self.last_stream {
                    return broken(frame::PROTOCOL_ERROR, "a stream is reset that has not begun");
                }
                // Nothing more of it is under way.
                self.forgotten.retain(|forgotten| *forgotten != head.stream);
                Ok(self.streams.remove(&head.stream).map(|stream| Event::Reset(stream.data)))
            }
            SETTINGS => self.settings(head, &payload).map(|()| None),
            PING => self.ping(head, &payload),
            WINDOW_UPDATE => self.window_update(head.stream, number(&payload)? & STREAM_ID_MAX),
            PRIORITY if payload.len() != 5 => broken(frame::FRAME_SIZE_ERROR, "a priority has another length"),
            PRIORITY if depends_on_itself(head, &payload) => Ok(self.reset(head.stream, frame::PROTOCOL_ERROR)),
            GOAWAY if payload.len() < 8 => broken(frame::FRAME_SIZE_ERROR, "a GOAWAY is too short"),
            PUSH_PROMISE => broken(frame::PROTOCOL_ERROR, "a client promises a stream"),
            // Section 5.5: what is not known is passed over. A client that goes away closes the connection itself.
            _ => Ok(None),
        }
    }

    fn body(&mut self, head: &FrameHead, payload: Bytes) -> Result<Option<Event<T>>, Broken> {
        let content = content(head, &payload)?;
        let (length, end) = (head.length as i64, head.has(frame::END_STREAM));
        self.receive_window -= length;
        if self.receive_window < 0 {
            return broken(frame::FLOW_CONTROL_ERROR, "the client sends more than there is room for");
        }
        if head.stream > self.last_stream {
            return broken(frame::PROTOCOL_ERROR, "a body comes on a stream that has not begun");
        }
        let Some(stream) = self.streams.get_mut(&head.stream) else {
            self.read_on_connection(head.length);
            return match self.forgotten.contains(&head.stream) {
                true => Ok(None),
                false => broken(frame::STREAM_CLOSED, "a body comes on a stream that has ended"),
            };
        };
        stream.receive_window -= length;
        let refusal = if !stream.is_open {
            Some(frame::STREAM_CLOSED)
        } else if stream.receive_window < 0 {
            Some(frame::FLOW_CONTROL_ERROR)
        } else if !count_down(&mut stream.length_left, content.len(), end) {
            Some(frame::PROTOCOL_ERROR)
        } else {
            None
        };
        if let Some(code) = refusal {
            self.read_on_connection(head.length);
            return Ok(self.reset(head.stream, code));
        }
        stream.is_open = !end;
        let padding = head.length - content.len();
        if padding > 0 {
            self.read(head.stream, padding);
        }
        if content.is_empty() {
            return Ok(end.then_some(Event::End { stream: head.stream }));
        }
        Ok(Some(Event::Data { stream: head.stream, bytes: content, end }))
    }

    fn headers(&mut self, id: u32, block: &[u8], end: bool) -> Result<Option<Event<T>>, Broken>
    where
        T: Default,
    {
        if id % 2 == 0 {
            return broken(frame::PROTOCOL_ERROR, "a client opens a stream of the server's");
        }
        if id <= self.last_stream {
            return self.trailers(id, block, end);
        }
        self.last_stream = id;
        let head = self.heads.read(block).or_else(compression)?;
        if self.last_taken.is_some_and(|last| id > last) {
            return Ok(None);
        }
        if self.streams.len() >= self.streams_max {
            return Ok(self.reset(id, frame::REFUSED_STREAM));
        }
        let head = match head {
            Ok(head) if !end || head.length.unwrap_or(0) == 0 => head,
            Ok(_) | Err(Malformed::Request) => return Ok(self.reset(id, frame::PROTOCOL_ERROR)),
            Err(Malformed::TooLarge) => {
                let mut answer = Vec::new();
                self.kept.begin(&mut answer);
                hpack::put_field(&mut answer, b":status", b"431");
                self.put_block(id, &answer, true);
                return Ok(if end { None } else { self.reset(id, frame::NO_ERROR) });
            }
        };
        let stream = Stream {
            is_open: !end,
            receive_window: i64::from(STREAM_WINDOW),
            length_left: head.length,
            send_window: self.peer_window,
            pending: Bytes::new(),
            end: None,
            is_queued: false,
            data: T::default(),
        };
        self.streams.insert(id, stream);
        Ok(Some(Event::Request { stream: id, head, end }))
    }

    fn trailers(&mut self, id: u32, block: &[u8], end: bool) -> Result<Option<Event<T>>, Broken> {
        let is_lawful = self.heads.read_trailers(block).or_else(compression)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            return match self.forgotten.contains(&id) {
                true => Ok(None),
                false => broken(frame::STREAM_CLOSED, "headers come on a stream that has ended"),
            };
        };
        if !stream.is_open {
            return Ok(self.reset(id, frame::STREAM_CLOSED));
        }
        if !end || !is_lawful || !count_down(&mut stream.length_left, 0, true) {
            return Ok(self.reset(id, frame::PROTOCOL_ERROR));
        }
        stream.is_open = false;
        Ok(Some(Event::End { stream: id }))
    }

    /// (Section 6.5.)
    fn settings(&mut self, head: &FrameHead, payload: &[u8]) -> Result<(), Broken> {
        if head.has(frame::ACK) {
            return match payload.len() {
                0 => Ok(()),
                _ => broken(frame::FRAME_SIZE_ERROR, "an acknowledgement of settings holds some"),
            };
        }
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return broken(frame::FRAME_SIZE_ERROR, "settings end within one");
        }
        for [a, b, value @ ..] in settings {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*a, *b]) {
                frame::SETTING_HEADER_TABLE_SIZE => self.kept.resize(value),
                frame::SETTING_ENABLE_PUSH if value > 1 => {
                    return broken(frame::PROTOCOL_ERROR, "the setting ENABLE_PUSH is neither 0 nor 1");
                }
                frame::SETTING_INITIAL_WINDOW_SIZE => self.resize_windows(i64::from(value))?,
                frame::SETTING_MAX_FRAME_SIZE => {
                    self.peer_frame_bytes = value as usize;
                    if !(DEFAULT_FRAME_BYTES..1 << 24).contains(&self.peer_frame_bytes) {
                        return broken(frame::PROTOCOL_ERROR, "the setting MAX_FRAME_SIZE is out of its range");
                    }
                }
                _ => {}
            }
        }
        self.is_settled = true;
        self.out.put_frame(SETTINGS, frame::ACK, 0, &[]);
        Ok(())
    }

    fn resize_windows(&mut self, window: i64) -> Result<(), Broken> {
        if window > WINDOW_MAX {
            return broken(frame::FLOW_CONTROL_ERROR, "a window is larger than there are");
        }
        let more = window - std::mem::replace(&mut self.peer_window, window);
        for (id, stream) in &mut self.streams {
            stream.send_window += more;
            if stream.send_window > WINDOW_MAX {
                return broken(frame::FLOW_CONTROL_ERROR, "a window is larger than there are");
            }
            if stream.can_send() {
                stream.is_queued = true;
                self.sendable.push_back(*id);
            }
        }
        Ok(())
    }

    /// (Section 6.9.)
    fn window_update(&mut self, id: u32, more: u32) -> Result<Option<Event<T>>, Broken> {
        if id == 0 {
            self.send_window += i64::from(more);
            if more == 0 || self.send_window > WINDOW_MAX {
                let code = if more == 0 { frame::PROTOCOL_ERROR } else { frame::FLOW_CONTROL_ERROR };
                return broken(code, "the connection's window is changed by what it cannot be");
            }
            return Ok(None);
        }
        if id > self.last_stream {
            return broken(frame::PROTOCOL_ERROR, "a window is one of a stream that has not begun");
        }
        if more == 0 {
            return Ok(self.reset(id, frame::PROTOCOL_ERROR));
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        stream.send_window += i64::from(more);
        if stream.send_window > WINDOW_MAX {
            return Ok(self.reset(id, frame::FLOW_CONTROL_ERROR));
        }
        if stream.can_send() {
            stream.is_queued = true;
            self.sendable.push_back(id);
        }
        Ok(None)
    }

    /// (Section 6.7.)
    fn ping(&mut self, head: &FrameHead, payload: &[u8]) -> Result<Option<Event<T>>, Broken> {
        if payload.len() != 8 {
            return broken(frame::FRAME_SIZE_ERROR, "a ping has another length");
        }
        if head.has(frame::ACK) {
            return Ok(Some(Event::Pong));
        }
        let has_calls = !self.streams.is_empty();
        if self.pings.as_mut().is_some_and(|pings| !pings.take(has_calls, Instant::now())) {
            return broken(frame::ENHANCE_YOUR_CALM, "too_many_pings");
        }
        self.out.put_frame(PING, frame::ACK, 0, payload);
        Ok(None)
    }
}

fn compression<V>(_: hpack::HpackError) -> Result<V, Broken> {
    broken(frame::COMPRESSION_ERROR, "a header block cannot be read")
}

fn content(head: &FrameHead, payload: &Bytes) -> Result<Bytes, Broken> {
    match head.content(payload) {
        Some(content) => Ok(payload.slice_ref(content)),
        None => broken(frame::PROTOCOL_ERROR, "a frame is shorter than its padding"),
    }
}

fn number(payload: &[u8]) -> Result<u32, Broken> {
    match payload.try_into() {
        Ok(bytes) => Ok(u32::from_be_bytes(bytes)),
        Err(_) => broken(frame::FRAME_SIZE_ERROR, "a frame of four bytes has another length"),
    }
}

/// (RFC 7540, section 5.3.1.)
fn depends_on_itself(head: &FrameHead, payload: &[u8]) -> bool {
    let padding = usize::from(head.kind == HEADERS && head.has(frame::PADDED));
    let on = payload.get(padding..).and_then(|rest| rest.first_chunk::<4>());
    on.is_some_and(|on| u32::from_be_bytes(*on) & STREAM_ID_MAX == head.stream)
}

/// False when more or less comes than was told.
fn count_down(left: &mut Option<u64>, bytes: usize, end: bool) -> bool {
    let Some(left) = left else { return true };
    match left.checked_sub(bytes as u64) {
        Some(rest) => {
            *left = rest;
            !end || rest == 0
        }
        None => false,
    }
}
