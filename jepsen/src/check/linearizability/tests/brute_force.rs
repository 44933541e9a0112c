//! The search against one that tries every order of every choice of operations.

use proptest::prelude::*;

use super::{
    super::super::history::{Header, Response},
    *,
};

/// What a process asks, and which answer it gets: the right one, one that is a bit off, or none.
#[derive(Clone, Debug)]
struct Asked {
    request: Request,
    /// When the store does it, among the others; its invocation is some time before, its end some time after.
    before: usize,
    after: usize,
    outcome: Told,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Rightly,
    /// As the store was a number of operations ago.
    Late(usize),
    RevisionOff(i64),
    LostButDone,
    LostAndNotDone,
}

fn request() -> impl Strategy<Value = Request> {
    let key = || prop_oneof![Just("a"), Just("b")];
    prop_oneof![
        4 => (key(), 0..3u8).prop_map(|(key, value)| put(key, &value.to_string())),
        4 => key().prop_map(get),
        2 => key().prop_map(delete),
        2 => (key(), 0..5i64).prop_map(|(key, revision)| cas(key, revision, "c")),
        1 => Just(Request::Range(Range { keys: Keys::all(), ..Range::default() })),
        1 => Just(Request::DeleteRange(DeleteRange { keys: Keys::all(), prev_kv: true })),
    ]
}

fn asked(request: impl Strategy<Value = Request>) -> impl Strategy<Value = Asked> {
    let told = prop_oneof![
        12 => Just(Told::Rightly),
        1 => (1..3usize).prop_map(Told::Late),
        1 => prop_oneof![Just(-1), Just(1)].prop_map(Told::RevisionOff),
        2 => Just(Told::LostButDone),
        2 => Just(Told::LostAndNotDone),
    ];
    (request, 0..3usize, 0..3usize, told).prop_map(|(request, before, after, outcome)| Asked {
        request,
        before,
        after,
        outcome,
    })
}

/// Runs the requests one by one, with invocations and ends spread around.
fn judged_of(asked: &[Asked]) -> Vec<Judged> {
    let mut store = Store::default();
    let mut states = vec![store.clone()];
    let mut judged = Vec::new();
    for (place, asked) in asked.iter().enumerate() {
        let moment = 10 * (place + 1);
        let next = store.revision() + 1;
        let answered = match asked.outcome {
            Told::LostAndNotDone => None,
            Told::Late(ago) => {
                let mut old = states[states.len().saturating_sub(ago + 1)].clone();
                let next = old.revision() + 1;
                old.execute(&asked.request, next).answer.map(|answer| (old.revision(), answer))
            }
            Told::Rightly | Told::RevisionOff(_) | Told::LostButDone => {
                store.execute(&asked.request, next).answer.map(|answer| (store.revision(), answer))
            }
        };
        states.push(store.clone());
        let lost = matches!(asked.outcome, Told::LostButDone | Told::LostAndNotDone);
        let response = answered.filter(|_| !lost).map(|(revision, answer)| {
            let off = if let Told::RevisionOff(off) = asked.outcome { off } else { 0 };
            let header = Header { revision: revision + off, ..Default::default() };
            Response { header, answer }
        });
        judged.push(Judged {
            process: place as u64,
            invoked: (moment - 1).saturating_sub(10 * asked.before) * 100 + place,
            ended: response.is_some().then_some((moment + 1 + 10 * asked.after) * 100 + place),
            request: asked.request.clone(),
            response,
        });
    }
    judged
}

/// Tries everything.
fn any_order(store: &mut Store, judged: &[Judged], done: &mut Vec<bool>) -> bool {
    let left = |operation: &usize| !done[*operation];
    if (0..judged.len()).filter(left).all(|operation| judged[operation].response.is_none()) {
        return true;
    }
    let ends = (0..judged.len()).filter(left).filter_map(|operation| judged[operation].ended);
    let first_end = ends.min().expect("one that ended is left");
    let possible: Vec<usize> =
        (0..judged.len()).filter(left).filter(|operation| judged[*operation].invoked < first_end).collect();
    possible.into_iter().any(|operation| {
        let next = store.revision() + 1;
        let executed = store.execute(&judged[operation].request, next);
        let fits = match (&judged[operation].response, &executed.answer) {
            (Some(response), Some(answer)) => {
                let revision = response.header.revision;
                response.answer == *answer && (revision == 0 || revision == store.revision())
            }
            (None, Some(_)) => true,
            (_, None) => false,
        };
        done[operation] = true;
        let found = fits && any_order(store, judged, done);
        done[operation] = false;
        store.undo(executed.undo);
        found
    })
}

fn found(judged: &[Judged], scope: Scope) -> bool {
    let verdict = check(judged, judged, &Store::default(), scope, &Evidence::default(), 1_000_000).0;
    assert!(verdict.undecided.is_empty());
    verdict.anomalies.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_search_finds_an_order_exactly_where_there_is_one(asked in proptest::collection::vec(asked(request()), 1..7)) {
        let judged = judged_of(&asked);
        let exists = any_order(&mut Store::default(), &judged, &mut vec![false; judged.len()]);
        prop_assert_eq!(found(&judged, Scope::Store), exists, "{:#?}", judged);
    }

    /// Looking at one key is no stricter than looking at all.
    #[test]
    fn what_has_an_order_has_one_for_each_key(asked in proptest::collection::vec(asked(request()), 1..7)) {
        let judged = judged_of(&asked);
        if judged.iter().all(|operation| single_key(&operation.request).is_some())
            && any_order(&mut Store::default(), &judged, &mut vec![false; judged.len()])
        {
            for key in ["a", "b"] {
                let of_key: Vec<Judged> =
                    judged.iter().filter(|op| single_key(&op.request).is_some_and(|of| &**of == key.as_bytes())).cloned().collect();
                let verdict = check(&of_key, &judged, &Store::default(), Scope::Key, &Evidence::default(), 1_000_000).0;
                prop_assert!(verdict.anomalies.is_empty(), "{}", verdict);
            }
        }
    }
}
