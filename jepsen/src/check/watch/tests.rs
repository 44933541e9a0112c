use super::{
    super::{
        history::{Answer, FaultNote, FaultPhase, KeyValue, Keys, Request, WatchEvent, WatchRequest},
        linearizability::replay,
        tape::{Tape, kv},
    },
    *,
};

/// | revision | |
/// |---|---|
/// | 2 | put a = 1 |
/// | 3 | put a = 2 |
/// | 4 | put b = 1 and c = 1 |
/// | 5 | delete a |
/// | 6 | put a = 3 |
fn truth() -> Store {
    let mut truth = Store::default();
    for event in all() {
        truth.witness(event.revision(), event.key().clone(), (!event.delete).then(|| event.kv.clone()));
    }
    truth
}

fn put(key: &str, value: &str, numbers: (i64, i64, i64), prev_kv: Option<KeyValue>) -> WatchEvent {
    WatchEvent { kv: kv(key, value, numbers), delete: false, prev_kv }
}

fn delete(key: &str, revision: i64, prev_kv: Option<KeyValue>) -> WatchEvent {
    WatchEvent { kv: kv(key, "", (0, revision, 0)), delete: true, prev_kv }
}

fn all() -> Vec<WatchEvent> {
    let (a1, a2) = (kv("a", "1", (2, 2, 1)), kv("a", "2", (2, 3, 2)));
    vec![
        put("a", "1", (2, 2, 1), None),
        put("a", "2", (2, 3, 2), Some(a1)),
        put("b", "1", (4, 4, 1), None),
        put("c", "1", (4, 4, 1), None),
        delete("a", 5, Some(a2)),
        put("a", "3", (6, 6, 1), None),
    ]
}

fn request(start_revision: i64) -> WatchRequest {
    WatchRequest { keys: Keys::all(), start_revision, prev_kv: true, ..WatchRequest::default() }
}

fn created(request: WatchRequest) -> WatchSeen {
    WatchSeen::Created { request, revision: 1 }
}

fn events(events: &[WatchEvent]) -> WatchSeen {
    WatchSeen::Events { revision: 6, fragment: false, events: events.to_vec() }
}

fn progress(revision: i64) -> WatchSeen {
    WatchSeen::Progress { revision }
}

fn broken() -> WatchSeen {
    WatchSeen::Broken { error: "gone".to_owned() }
}

fn names_at(seen: Vec<WatchSeen>, quiet_at: Option<i64>) -> Vec<&'static str> {
    let mut tape = Tape::default();
    for seen in seen {
        tape.seen(1, seen);
    }
    check(&tape.history, &truth(), quiet_at).names()
}

fn names(seen: Vec<WatchSeen>) -> Vec<&'static str> {
    names_at(seen, None)
}

/// A watch on everything from revision 2 on, with these responses.
fn names_of(responses: &[&[WatchEvent]]) -> Vec<&'static str> {
    names([created(request(2))].into_iter().chain(responses.iter().map(|response| events(response))).collect())
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_watch_that_sees_all_is_accepted() {
    let all = all();
    assert_eq!(names_of(&[&all]), NOTHING);
    assert_eq!(names_of(&[&all[..1], &all[1..4], &all[4..]]), NOTHING);
    let from_now = vec![created(request(0)), events(&all[..2]), progress(3), events(&all[2..]), progress(6)];
    assert_eq!(names_at(from_now, Some(6)), NOTHING);
    let resumed = vec![created(request(2)), events(&all[..1]), broken(), created(request(3)), events(&all[1..])];
    assert_eq!(names(resumed), NOTHING);
    let b = WatchRequest { keys: Keys::one("b"), start_revision: 2, ..WatchRequest::default() };
    assert_eq!(names_at(vec![created(b), events(&all[2..3]), progress(6)], Some(6)), NOTHING);
    let deletes = WatchRequest { no_put: true, ..request(2) };
    assert_eq!(names(vec![created(deletes), events(&all[4..5]), progress(6)]), NOTHING);
}

#[test]
fn fragments_are_one_response() {
    let all = all();
    let part = WatchSeen::Events { revision: 6, fragment: true, events: all[..3].to_vec() };
    assert_eq!(names(vec![created(request(2)), part.clone(), events(&all[3..])]), NOTHING);
    let again = vec![created(request(2)), part, broken(), created(request(2)), events(&all)];
    assert_eq!(names(again), NOTHING, "a response that did not come whole has not come");
}

