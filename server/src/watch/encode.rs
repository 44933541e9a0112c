//! What is sent: responses from the items of an outbox.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::{
    Message,
    encoding::{WireType, encoded_len_varint},
};
use proto::{etcdserverpb::ResponseHeader, raw::WatchResponse};
use storage::{StorageError, planted};
use tonic::Status;

use super::{
    History, Member,
    outbox::{Delivery, Item},
    watcher::NO_WATCH_ID,
};
use crate::unary;

/// Fields of a `WatchResponse`.
const HEADER: u32 = 1;
const WATCH_ID: u32 = 2;
const EVENTS: u32 = 11;
/// Four numbers of up to ten bytes with their tags, and the whole's tag and length.
const HEADER_BYTES_MAX: usize = 46;

/// Appends the responses that say `item`: one, or several where it is cut into fragments.
pub fn encode(
    item: Item,
    member: &dyn Member,
    history: &dyn History,
    out: &mut VecDeque<WatchResponse>,
) -> Result<(), StorageError> {
    let response =
        |id, revision| WatchResponse { header: Some(member.header(revision)), watch_id: id, ..Default::default() };
    out.push_back(match item {
        Item::Created { id, revision } => WatchResponse { created: true, ..response(id, revision) },
        Item::Refused { reason, revision } => WatchResponse {
            created: true,
            canceled: true,
            cancel_reason: reason.into(),
            ..response(NO_WATCH_ID, revision)
        },
        Item::Canceled { id, revision } => WatchResponse { canceled: true, ..response(id, revision) },
        // etcd leaves the header's revision at 0 here.
        Item::Compacted { id, compacted } => {
            WatchResponse { canceled: true, compact_revision: compacted, ..response(id, 0) }
        }
        Item::Progress { id, revision } => response(id, revision),
        Item::Events(delivery) => {
            let (fragment, header) = (delivery.watcher.watch.fragment, member.header(delivery.revision));
            let response = events(&delivery, header, history)?;
            if response.events.len() > 1 && planted!(RevisionSplit) {
                let split = |event: &Bytes| WatchResponse { events: vec![event.clone()], ..response.clone() };
                out.extend(response.events.iter().map(split));
                return Ok(());
            }
            if fragment {
                out.extend(fragments(response, member.response_bytes_max()));
                return Ok(());
            }
            response
        }
    });
    Ok(())
}

/// The header of the events that were encoded last: mostly it is the next ones', too.
#[derive(Default)]
pub struct Header {
    header: Option<ResponseHeader>,
    encoded: Vec<u8>,
}

impl Header {
    fn encoded(&mut self, header: ResponseHeader) -> &[u8] {
        if self.header.as_ref() != Some(&header) {
            self.encoded.clear();
            self.encoded.reserve(HEADER_BYTES_MAX);
            prost::encoding::message::encode(HEADER, &header, &mut self.encoded);
            self.header = Some(header);
        }
        &self.encoded
    }
}

/// Responses as they stand on the wire: each with its prefix.
pub struct Out {
    bytes: Vec<u8>,
    header: Header,
}

