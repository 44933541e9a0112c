//! The rules of file systems on traces by hand, and verdicts over outcomes that must be rejected.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message as _;
use proto::{
    command::{Command, command::Op as CommandOp},
    etcdserverpb::PutRequest,
};
use raft::recovered::{Ballot, EntryId};
use storage::{LogEntry, Payload};

use super::{
    disk::Image,
    legal::{Model, Walk},
    recover::{Entries, Found, Known, Outcome, StoreState, apply, open_store, state_of},
    trace::{Found as FoundNode, Mark, Op, ROOT, Slot, Trace},
    verdict::{Point, judge},
};

const DIR: usize = 1;
const BOTH: [Model; 2] = [Model::Ordered, Model::Weak];

fn slot(name: &str) -> Slot {
    Slot { dir: DIR, name: name.into() }
}

fn create(name: &str, file: usize) -> Op {
    Op::Create { slot: slot(name), file }
}

fn write(file: usize, offset: u64, data: Vec<u8>, extends: bool) -> Op {
    Op::Write { file, offset, data: data.into(), extends }
}

fn rename(from: &str, to: &str, moved: usize) -> Op {
    Op::Rename { from: slot(from), to: slot(to), moved }
}

fn trace(ops: Vec<Op>) -> Trace {
    let member = Slot { dir: ROOT, name: "m0".into() };
    Trace { ops, found: vec![FoundNode::Dir { slot: member, dir: DIR }] }
}

/// All images of a crash at the end of a run.
fn images(model: Model, ops: Vec<Op>) -> Vec<Image> {
    let trace = trace(ops);
    let mut walk = Walk::new(&trace, model, DIR, 1);
    (0..trace.ops.len()).for_each(|at| walk.pass(at));
    let mut images = Vec::new();
    walk.images(trace.ops.len(), |image, _| images.push(image));
    images
}

fn names(image: &Image) -> Vec<&str> {
    image.files.iter().map(|(name, _)| name.as_str()).collect()
}

/// What a file holds in each image that has it.
fn contents(images: &[Image], name: &str) -> BTreeSet<Vec<u8>> {
    let of_image = |image: &Image| image.files.iter().find(|(path, _)| path == name).map(|(_, c)| c.bytes.clone());
    images.iter().filter_map(of_image).collect()
}

#[test]
fn what_was_synced_is_in_every_image() {
    for model in BOTH {
        let ops = vec![create("a", 2), write(2, 0, vec![1; 600], true), Op::Sync { node: 2, began: 2 }];
        let images = images(model, ops);
        assert_eq!(contents(&images, "a"), BTreeSet::from([vec![1; 600]]), "{model:?}");
        assert!(images.iter().all(|image| names(image) == ["a"]), "{model:?}");
    }
}

#[test]
fn what_was_not_synced_is_missing_in_some() {
    for model in BOTH {
        let images = images(model, vec![create("a", 2), write(2, 0, vec![1; 600], true)]);
        assert!(images.iter().any(|image| image.files.is_empty()), "{model:?}");
        assert!(contents(&images, "a").contains(&Vec::new()), "{model:?}");
    }
}

#[test]
fn a_sync_does_not_cover_what_is_written_while_it_goes_on() {
    for model in BOTH {
        let sync = Op::Sync { node: 2, began: 2 };
        let ops = vec![create("a", 2), write(2, 0, vec![1; 8], true), write(2, 8, vec![2; 8], true), sync];
        assert!(contents(&images(model, ops), "a").contains(&vec![1; 8]), "{model:?}");
    }
}

#[test]
fn a_write_over_old_bytes_tears_between_sectors_and_nowhere_else() {
    for model in BOTH {
        let synced = [create("a", 2), write(2, 0, vec![1; 2048], true), Op::Sync { node: 2, began: 2 }];
        let ops = synced.into_iter().chain([write(2, 100, vec![2; 1500], false)]).collect();
        let found = contents(&images(model, ops), "a");
        assert!(found.len() > 4, "{model:?}: {}", found.len());
        for bytes in found {
            let is_new = |at: usize| bytes[at] == 2;
            let edges = (101..1600).filter(|at| is_new(*at) != is_new(at - 1));
            assert!(edges.clone().all(|at| at % 512 == 0), "{model:?}: {:?}", edges.collect::<Vec<_>>());
            assert!(!is_new(99) && !is_new(1600));
        }
    }
}

#[test]
fn a_file_grows_by_zeros_only_where_order_is_not_kept() {
    let grown = |model| contents(&images(model, vec![create("a", 2), write(2, 0, vec![1; 9000], true)]), "a");
    assert!(grown(Model::Weak).contains(&vec![0; 9000]));
    assert!(grown(Model::Ordered).iter().all(|bytes| bytes.iter().all(|byte| *byte == 1)));
    assert!(grown(Model::Ordered).contains(&vec![1; 4096]));
}