#[test]
fn ordered() {
    let all = all();
    let swapped = [all[1].clone(), all[0].clone()];
    assert!(names_of(&[&swapped]).contains(&"ordered"));
    assert!(names_of(&[&all[..2], &all[4..], &all[2..4]]).contains(&"ordered"));
}

#[test]
fn unique() {
    let all = all();
    assert!(names_of(&[&all[..2], &all[1..]]).contains(&"unique"));
    let resumed = vec![created(request(2)), events(&all[..2]), broken(), created(request(3)), events(&all[1..])];
    assert!(names(resumed).contains(&"unique"));
}

#[test]
fn atomic() {
    let all = all();
    assert!(names_of(&[&all[..3], &all[3..]]).contains(&"atomic"));
}

#[test]
fn reliable() {
    let all = all();
    assert_eq!(names_of(&[&all[..1], &all[2..]]), ["reliable"]);
    assert_eq!(names_of(&[&all[..2], &[all[2].clone(), all[4].clone()]]), ["reliable"], "half a revision");
    assert_eq!(names(vec![created(request(2)), events(&all[..4]), progress(5)]), ["reliable"]);
    let invented = put("x", "1", (5, 5, 1), None);
    assert_eq!(names_of(&[&all[..4], &[all[4].clone(), invented]]), ["reliable"]);
    let wrong_value = put("a", "9", (2, 2, 1), None);
    assert_eq!(names_of(&[&[wrong_value]]), ["reliable"]);
    let leased = WatchEvent { kv: KeyValue { lease: 7, ..kv("a", "1", (2, 2, 1)) }, delete: false, prev_kv: None };
    assert_eq!(names_of(&[&[leased]]), ["reliable"]);
}

#[test]
fn resumable() {
    let all = all();
    assert_eq!(names(vec![created(request(3)), events(&all[2..])]), ["resumable"]);
    let skipped = vec![created(request(2)), events(&all[..1]), broken(), created(request(4)), events(&all[2..])];
    assert_eq!(names(skipped), ["resumable"]);
}

#[test]
fn bookmarkable() {
    let all = all();
    assert!(names(vec![created(request(2)), progress(2), events(&all[..2])]).contains(&"bookmarkable"));
    assert!(names(vec![created(request(2)), events(&all[..4]), progress(3)]).contains(&"bookmarkable"));
    let back = vec![created(request(2)), events(&all), progress(6), progress(5)];
    assert!(names(back).contains(&"bookmarkable"));
}

#[test]
fn prev_kv() {
    let mut changed = all();
    changed[4].prev_kv = Some(kv("a", "1", (2, 2, 1)));
    assert_eq!(names_of(&[&changed]), ["prev_kv"]);
    changed[4].prev_kv = None;
    assert_eq!(names_of(&[&changed]), ["prev_kv"]);
    changed[4].prev_kv = all()[4].prev_kv.clone();
    changed[5].prev_kv = Some(kv("a", "2", (2, 3, 2)));
    assert_eq!(names_of(&[&changed]), ["prev_kv"], "the key had been deleted");
    let unasked = WatchRequest { prev_kv: false, ..request(2) };
    assert_eq!(names(vec![created(unasked), events(&all())]), ["prev_kv"]);
}

#[test]
fn prev_kv_may_be_compacted_away() {
    let mut without = all();
    without[1].prev_kv = None;
    let judged = |compacted| {
        let mut tape = Tape::default();
        tape.done(1, Request::Compact { revision: compacted }, 6, Answer::Compact);
        tape.seen(1, created(request(2))).seen(1, events(&without));
        check(&tape.history, &truth(), None).names()
    };
    assert_eq!(judged(3), NOTHING);
    assert_eq!(judged(2), ["prev_kv"], "it was still there");
}

#[test]
fn is_create() {
    let mut changed = all();
    changed[1].kv.create_revision = 3;
    assert_eq!(names_of(&[&changed]), ["is-create", "reliable"]);
    let mut changed = all();
    changed[5].kv.create_revision = 2;
    assert_eq!(names_of(&[&changed]), ["is-create", "reliable"]);
}