impl Out {
    pub fn new(capacity: usize, header: Header) -> Out {
        Out { bytes: Vec::with_capacity(capacity), header }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn end(self) -> (Bytes, Header) {
        (self.bytes.into(), self.header)
    }

    /// Appends what [`encode`] gives.
    pub fn append(
        &mut self,
        item: Item,
        member: &dyn Member,
        history: &dyn History,
    ) -> Result<Result<(), Status>, StorageError> {
        if let Item::Events(delivery) = &item
            && !delivery.watcher.watch.fragment
            && !planted!(RevisionSplit)
        {
            return self.append_events(delivery, member, history);
        }
        let mut responses = VecDeque::new();
        encode(item, member, history, &mut responses)?;
        let append = |response: &WatchResponse| unary::append(&mut self.bytes, |out| response.encode_raw(out));
        Ok(responses.iter().try_for_each(append))
    }

    /// Nearly all that is sent: no response is made, and each event is copied once.
    fn append_events(
        &mut self,
        delivery: &Delivery,
        member: &dyn Member,
        history: &dyn History,
    ) -> Result<Result<(), Status>, StorageError> {
        let watch = &delivery.watcher.watch;
        let header = self.header.encoded(member.header(delivery.revision));
        let mut failed = None;
        let appended = unary::append(&mut self.bytes, |out| {
            out.extend_from_slice(header);
            if watch.id != 0 {
                prost::encoding::int64::encode(WATCH_ID, &watch.id, out);
            }
            for event in delivery.events.iter() {
                match watch.previous {
                    false => put_event(event.encoded(), out),
                    true => match event.encoded_with_previous(history) {
                        Ok(event) => put_event(&event, out),
                        Err(error) => failed = Some(error),
                    },
                }
            }
        });
        failed.map_or(Ok(appended), Err)
    }
}

fn put_event(event: &[u8], out: &mut Vec<u8>) {
    prost::encoding::encode_key(EVENTS, WireType::LengthDelimited, out);
    prost::encoding::encode_varint(event.len() as u64, out);
    out.extend_from_slice(event);
}

fn events(delivery: &Delivery, header: ResponseHeader, history: &dyn History) -> Result<WatchResponse, StorageError> {
    let watch = &delivery.watcher.watch;
    let mut response = WatchResponse { header: Some(header), watch_id: watch.id, ..Default::default() };
    response.events.reserve_exact(delivery.events.len());
    for event in delivery.events.iter() {
        let event = if watch.previous { event.encoded_with_previous(history)? } else { event.encoded().clone() };
        response.events.push(event);
    }
    Ok(response)
}

/// Cuts a response into parts smaller than `bytes_max`, each with one event at least.
/// (etcd: `v3rpc/watch.go`, sendFragments.)
fn fragments(mut response: WatchResponse, bytes_max: usize) -> Vec<WatchResponse> {
    if response.encoded_len() < bytes_max || response.events.len() < 2 {
        return vec![response];
    }
    let events = std::mem::take(&mut response.events);
    response.fragment = true;
    let overhead = response.encoded_len();
    let mut parts = Vec::new();
    let (mut part, mut size) = (response.clone(), overhead);
    for event in events {
        // The field's tag takes one byte.
        let event_size = 1 + encoded_len_varint(event.len() as u64) + event.len();
        if !part.events.is_empty() && size + event_size >= bytes_max {
            parts.push(std::mem::replace(&mut part, response.clone()));
            size = overhead;
        }
        size += event_size;
        part.events.push(event);
    }
    part.fragment = false;
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(sizes: &[usize]) -> WatchResponse {
        let events = sizes.iter().map(|&size| Bytes::from(vec![7; size])).collect();
        WatchResponse {
            watch_id: 3,
            header: Some(ResponseHeader { revision: 9, ..Default::default() }),
            events,
            ..Default::default()
        }
    }

    fn sizes(parts: &[WatchResponse]) -> Vec<Vec<usize>> {
        parts.iter().map(|part| part.events.iter().map(Bytes::len).collect()).collect()
    }

    #[test]
    fn a_response_below_the_limit_stays_whole() {
        let whole = response(&[10, 10]);
        let len = whole.encoded_len();
        assert_eq!(fragments(whole.clone(), len + 1), std::slice::from_ref(&whole));
        assert_eq!(sizes(&fragments(whole, len)), [[10], [10]]);
    }

    #[test]
    fn one_event_is_never_cut() {
        let whole = response(&[1000]);
        assert_eq!(fragments(whole.clone(), 10), [whole]);
        assert_eq!(sizes(&fragments(response(&[1000, 1, 1, 1000]), 100)), [vec![1000], vec![1, 1], vec![1000]]);
    }

    #[test]
    fn every_part_but_the_last_says_that_more_follows() {
        let parts = fragments(response(&[40, 40, 40, 40, 40]), 110);
        assert_eq!(sizes(&parts), [vec![40, 40], vec![40, 40], vec![40]]);
        assert_eq!(parts.iter().map(|part| part.fragment).collect::<Vec<_>>(), [true, true, false]);
        assert!(parts.iter().all(|part| part.encoded_len() < 110 && part.watch_id == 3));
        assert!(parts.iter().all(|part| part.header.as_ref().is_some_and(|header| header.revision == 9)));
    }
}
