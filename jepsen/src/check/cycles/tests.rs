use super::{
    super::{
        history::{Answer, ListOp, RegisterOp, Request},
        tape::Tape,
    },
    *,
};

fn a(key: u64, value: u64) -> ListOp {
    ListOp::Append { key, value }
}

fn r(key: u64, list: &[u64]) -> ListOp {
    ListOp::Read { key, list: Some(list.to_vec()) }
}

fn w(key: u64, value: u64) -> RegisterOp {
    RegisterOp::Write { key, value }
}

fn rr(key: u64, value: Option<u64>) -> RegisterOp {
    RegisterOp::Read { key, value: Some(value) }
}

fn appended(ops: &[ListOp]) -> (Request, Answer) {
    (Request::Append { ops: ops.to_vec() }, Answer::Append { ops: ops.to_vec() })
}

fn registered(ops: &[RegisterOp]) -> (Request, Answer) {
    (Request::Registers { ops: ops.to_vec() }, Answer::Registers { ops: ops.to_vec() })
}

/// Transactions that all run at once, each by a process of its own.
fn at_once(transactions: Vec<(Request, Answer)>) -> Tape {
    let mut tape = Tape::default();
    for (process, (request, _)) in transactions.iter().enumerate() {
        tape.ask(process as u64, request.clone());
    }
    for (process, (_, answer)) in transactions.into_iter().enumerate() {
        tape.told(process as u64, 0, answer);
    }
    tape
}

/// Each transaction by the process beside it, one after the other.
fn in_turn(transactions: Vec<(u64, (Request, Answer))>) -> Tape {
    let mut tape = Tape::default();
    for (process, (request, answer)) in transactions {
        tape.done(process, request, 0, answer);
    }
    tape
}

fn lists(tape: &Tape) -> Vec<&'static str> {
    check_lists(&tape.history).unwrap().names()
}

fn registers(tape: &Tape) -> Vec<&'static str> {
    check_registers(&tape.history).unwrap().names()
}

fn lists_at_once(transactions: &[&[ListOp]]) -> Vec<&'static str> {
    lists(&at_once(transactions.iter().map(|ops| appended(ops)).collect()))
}

fn registers_at_once(transactions: &[&[RegisterOp]]) -> Vec<&'static str> {
    registers(&at_once(transactions.iter().map(|ops| registered(ops)).collect()))
}

#[test]
fn serial_transactions_are_accepted() {
    let tape = in_turn(vec![
        (1, appended(&[a(1, 1), r(1, &[1]), a(2, 1)])),
        (2, appended(&[r(1, &[1]), a(1, 2), r(2, &[1])])),
        (1, appended(&[r(1, &[1, 2]), r(2, &[1])])),
    ]);
    assert!(check_lists(&tape.history).unwrap().passes());
    let tape = in_turn(vec![
        (1, registered(&[rr(1, None), w(1, 1), rr(1, Some(1)), w(2, 1)])),
        (2, registered(&[rr(1, Some(1)), w(1, 2), rr(2, Some(1))])),
        (1, registered(&[rr(1, Some(2)), rr(2, Some(1))])),
    ]);
    assert!(check_registers(&tape.history).unwrap().passes());
    assert!(!check_lists(&Tape::default().history).unwrap().passes(), "nothing proves nothing");
}

#[test]
fn g0_is_rejected() {
    let writers: [&[ListOp]; 3] = [&[a(1, 1), a(2, 1)], &[a(1, 2), a(2, 2)], &[r(1, &[1, 2]), r(2, &[2, 1])]];
    assert_eq!(lists_at_once(&writers), ["G0"]);
    let both: [&[RegisterOp]; 2] = [&[w(1, 1), rr(2, Some(2)), w(2, 3)], &[rr(1, Some(1)), w(1, 2), w(2, 2)]];
    assert_eq!(registers_at_once(&both), ["G0"]);
    let order_unknown: [&[RegisterOp]; 2] = [&[w(1, 1), w(2, 1)], &[w(1, 2), w(2, 2)]];
    assert_eq!(registers_at_once(&order_unknown), Vec::<&str>::new());
}

#[test]
fn g1a_is_rejected() {
    let mut tape = Tape::default();
    tape.ask(1, appended(&[a(1, 1)]).0).failed(1, "refused");
    let (request, answer) = appended(&[r(1, &[1])]);
    tape.done(2, request, 0, answer);
    assert_eq!(lists(&tape), ["G1a"]);
    let mut tape = Tape::default();
    tape.ask(1, registered(&[w(1, 1)]).0).failed(1, "refused");
    let (request, answer) = registered(&[rr(1, Some(1))]);
    tape.done(2, request, 0, answer);
    assert_eq!(registers(&tape), ["G1a"]);
}

#[test]
fn g1b_is_rejected() {
    assert_eq!(lists_at_once(&[&[a(1, 1), a(1, 2)], &[r(1, &[1])]]), ["G-single", "G1b"]);
    assert_eq!(registers_at_once(&[&[w(1, 1), w(1, 2)], &[rr(1, Some(1))]]), ["G-single", "G1b"]);
}

#[test]
fn g1c_is_rejected() {
    assert_eq!(lists_at_once(&[&[a(1, 1), r(2, &[1])], &[a(2, 1), r(1, &[1])]]), ["G1c"]);
    assert_eq!(registers_at_once(&[&[w(1, 1), rr(2, Some(1))], &[w(2, 1), rr(1, Some(1))]]), ["G1c"]);
}

