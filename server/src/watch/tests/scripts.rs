//! etcd's rules for watches, as scripts.

use super::{TestMember, script::World};

async fn run(script: &str) {
    World::new(TestMember::new()).run(script).await;
}

#[tokio::test]
async fn a_watch_sees_its_keys_and_no_other() {
    run("
        watch a
        > created 0 @1
        put a 1
        > events 0 @2: put a=1
        put b 1
        put aa 1
        del a
        > events 0 @5: del a
        watch b d
        > created 1 @5
        put c 1
        > events 1 @6: put c=1
        put d 1
        del b d
        > events 1 @8: del b; del c
    ")
    .await;
}

#[tokio::test]
async fn an_empty_key_is_the_smallest_and_an_end_of_zero_has_no_end() {
    run("
        watch - 0
        > created 0 @1
        put a 1
        > events 0 @2: put a=1
        cancel 0
        > canceled 0 @2
        watch b 0
        > created 1 @2
        put a 2
        put z 1
        > events 1 @4: put z=1
        cancel 1
        > canceled 1 @4
        watch -
        > created 2 @4
        put a 3
    ")
    .await;
}

#[tokio::test]
async fn all_events_of_a_revision_come_in_one_response() {
    run("
        watch a z
        > created 0 @1
        txn a=1 b=2 c=3
        > events 0 @2: put a=1; put b=2; put c=3
    ")
    .await;
}

#[tokio::test]
async fn ids_count_up_and_pass_over_those_in_use() {
    run("
        watch a id=1
        > created 1 @1
        watch a
        > created 0 @1
        watch a
        > created 2 @1
        watch a id=2
        > refused -1 @1 because mvcc: duplicate watch ID provided on the WatchStream
        cancel 0
        > canceled 0 @1
        watch a
        > created 3 @1
        watch a id=7
        > created 7 @1
    ")
    .await;
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    run("
        watch b a
        > refused -1 @1 because mvcc: watcher range is empty
        watch b b
        > refused -1 @1 because mvcc: watcher range is empty
        watch a start=-1
        > refused -1 @1 because etcdserver: mvcc: required revision has been compacted
        cancel 0
        cancel -1
        watch a
        > created 0 @1
    ")
    .await;
}

#[tokio::test]
async fn a_watch_begins_in_the_past_or_in_the_future() {
    run("
        put a 1
        put b 1
        put a 2
        watch a start=1
        > created 0 @4
        > events 0 @4: put a=1; put a=2
        watch a start=3
        > created 1 @4
        > events 1 @4: put a=2
        watch a start=6
        > created 2 @4
        cancel 0
        > canceled 0 @4
        cancel 1
        > canceled 1 @4
        put a 3
        put a 4
        > events 2 @6: put a=4
    ")
    .await;
}

#[tokio::test]
async fn a_compacted_start_is_created_and_then_canceled() {
    run("
        put a 1
        put a 2
        put a 3
        compact 3
        watch a start=2
        > created 0 @4
        > canceled 0 @0 compacted 3
        watch a start=3
        > created 1 @4
        > events 1 @4: put a=2; put a=3
        watch b id=0
        > created 2 @4
        cancel 0
        > canceled 0 @4
        cancel 0
    ")
    .await;
}

#[tokio::test]
async fn previous_versions_come_where_asked_for() {
    run("
        watch a prev
        > created 0 @1
        put a 1
        > events 0 @2: put a=1
        put a 2
        > events 0 @3: put a=2 (prev a=1)
        del a
        > events 0 @4: del a (prev a=2)
        put a 3
        > events 0 @5: put a=3
        watch a start=3
        > created 1 @5
        > events 1 @5: put a=2; del a; put a=3
        watch a start=3 prev
        > created 2 @5
        > events 2 @5: put a=2 (prev a=1); del a (prev a=2); put a=3
    ")
    .await;
}

#[tokio::test]
async fn a_previous_version_that_is_compacted_is_left_out() {
    run("
        put a 1
        put a 2
        put a 3
        compact 3
        watch a start=3 prev
        > created 0 @4
        > events 0 @4: put a=2; put a=3 (prev a=2)
    ")
    .await;
}

#[tokio::test]
async fn filters_leave_kinds_of_events_out() {
    run("
        watch a noput
        > created 0 @1
        put a 1
        del a
        > events 0 @3: del a
        watch a nodelete start=2
        > created 1 @3
        > events 1 @3: put a=1
        watch a noput nodelete start=2
        > created 2 @3
    ")
    .await;
}

#[tokio::test]
async fn nothing_comes_after_a_cancel() {
    run("
        watch a
        > created 0 @1
        put a 1
        > events 0 @2: put a=1
        cancel 0
        > canceled 0 @2
        cancel 0
        put a 2
    ")
    .await;
}

#[tokio::test]
async fn progress_is_told_for_all_watches_at_once() {
    run("
        progress
        watch a
        > created 0 @1
        watch b
        > created 1 @1
        progress
        > progress -1 @1
        put c 1
        progress
        > progress -1 @2
        put a 1
        > events 0 @3: put a=1
        progress
        > progress -1 @3
    ")
    .await;
}

#[tokio::test]
async fn large_responses_are_cut_where_asked_for() {
    let member = TestMember { response_bytes_max: 80, ..TestMember::new() };
    World::new(member)
        .run(
            "
            txn a=1111111111 b=2222222222 c=3333333333
            watch a z start=2
            > created 0 @2
            > events 0 @2: put a=1111111111; put b=2222222222; put c=3333333333
            watch a z start=2 fragment
            > created 1 @2
            > events 1 @2 fragment: put a=1111111111; put b=2222222222
            > events 1 @2: put c=3333333333
            ",
        )
        .await;
}
