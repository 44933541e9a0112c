//! What goes to the client: answers, as far as there is room for them, and what is said of streams and the connection.

use bytes::Bytes;
use proto::http2::{
    frame::{self, CONTINUATION, DATA, GOAWAY, HEADERS, PING, RST_STREAM, WINDOW_UPDATE},
    hpack,
};

use super::{Broken, CONNECTION_WINDOW, Connection, End, Event, STREAM_ID_MAX, Stream, kept::CONTENT_TYPE};
use crate::guard::pings::Pings;

/// Bytes that wait to be written, from which on streams keep what they have.
const OUT_MAX: usize = 256 << 10;
/// Streams that were given up here, for which frames of the client may be under way.
const FORGOTTEN_MAX: usize = 128;
const STATUS_200: usize = 8;

impl<T> Connection<T> {
    /// Asks whether the client is there.
    pub fn put_ping(&mut self) {
        self.out.put_frame(PING, 0, 0, &[0; 8]);
    }

    /// Takes no further streams. The first call lets those come that are under way.
    pub fn go_away(&mut self, is_last: bool) {
        let last = if is_last { *self.last_taken.get_or_insert(self.last_stream) } else { STREAM_ID_MAX };
        self.put_goaway(last, frame::NO_ERROR, "");
    }

    /// Says why the connection ends.
    pub fn put_broken(&mut self, broken: Broken) {
        self.put_goaway(self.last_stream, broken.code, broken.reason);
    }

    fn put_goaway(&mut self, last: u32, code: u32, reason: &str) {
        self.out.put_head(8 + reason.len(), GOAWAY, 0, 0);
        self.out.put(&last.to_be_bytes());
        self.out.put(&code.to_be_bytes());
        self.out.put(reason.as_bytes());
    }

    /// Ends a stream at once (section 5.4.2).
    pub fn reset(&mut self, id: u32, code: u32) -> Option<Event<T>> {
        self.out.put_frame(RST_STREAM, 0, id, &code.to_be_bytes());
        self.forget(id);
        self.streams.remove(&id).map(|stream| Event::Reset(stream.data))
    }

    fn forget(&mut self, id: u32) {
        if self.forgotten.len() == FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
    }