#[test]
fn filter() {
    let all = all();
    let puts = WatchRequest { no_delete: true, ..request(2) };
    assert_eq!(names(vec![created(puts), events(&all)]), ["filter"]);
    let deletes = WatchRequest { no_put: true, ..request(2) };
    assert_eq!(names(vec![created(deletes), events(&all)]), ["filter"]);
    let a = WatchRequest { keys: Keys::one("a"), ..request(2) };
    assert_eq!(names(vec![created(a), events(&all)]), ["filter"]);
    assert_eq!(names(vec![created(request(3)), events(&all)]), ["filter"]);
}

#[test]
fn a_watch_goes_on_after_a_compaction() {
    let judged = |compacted, refused, from| {
        let all = all();
        let mut tape = Tape::default();
        tape.seen(1, created(request(2))).seen(1, events(&all[..1])).seen(1, broken());
        tape.done(1, Request::Compact { revision: compacted }, 6, Answer::Compact);
        tape.seen(1, WatchSeen::Compacted { compact_revision: refused }).seen(1, created(request(from)));
        tape.seen(
            1,
            events(&all.iter().filter(|event| event.revision() >= from).cloned().collect::<Vec<WatchEvent>>()),
        );
        check(&tape.history, &truth(), None).names()
    };
    assert_eq!(judged(5, 5, 5), NOTHING);
    assert_eq!(judged(5, 5, 4), ["resumable"], "asking again for what is gone");
    assert_eq!(judged(5, 4, 5), ["compacted"], "nobody compacted that");
    assert_eq!(judged(3, 3, 3), ["compacted"], "revision 3 is still there");
}

#[test]
fn a_fault_may_have_compacted_anything() {
    let judged = |name: &str| {
        let mut tape = Tape::default();
        tape.seen(1, created(request(2))).seen(1, broken());
        let phase = FaultPhase::Begin;
        let fault = FaultNote { fault: 1, name: name.to_owned(), nodes: vec![], phase, counters: [].into() };
        tape.note(9, Event::Fault(fault)).seen(1, WatchSeen::Compacted { compact_revision: 5 });
        tape.seen(1, created(request(5))).seen(1, events(&all()[4..]));
        check(&tape.history, &truth(), None).names()
    };
    assert_eq!(judged("kill"), ["compacted"]);
    assert_eq!(judged("compaction-storm"), NOTHING);
}

#[test]
fn a_watcher_that_is_starved_is_found() {
    let all = all();
    assert_eq!(names_at(vec![created(request(2)), events(&all[..4])], Some(6)), ["caught up"]);
    assert_eq!(names_at(vec![created(request(2)), events(&all[..4])], Some(4)), NOTHING);
    assert_eq!(names_at(vec![created(request(2)), events(&all[..4]), broken()], Some(6)), NOTHING);
}

#[test]
fn an_event_beyond_its_response_is_found() {
    let early = WatchSeen::Events { revision: 2, fragment: false, events: all()[..2].to_vec() };
    assert_eq!(names(vec![created(request(2)), early]), ["header revision"]);
}

#[test]
fn watchers_that_disagree_are_found() {
    let mut tape = Tape::default();
    tape.seen(1, created(request(2))).seen(1, events(&all()));
    tape.seen(2, created(request(2))).seen(2, events(&all()[..5])).seen(2, events(&[put("a", "4", (6, 6, 1), None)]));
    let truth = truth_of(&tape.history, 1, Store::default()).unwrap();
    assert_eq!(check(&tape.history, &truth, None).names(), ["reliable"]);
    assert!(truth_of(&tape.history, 1, Store::new(5, [])).is_err(), "it does not go on from there");
}

#[test]
fn watches_are_judged_by_the_replay_of_the_writes() {
    let mut tape = Tape::default();
    tape.put(1, "a", "1", 2).put(1, "a", "2", 3);
    tape.seen(1, created(request(2))).seen(1, events(&all()[..2]));
    let (verdict, truth) = replay(&tape.history, &Store::default()).unwrap();
    assert!(verdict.passes());
    assert!(check(&tape.history, &truth.unwrap(), Some(3)).passes());
}