#[test]
fn names_come_in_their_order_or_in_any() {
    let both = |model| {
        let found = images(model, vec![create("a", 2), create("b", 3)]);
        found.iter().map(|image| names(image).join("")).collect::<BTreeSet<String>>()
    };
    assert_eq!(both(Model::Ordered), ["", "a", "ab"].map(String::from).into());
    assert_eq!(both(Model::Weak), ["", "a", "ab", "b"].map(String::from).into());
}

#[test]
fn a_file_has_one_of_its_names_but_no_later_one_without_the_earlier() {
    let ops = vec![create("a", 2), rename("a", "b", 2), rename("b", "c", 2)];
    for model in BOTH {
        let found: BTreeSet<String> = images(model, ops.clone()).iter().map(|image| names(image).join("")).collect();
        assert_eq!(found, ["", "a", "b", "c"].map(String::from).into(), "{model:?}");
    }
}

/// How a segment of the log was lost: its old name was not gone when it was written over.
#[test]
fn a_file_that_was_renamed_and_written_over_may_have_its_old_name() {
    let synced = [create("a", 2), write(2, 0, vec![1; 512], true), Op::Sync { node: 2, began: 2 }];
    let ops: Vec<Op> = synced.into_iter().chain([rename("a", "b", 2), write(2, 0, vec![2; 512], false)]).collect();
    for model in BOTH {
        assert!(contents(&images(model, ops.clone()), "a").contains(&vec![2; 512]), "{model:?}");
        let with_sync = ops[..4].iter().cloned().chain([Op::Sync { node: DIR, began: 4 }, ops[4].clone()]).collect();
        assert!(contents(&images(model, with_sync), "a").is_empty(), "{model:?}");
    }
}

const EMPTY: u64 = 0;

fn id(index: u64) -> EntryId {
    EntryId { term: 1, index }
}

fn put(write: u64) -> Bytes {
    let put = PutRequest { key: format!("w/{write}").into(), value: "v".into(), ..Default::default() };
    Command { op: Some(CommandOp::Put(put)), auth: None }.encode_to_vec().into()
}

/// A log of three writes, 1 to 3, and the states of a store that has applied so many.
struct Case {
    entries: Entries,
    states: Vec<StoreState>,
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Case {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(&dir.path().join("store")).unwrap();
        let (entries, mut states) = (Entries::default(), vec![state_of(&store).unwrap()]);
        for index in 1..=3 {
            let entry = LogEntry { index, term: 1, payload: Payload::Command(put(index)) };
            apply(&store, std::slice::from_ref(&entry)).unwrap();
            states.push(state_of(&store).unwrap());
            let before = (index > 1).then(|| id(index - 1));
            entries.known.lock().insert(id(index), Known { before, entry });
        }
        Case { entries, states, dir }
    }

    /// A member whose store had applied so many, with so many in its log.
    fn found(&self, applied: u64, last: u64) -> Found {
        let some = |index: u64| (index > EMPTY).then(|| id(index));
        Found {
            ballot: Some(Ballot { term: 1, member: 1, is_leader: true }),
            purged: None,
            last: some(last),
            runs: if last > 0 { vec![(1, 1, last)] } else { Vec::new() },
            applied: some(applied),
            opened: self.states[applied as usize],
            replayed: self.states[last as usize],
        }
    }

    fn issues() -> Vec<Op> {
        (1..=3).map(|write| Op::Mark(Mark::Issued(write))).collect()
    }

    /// What is said of one member that may come back like `worse` at the end of a run with these marks.
    fn said_of(&self, marks: Vec<Mark>, worse: Found) -> Vec<String> {
        let ops: Vec<Op> = Case::issues().into_iter().chain(marks.into_iter().map(Op::Mark)).collect();
        let outcomes = [Outcome::Recovered(self.found(0, 3)), Outcome::Recovered(worse)];
        let point = Point { member: 0, at: 3, until: ops.len(), images: BTreeSet::from([0, 1]) };
        self.judge(ops, vec![point], &outcomes)
    }

    fn judge(&self, ops: Vec<Op>, points: Vec<Point>, outcomes: &[Outcome]) -> Vec<String> {
        let scratch = self.dir.path().join("reference");
        let verdict = judge(&trace(ops), &points, outcomes, &self.entries, 0, &scratch).unwrap();
        verdict.violations.into_iter().map(|violation| violation.what).collect()
    }
}

fn acknowledged(write: u64) -> Mark {
    Mark::Acknowledged { write, revision: write as i64 + 1 }
}