    /// Notes that some of a body has been read, so that there is room for more.
    pub fn read(&mut self, id: u32, bytes: usize) {
        self.read_on_connection(bytes);
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.is_open) {
            stream.receive_window += bytes as i64;
            self.out.put_frame(WINDOW_UPDATE, 0, id, &(bytes as u32).to_be_bytes());
        }
    }

    /// The same where the stream needs no more room.
    pub fn read_on_connection(&mut self, bytes: usize) {
        self.read += bytes as u32;
        if self.read >= CONNECTION_WINDOW / 4 {
            self.receive_window += i64::from(self.read);
            let read = std::mem::take(&mut self.read);
            self.out.put_frame(WINDOW_UPDATE, 0, 0, &read.to_be_bytes());
        }
    }

    /// Begins an answer of gRPC that has succeeded so far.
    pub fn begin_success(&mut self, id: u32) {
        let mut block = Vec::with_capacity(64);
        self.kept.begin(&mut block);
        hpack::put_indexed(&mut block, STATUS_200);
        self.kept.content_type(&mut block);
        self.put_block(id, &block, false);
    }

    /// Begins an answer with these fields; `end`: that is all of it.
    pub fn begin<'a>(&mut self, id: u32, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, end: bool) {
        let mut block = Vec::with_capacity(256);
        self.kept.begin(&mut block);
        for (name, value) in fields {
            match (name, value) {
                CONTENT_TYPE => self.kept.content_type(&mut block),
                _ => hpack::put_field(&mut block, name, value),
            }
        }
        self.put_block(id, &block, end);
        if end {
            self.close(id);
        }
    }

    /// Sends bytes of an answer, of which the ones before have been [drained](Self::take_drained).
    pub fn send(&mut self, id: u32, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        debug_assert!(stream.pending.is_empty() && stream.end.is_none());
        stream.pending = bytes;
        self.go_on(id);
    }

    /// Ends an answer.
    pub fn finish(&mut self, id: u32, end: End) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.end = Some(end);
        if stream.pending.is_empty() {
            self.put_end(id);
        }
    }

    /// Sends a message that is all of an answer, and its end.
    pub fn send_last(&mut self, id: u32, bytes: Bytes) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        (stream.pending, stream.end) = (bytes, Some(End::Success));
        self.go_on(id);
    }

    fn go_on(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        // Behind those that wait for the connection.
        if self.sendable.is_empty() && self.out.len() < OUT_MAX {
            return self.send_some(id);
        }
        if stream.can_send() {
            stream.is_queued = true;
            self.sendable.push_back(id);
        }
    }

    /// Puts what there is room for where it is written from.
    pub fn pump(&mut self) {
        while self.send_window > 0 && self.out.len() < OUT_MAX {
            let Some(id) = self.sendable.pop_front() else { return };
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.is_queued = false;
                self.send_some(id);
            }
        }
    }

    /// Whether [`Connection::pump`] would go on once something is written.
    pub fn can_pump(&self) -> bool {
        !self.sendable.is_empty() && self.send_window > 0
    }

    /// Sends one frame of what is pending, and the end if that is all.
    fn send_some(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let room = stream.send_window.min(self.send_window).max(0) as usize;
        let length = stream.pending.len().min(room).min(self.peer_frame_bytes);
        if length > 0 {
            let piece = stream.pending.split_to(length);
            stream.send_window -= length as i64;
            self.send_window -= length as i64;
            let is_end = stream.pending.is_empty() && matches!(stream.end, Some(End::Plain));
            self.out.put_head(length, DATA, if is_end { frame::END_STREAM } else { 0 }, id);
            self.out.put_shared(piece);
            self.pings.iter_mut().for_each(Pings::answered);
            if is_end {
                return self.close(id);
            }
        }
        if stream.pending.is_empty() {
            stream.pending = Bytes::new();
            return if stream.end.is_some() { self.put_end(id) } else { self.drained.push(id) };
        }
        if stream.can_send() {
            stream.is_queued = true;
            self.sendable.push_back(id);
        }
    }

    fn put_end(&mut self, id: u32) {
        match self.streams.get_mut(&id).and_then(|stream| stream.end.take()) {
            None => return,
            Some(End::Plain) => {
                self.out.put_frame(DATA, frame::END_STREAM, id, &[]);
                self.answered();
            }
            Some(End::Success) => {
                let mut block = Vec::with_capacity(32);
                self.kept.begin(&mut block);
                self.kept.grpc_status(&mut block);
                self.put_block(id, &block, true);
            }
            Some(End::Trailers(fields)) => {
                let mut block = Vec::with_capacity(fields.len() + 8);
                self.kept.begin(&mut block);
                block.extend_from_slice(&fields);
                self.put_block(id, &block, true);
            }
        }
        self.close(id);
    }

    /// The answer is complete. Whoever still sends is told that nobody reads (section 8.1).
    fn close(&mut self, id: u32) {
        if self.streams.remove(&id).is_some_and(|stream| stream.is_open) {
            self.out.put_frame(RST_STREAM, 0, id, &frame::NO_ERROR.to_be_bytes());
            self.forget(id);
        }
    }

    /// Streams all of whose bytes are on their way, since this was asked last, and whose answers have not ended.
    pub fn take_drained(&mut self, drained: &mut Vec<u32>) {
        drained.append(&mut self.drained);
    }

    pub(super) fn put_block(&mut self, id: u32, block: &[u8], end: bool) {
        let mut pieces = block.chunks(self.peer_frame_bytes).peekable();
        let mut kind = HEADERS;
        while let Some(piece) = pieces.next() {
            let mut flags = if pieces.peek().is_none() { frame::END_HEADERS } else { 0 };
            if end && kind == HEADERS {
                flags |= frame::END_STREAM;
            }
            self.out.put_frame(kind, flags, id, piece);
            kind = CONTINUATION;
        }
        self.answered();
    }

    fn answered(&mut self) {
        self.pings.iter_mut().for_each(Pings::answered);
    }
}

impl<T> Stream<T> {
    /// Whether it is to be queued now.
    pub(super) fn can_send(&self) -> bool {
        !self.is_queued && self.send_window > 0 && !self.pending.is_empty()
    }
}
