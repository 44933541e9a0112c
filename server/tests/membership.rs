//! Members that come and go, as processes.

mod member;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use member::{Member, command, free_ports, get, refusal};
use proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, PutRequest, RangeRequest, cluster_client::ClusterClient, kv_client::KvClient,
};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

const WITHOUT_STRICT: &str = "--strict-reconfig-check=false";

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

async fn cluster(member: &Member) -> ClusterClient<Channel> {
    ClusterClient::connect(member.endpoint()).await.unwrap()
}

async fn put(member: &Member, key: &str) {
    let mut client = KvClient::connect(member.endpoint()).await.unwrap();
    client.put(PutRequest { key: key.to_string().into(), ..Default::default() }).await.unwrap();
}

async fn count(member: &Member) -> i64 {
    let mut client = KvClient::connect(member.endpoint()).await.unwrap();
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), count_only: true, ..Default::default() };
    client.range(all).await.unwrap().into_inner().count
}

async fn add(member: &Member, peer: u16, is_learner: bool) -> Result<MemberAddResponse, Status> {
    let request = MemberAddRequest { peer_ur_ls: vec![url(peer)], is_learner };
    cluster(member).await.member_add(request).await.map(|response| response.into_inner())
}

/// The flags of a member that joins; `members` are the names and peer ports of all.
fn joining(name: &str, members: &[(&str, u16)]) -> [String; 3] {
    let all: Vec<String> = members.iter().map(|(name, port)| format!("{name}={}", url(*port))).collect();
    [
        format!("--name={name}"),
        format!("--initial-cluster={}", all.join(",")),
        "--initial-cluster-state=existing".into(),
    ]
}

fn start(dir: &TempDir, client: u16, peer: u16, flags: &[String]) -> Member {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Member::start_on(dir.path(), client, peer, &flags)
}