#[test]
fn a_run_that_kept_its_word_is_accepted() {
    let case = Case::new();
    assert_eq!(case.said_of(vec![acknowledged(2)], case.found(1, 2)), [""; 0]);
    assert_eq!(case.said_of(vec![], case.found(0, 0)), [""; 0]);
}

#[test]
fn an_acknowledged_write_that_is_lost_is_rejected() {
    let case = Case::new();
    let said = case.said_of(vec![acknowledged(3)], case.found(1, 2));
    assert!(said[0].starts_with("entry 3 was acknowledged"), "{said:?}");
}

#[test]
fn a_write_answered_with_another_revision_is_rejected() {
    let case = Case::new();
    let said = case.said_of(vec![Mark::Acknowledged { write: 2, revision: 9 }], case.found(0, 3));
    assert_eq!(said, ["write 2 was answered with 9, and is 3"]);
}

#[test]
fn a_quorum_that_may_lose_a_write_is_rejected_and_a_minority_is_not() {
    let case = Case::new();
    let ops: Vec<Op> = Case::issues().into_iter().chain([Op::Mark(acknowledged(3))]).collect();
    let outcomes = [Outcome::Recovered(case.found(0, 3)), Outcome::Recovered(case.found(0, 2))];
    let points = |worst: [usize; 3]| {
        let point = |(member, image)| Point { member, at: 2, until: 4, images: BTreeSet::from([image]) };
        worst.into_iter().enumerate().map(point).collect::<Vec<Point>>()
    };
    assert_eq!(case.judge(ops.clone(), points([0, 0, 1]), &outcomes), [""; 0]);
    let said = case.judge(ops, points([0, 1, 1]), &outcomes);
    assert!(said[0].starts_with("entry 3 was acknowledged"), "{said:?}");
}

#[test]
fn a_refused_image_is_rejected() {
    let case = Case::new();
    let ops = Case::issues();
    let outcomes = [Outcome::Recovered(case.found(0, 3)), Outcome::Refused("damaged".into())];
    let point = Point { member: 0, at: 2, until: 3, images: BTreeSet::from([0, 1]) };
    assert_eq!(case.judge(ops, vec![point], &outcomes), ["refused: damaged"]);
}

#[test]
fn a_store_that_is_not_what_its_applied_index_says_is_rejected() {
    let case = Case::new();
    let torn = Found { opened: case.states[1], ..case.found(2, 3) };
    assert!(case.said_of(vec![], torn)[0].starts_with("the store opens at"));
    let diverged = Found { replayed: case.states[2], ..case.found(1, 3) };
    assert!(case.said_of(vec![], diverged)[0].starts_with("the store is replayed at"));
    let invented = Found { last: Some(EntryId { term: 9, index: 3 }), ..case.found(1, 3) };
    assert!(case.said_of(vec![], invented)[0].contains("which is no entry of the run"));
}

#[test]
fn a_ballot_that_goes_back_is_rejected() {
    let case = Case::new();
    let ballot = |term, member| Ballot { term, member, is_leader: false };
    let voted = |ballot| vec![Mark::Voted { member: 0, ballot }];
    assert_eq!(case.said_of(voted(ballot(1, 1)), case.found(0, 3)), [""; 0]);
    for promised in [ballot(2, 1), ballot(1, 2)] {
        let said = case.said_of(voted(promised), case.found(0, 3));
        assert!(said[0].starts_with("the ballot is"), "{said:?}");
    }
}

#[test]
fn entries_promised_to_a_leader_may_go_only_with_another_leader() {
    let case = Case::new();
    let promise =
        || vec![Mark::Follows { member: 0, term: 1 }, Mark::Matches { member: 0, leader_term: 1, last: id(3) }];
    let said = case.said_of(promise(), case.found(0, 2));
    assert!(said[0].contains("had been promised to the leader"), "{said:?}");
    let later = promise().into_iter().chain([Mark::Follows { member: 0, term: 2 }]).collect();
    assert_eq!(case.said_of(later, case.found(0, 2)), [""; 0]);
}

#[test]
fn a_write_that_nobody_asked_for_is_rejected() {
    let case = Case::new();
    let ops = vec![Op::Mark(Mark::Issued(1)), Op::Mark(Mark::Issued(2)), Op::Mark(Mark::Step("end".into()))];
    let outcomes = [Outcome::Recovered(case.found(0, 3))];
    let point = Point { member: 0, at: 2, until: 3, images: BTreeSet::from([0]) };
    let said = case.judge(ops, vec![point], &outcomes);
    assert!(said[0].contains("nobody had asked for"), "{said:?}");
}