#[test]
fn g_single_is_rejected() {
    let skew: [&[ListOp]; 2] = [&[a(1, 1), a(2, 1)], &[r(1, &[1]), r(2, &[])]];
    assert_eq!(lists_at_once(&[skew[0], skew[1], &[r(2, &[1])]]), ["G-single"]);
    assert_eq!(registers_at_once(&[&[w(1, 1), w(2, 1)], &[rr(1, Some(1)), rr(2, None)]]), ["G-single"]);
}

#[test]
fn g2_is_rejected() {
    let skew: [&[ListOp]; 3] = [&[r(1, &[]), a(2, 1)], &[r(2, &[]), a(1, 1)], &[r(1, &[1]), r(2, &[1])]];
    assert_eq!(lists_at_once(&skew), ["G2"]);
    assert_eq!(registers_at_once(&[&[rr(1, None), w(2, 1)], &[rr(2, None), w(1, 1)]]), ["G2"]);
    let lost_update: [&[RegisterOp]; 2] = [&[rr(1, None), w(1, 1)], &[rr(1, None), w(1, 2)]];
    assert_eq!(registers_at_once(&lost_update), ["G2"]);
}

#[test]
fn an_old_read_of_the_same_process_is_rejected() {
    let mut tape = Tape::default();
    tape.ask(1, appended(&[a(1, 1)]).0).ask(2, appended(&[r(1, &[1])]).0);
    tape.told(2, 0, appended(&[r(1, &[1])]).1);
    let (request, answer) = appended(&[r(1, &[])]);
    tape.done(2, request, 0, answer).told(1, 0, appended(&[a(1, 1)]).1);
    assert_eq!(lists(&tape), ["G-single-process"]);
}

#[test]
fn an_old_read_after_the_write_was_acknowledged_is_rejected() {
    let tape = in_turn(vec![(1, appended(&[a(1, 1)])), (2, appended(&[r(1, &[])])), (3, appended(&[r(1, &[1])]))]);
    assert_eq!(lists(&tape), ["G-single-realtime"]);
    let never_read = in_turn(vec![(1, appended(&[a(1, 1)])), (2, appended(&[r(1, &[])]))]);
    assert_eq!(lists(&never_read), ["G-single-realtime"]);
    let tape = in_turn(vec![(1, registered(&[w(1, 1)])), (2, registered(&[rr(1, None)]))]);
    assert_eq!(registers(&tape), ["cyclic versions"]);
    let back =
        in_turn(vec![(1, registered(&[w(1, 1)])), (2, registered(&[w(1, 2)])), (3, registered(&[rr(1, Some(1))]))]);
    assert_eq!(registers(&back), ["cyclic versions"]);
}

#[test]
fn transactions_in_an_order_that_time_forbids_are_rejected() {
    let tape = in_turn(vec![(1, appended(&[a(1, 2)])), (2, appended(&[a(1, 1)])), (3, appended(&[r(1, &[1, 2])]))]);
    assert_eq!(lists(&tape), ["G0-realtime"]);
}

#[test]
fn reads_that_do_not_fit_each_other_are_rejected() {
    assert_eq!(
        lists_at_once(&[&[a(1, 1)], &[a(1, 2)], &[r(1, &[1, 2])], &[r(1, &[2])]]),
        ["G-single", "incompatible order"],
        "one order of the elements"
    );
    assert_eq!(lists_at_once(&[&[a(1, 1)], &[r(1, &[1, 1])]]), ["duplicate elements"]);
    assert_eq!(lists_at_once(&[&[r(1, &[7])]]), ["garbage read"]);
    assert_eq!(registers_at_once(&[&[rr(1, Some(7))]]), ["garbage read"]);
}

#[test]
fn a_transaction_that_does_not_see_itself_is_rejected() {
    assert_eq!(lists_at_once(&[&[a(1, 1), r(1, &[])]]), ["internal"]);
    assert_eq!(lists_at_once(&[&[a(1, 1)], &[r(1, &[]), r(1, &[1])]]), ["internal"]);
    assert_eq!(registers_at_once(&[&[w(1, 1), rr(1, None)]]), ["internal"]);
}

#[test]
fn a_write_of_unknown_outcome_may_be_seen_or_not() {
    for seen in [&[1][..], &[]] {
        let mut tape = Tape::default();
        tape.ask(1, appended(&[a(1, 1)]).0).lost(1);
        let (request, answer) = appended(&[r(1, seen)]);
        tape.done(2, request, 0, answer);
        assert!(check_lists(&tape.history).unwrap().passes());
    }
}

#[test]
fn a_long_history_is_judged_in_seconds() {
    let mut tape = Tape::default();
    let mut lists: Vec<Vec<u64>> = vec![Vec::new(); 100];
    for value in 0..10_000u64 {
        let (key, other) = (value % 100, (value * 7) % 100);
        let read = lists[other as usize].clone();
        lists[key as usize].push(value);
        let (request, answer) = appended(&[r(other, &read), a(key, value)]);
        tape.done(value % 10, request, 0, answer);
    }
    let begun = std::time::Instant::now();
    assert!(check_lists(&tape.history).unwrap().passes());
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}