fn dirs<const N: usize>() -> [TempDir; N] {
    std::array::from_fn(|_| tempfile::tempdir().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_joins_and_a_removed_one_ends_well() {
    let [dir_a, dir_b] = dirs();
    let [client_a, peer_a, client_b, peer_b] = free_ports();
    let a = Member::start_on(dir_a.path(), client_a, peer_a, &["--name=a"]);
    put(&a, "before").await;
    let added = add(&a, peer_b, false).await.unwrap();
    let new = added.member.unwrap();
    assert_eq!((new.name.as_str(), &new.peer_ur_ls[..], new.is_learner), ("", &[url(peer_b)][..], false));
    assert_eq!((added.members.len(), added.header.unwrap().revision), (2, 0));
    put(&a, "waiting for the new member").await;
    let refused = add(&a, 1, false).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: re-configuration failed due to not enough started members");

    let flags = joining("b", &[("a", peer_a), ("b", peer_b)]);
    let b = start(&dir_b, client_b, peer_b, &flags);
    assert_eq!(count(&b).await, 2);
    put(&b, "from the new member").await;
    let listed = cluster(&b).await.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    let listed: Vec<(u64, &str)> = listed.members.iter().map(|member| (member.id, member.name.as_str())).collect();
    assert!(listed.contains(&(new.id, "b")) && listed.len() == 2, "{listed:?}");

    // It comes back from its own directory, whatever the flags say of the cluster's state.
    assert_eq!(b.stop(), Some(0));
    let b = start(&dir_b, client_b, peer_b, &flags);
    assert_eq!(count(&b).await, 3);

    let removed = cluster(&a).await.member_remove(MemberRemoveRequest { id: new.id }).await.unwrap().into_inner();
    assert_eq!(removed.members.len(), 1);
    b.wait_for_log("the member has been permanently removed from the cluster");
    b.wait_for_log("data-dir used by this member must be removed");
    assert_eq!(b.exit_code(), Some(0));
    put(&a, "alone again").await;
    let (code, text) = refusal(command(dir_b.path(), client_b, peer_b).args(&flags));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("the member has been permanently removed from the cluster"), "{text}");
    assert_eq!(a.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_may_remove_itself() {
    let [dir_a, dir_b] = dirs();
    let [client_a, peer_a, client_b, peer_b] = free_ports();
    let a = Member::start_on(dir_a.path(), client_a, peer_a, &["--name=a", WITHOUT_STRICT]);
    let first = cluster(&a).await.member_list(MemberListRequest::default()).await.unwrap().into_inner().members;
    add(&a, peer_b, false).await.unwrap();
    let b = start(&dir_b, client_b, peer_b, &joining("b", &[("a", peer_a), ("b", peer_b)]));
    a.wait_for_log("votes now");
    let removed = cluster(&a).await.member_remove(MemberRemoveRequest { id: first[0].id }).await.unwrap();
    assert_eq!(removed.into_inner().members.len(), 1);
    assert_eq!(a.exit_code(), Some(0));
    put(&b, "x").await;
    assert_eq!(count(&b).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_is_promoted_when_it_is_in_step() {
    let [dir_a, dir_b] = dirs();
    let [client_a, peer_a, client_b, peer_b] = free_ports();
    let a = Member::start_on(dir_a.path(), client_a, peer_a, &["--name=a"]);
    put(&a, "x").await;
    let learner = add(&a, peer_b, true).await.unwrap().member.unwrap();
    assert!(learner.is_learner);
    let too_many = add(&a, 1, true).await.unwrap_err();
    assert_eq!(too_many.message(), "etcdserver: too many learner members in cluster");
    let promote = MemberPromoteRequest { id: learner.id };
    let refused = cluster(&a).await.member_promote(promote).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: can only promote a learner member which is in sync with leader");
    let (code, members) = get(peer_a, "/members");
    assert!(code == 200 && members.contains(r#""isLearner":true"#), "{members}");

    let b = start(&dir_b, client_b, peer_b, &joining("b", &[("a", peer_a), ("b", peer_b)]));
    let mut on_learner = KvClient::connect(b.endpoint()).await.unwrap();
    let read = |serializable| RangeRequest { key: "x".into(), serializable, ..Default::default() };
    assert_eq!(on_learner.range(read(true)).await.unwrap().into_inner().count, 1);
    let refused = on_learner.range(read(false)).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: rpc not supported for learner");
    let promoted = loop {
        match cluster(&a).await.member_promote(promote).await {
            Ok(promoted) => break promoted.into_inner(),
            // The leader has not heard yet how far it is.
            Err(status) => assert!(status.message().contains("in sync with leader"), "{status}"),
        }
    };
    assert!(promoted.members.iter().all(|member| !member.is_learner));
    let again = cluster(&a).await.member_promote(promote).await.unwrap_err();
    assert_eq!(again.message(), "etcdserver: can only promote a learner member");
    put(&b, "y").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_as_by_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let a = Member::start(dir.path(), &[WITHOUT_STRICT]);
    let mut client = cluster(&a).await;
    let refused = |status: Status| (status.code(), status.message().to_string());
    let text = |text: &str| text.to_string();
    for urls in [vec![], vec!["127.0.0.1:1"], vec!["http://127.0.0.1"], vec!["http://127.0.0.1:1/x"]] {
        let peer_ur_ls = urls.into_iter().map(str::to_string).collect();
        let status = client.member_add(MemberAddRequest { peer_ur_ls, is_learner: false }).await.unwrap_err();
        assert_eq!(refused(status), (Code::InvalidArgument, text("etcdserver: given member URLs are invalid")));
    }
    let status = add(&a, a.peer, false).await.unwrap_err();
    assert_eq!(refused(status), (Code::FailedPrecondition, text("etcdserver: Peer URLs already exists")));
    let not_found = (Code::NotFound, text("etcdserver: member not found"));
    let status = client.member_remove(MemberRemoveRequest { id: 7 }).await.unwrap_err();
    assert_eq!(refused(status), not_found);
    let status = client.member_promote(MemberPromoteRequest { id: 7 }).await.unwrap_err();
    assert_eq!(refused(status), not_found);
    let status = client.member_update(MemberUpdateRequest { id: 7, peer_ur_ls: vec![url(1)] }).await.unwrap_err();
    assert_eq!(refused(status), not_found);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_has_to_describe_the_cluster_as_it_is() {
    let [dir_a, dir_b] = dirs();
    let [client_a, peer_a, client_b, peer_b, nobody] = free_ports();
    let a = Member::start_on(dir_a.path(), client_a, peer_a, &["--name=a"]);
    let join = |members: &[(&str, u16)]| {
        let (code, text) = refusal(command(dir_b.path(), client_b, peer_b).args(joining("b", members)));
        assert_eq!(code, 1);
        text
    };
    let text = join(&[("b", peer_b), ("c", nobody)]);
    assert!(text.contains("cannot fetch cluster info from peer urls"), "{text}");
    let text = join(&[("a", peer_a), ("b", peer_b)]);
    assert!(text.contains("member count is unequal"), "{text}");
    add(&a, nobody, false).await.unwrap();
    let text = join(&[("a", peer_a), ("b", peer_b)]);
    assert!(text.contains("PeerURLs: no match found for existing member"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_a_lost_cluster_is_a_cluster_again() {
    let [dir_a, dir_b] = dirs();
    let [client_a, peer_a, client_b, peer_b] = free_ports();
    let a = Member::start_on(dir_a.path(), client_a, peer_a, &["--name=a"]);
    add(&a, peer_b, false).await.unwrap();
    let b = start(&dir_b, client_b, peer_b, &joining("b", &[("a", peer_a), ("b", peer_b)]));
    a.wait_for_log("votes now");
    put(&b, "x").await;
    let id = cluster(&a).await.member_list(MemberListRequest::default()).await.unwrap().into_inner().header.unwrap();
    b.signal(libc::SIGKILL);
    b.exit_code();
    a.signal(libc::SIGKILL);
    a.exit_code();
    let a = Member::start_on(dir_a.path(), client_a, peer_a, &["--name=a", "--force-new-cluster"]);
    assert_eq!(count(&a).await, 1);
    let alone = cluster(&a).await.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    assert_eq!((alone.members.len(), alone.header.unwrap().cluster_id), (1, id.cluster_id));
    put(&a, "y").await;
    let (code, text) = refusal(command(dir_b.path(), client_b, peer_b).args(joining("b", &[("b", peer_b)])));
    assert_eq!(code, 0, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_find_each_other_in_a_registry() {
    let [registry_dir, dir_a, dir_b] = dirs();
    let registry = Member::start(registry_dir.path(), &[]);
    let mut client = KvClient::connect(registry.endpoint()).await.unwrap();
    let size = PutRequest { key: "/_etcd/registry/tok/_config/size".into(), value: "2".into(), ..Default::default() };
    let endpoint = registry.endpoint();
    let flags = |name: &str| {
        [format!("--name={name}"), format!("--discovery-endpoints={endpoint}"), "--discovery-token=tok".into()]
    };
    let [client_a, peer_a, client_b, peer_b, client_c, peer_c] = free_ports();
    let (code, text) = refusal(command(dir_a.path(), client_a, peer_a).args(flags("a")));
    assert!(code == 1 && text.contains("discovery: size key not found"), "{text}");
    client.put(size).await.unwrap();
    // Who waits for the others can be stopped, and goes on another time.
    let mut waiting = command(dir_a.path(), client_a, peer_a).args(flags("a")).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(waiting.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(log.any(|line| line.contains("waiting for members in the registry")));
    // SAFETY: the process is a child that has not been waited for, so the id is its own.
    assert_eq!(unsafe { libc::kill(waiting.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
    let dir = dir_a.path().to_path_buf();
    let flags_a = flags("a");
    let a =
        std::thread::spawn(move || Member::start_on(&dir, client_a, peer_a, &flags_a.each_ref().map(String::as_str)));
    let b = start(&dir_b, client_b, peer_b, &flags("b"));
    let a = a.join().unwrap();
    put(&a, "x").await;
    assert_eq!(count(&b).await, 1);
    let dir_c = tempfile::tempdir().unwrap();
    let (code, text) = refusal(command(dir_c.path(), client_c, peer_c).args(flags("c")));
    assert!(code == 1 && text.contains("discovery: cluster is full"), "{text}");
    // Who has data looks no more.
    registry.stop();
    assert_eq!(b.stop(), Some(0));
    let b = start(&dir_b, client_b, peer_b, &flags("b"));
    assert_eq!(count(&b).await, 1);
}
