//! The revision a watch continues from.

use proto::{etcdserverpb::WatchResponse, mvccpb::Event};

use crate::revision;

/// On an answer that is for all watchers of a stream. Source: etcd, `client/v3/watch.go` (InvalidWatchID).
pub(super) const ALL: i64 = -1;

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Position {
    /// 0: with the next change, as long as the server has not said which revision that is.
    pub next: i64,
    /// The highest revision that the caller was told everything up to.
    told: i64,
    /// The parts of a revision that have come; others are still to come.
    parts: Vec<Event>,
}

impl Position {
    pub fn from(next: i64) -> Position {
        Position { next, ..Position::default() }
    }

    /// The server has created the watcher; it tells the store's revision at that moment.
    pub fn created(&mut self, response: &WatchResponse) {
        if self.next == 0 {
            self.next = revision(&response.header) + 1;
        }
        self.parts.clear();
    }

    /// Whether nothing is missed though the store has forgotten what was before this revision: it had been told that there
    /// was nothing for it. Then that is where it continues.
    pub fn is_beyond(&mut self, compact_revision: i64) -> bool {
        let is_beyond = compact_revision > self.next && compact_revision <= self.told + 1;
        if is_beyond {
            self.next = compact_revision;
        }
        is_beyond
    }

    /// Puts parts together, drops what was handed over before, and moves on. The response is worth handing over when this
    /// says so.
    pub fn accept(&mut self, response: &mut WatchResponse) -> bool {
        if response.fragment {
            self.parts.append(&mut response.events);
            return false;
        }
        if !self.parts.is_empty() {
            self.parts.append(&mut response.events);
            response.events = std::mem::take(&mut self.parts);
        }
        if response.events.is_empty() {
            // A progress notification: nothing at or below its revision will follow. One that was asked for is about all
            // watchers of the stream, and older servers send it too early.
            if response.watch_id != ALL {
                self.next = self.next.max(revision(&response.header) + 1);
            }
            // The member where the watch was resumed may be behind the one before; the caller is not.
            self.told = self.told.max(revision(&response.header));
            response.header.get_or_insert_default().revision = self.told;
            return true;
        }
        let mod_revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        response.events.retain(|event| mod_revision(event) >= self.next);
        let Some(last) = response.events.last() else { return false };
        // Not the header's revision: the store may be further than what it has sent.
        self.next = mod_revision(last) + 1;
        self.told = self.told.max(mod_revision(last));
        true
    }
}

#[cfg(test)]
mod tests {
    use proto::{etcdserverpb::ResponseHeader, mvccpb};

    use super::*;

    fn response(header_revision: i64, mod_revisions: &[i64]) -> WatchResponse {
        let event = |mod_revision: &i64| mvccpb::Event {
            kv: Some(mvccpb::KeyValue { mod_revision: *mod_revision, ..Default::default() }),
            ..Default::default()
        };
        WatchResponse {
            header: Some(ResponseHeader { revision: header_revision, ..Default::default() }),
            events: mod_revisions.iter().map(event).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_watch_of_what_comes_next_continues_from_where_it_was_created() {
        let mut position = Position::from(0);
        position.created(&response(7, &[]));
        assert_eq!(position.next, 8);
        // A stream opened later must not move it: what happened in between would be missed.
        position.created(&response(20, &[]));
        assert_eq!(position.next, 8);
    }

    #[test]
    fn the_position_follows_the_events_and_not_the_header() {
        let mut position = Position::from(3);
        assert!(position.accept(&mut response(100, &[3, 5])));
        assert_eq!(position.next, 6);
    }

    #[test]
    fn events_that_were_handed_over_are_dropped() {
        let mut position = Position::from(6);
        let mut repeated = response(9, &[4, 5]);
        assert!(!position.accept(&mut repeated));
        assert_eq!(position.next, 6);
        let mut partly = response(9, &[5, 6, 6, 7]);
        assert!(position.accept(&mut partly));
        assert_eq!(partly.events.len(), 3, "both events of revision 6 are new");
        assert_eq!(position.next, 8);
    }

    #[test]
    fn progress_moves_the_position_forward_only() {
        let mut position = Position::from(6);
        assert!(position.accept(&mut response(9, &[])));
        assert_eq!(position.next, 10);
        assert!(position.accept(&mut response(4, &[])));
        assert_eq!(position.next, 10);
        let mut asked_for = WatchResponse { watch_id: ALL, ..response(20, &[]) };
        assert!(position.accept(&mut asked_for));
        assert_eq!(position.next, 10);
    }

    #[test]
    fn progress_does_not_go_back_when_another_member_is_behind() {
        let mut position = Position::from(6);
        let told = |position: &mut Position, response: WatchResponse| {
            let mut response = WatchResponse { watch_id: ALL, ..response };
            assert!(position.accept(&mut response));
            revision(&response.header)
        };
        assert_eq!(told(&mut position, response(9, &[])), 9);
        position.created(&response(7, &[]));
        assert_eq!(told(&mut position, response(8, &[])), 9);
        assert!(position.accept(&mut response(12, &[10, 12])));
        assert_eq!(told(&mut position, response(11, &[])), 12);
        assert_eq!(told(&mut position, response(13, &[])), 13);
    }

    #[test]
    fn a_compaction_of_what_was_told_is_no_loss() {
        let mut position = Position::from(6);
        assert!(!position.is_beyond(7), "nobody said what was at 6");
        assert!(position.accept(&mut WatchResponse { watch_id: ALL, ..response(20, &[]) }));
        assert!(position.is_beyond(15));
        assert_eq!(position.next, 15);
        assert!(!position.is_beyond(15), "it is refused what it should be given");
        assert!(position.is_beyond(21));
        assert!(!position.is_beyond(22));
    }

    #[test]
    fn parts_are_handed_over_when_all_have_come() {
        let mut position = Position::from(5);
        for _ in 0..2 {
            let mut part = WatchResponse { fragment: true, ..response(9, &[5, 5]) };
            assert!(!position.accept(&mut part));
        }
        assert_eq!(position.next, 5);
        // The stream broke; on the next one the parts come again.
        position.created(&response(9, &[]));
        assert!(!position.accept(&mut WatchResponse { fragment: true, ..response(9, &[5, 5]) }));
        let mut last = response(9, &[5, 6]);
        assert!(position.accept(&mut last));
        assert_eq!((last.events.len(), position.next), (4, 7));
    }
}
