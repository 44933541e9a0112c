//! Leadership that moves, and the cluster's version, by what etcd answers and shows.

mod member;

use member::{Member, Places, get};
use proto::{
    EtcdError,
    etcdserverpb::{
        DowngradeInfo, DowngradeRequest, DowngradeResponse, MoveLeaderRequest, StatusRequest, StatusResponse,
        downgrade_request::DowngradeAction, maintenance_client::MaintenanceClient,
    },
};
use tonic::{Status, transport::Channel};

async fn maintenance(member: &Member) -> MaintenanceClient<Channel> {
    MaintenanceClient::new(Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap())
}

async fn status(member: &Member) -> StatusResponse {
    maintenance(member).await.status(StatusRequest {}).await.unwrap().into_inner()
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, error: EtcdError) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (error.code(), error.message()));
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_where_it_is_asked_to() {
    let places = Places::new();
    let members = places.start_all(&[]);
    let leader_id = status(&members[0]).await.leader;
    let mut ids = Vec::new();
    for member in &members {
        ids.push(status(member).await.header.unwrap().member_id);
    }
    let leader = ids.iter().position(|id| *id == leader_id).unwrap();
    let follower = (leader + 1) % 3;
    let ask = async |member: usize, target_id| {
        maintenance(&members[member]).await.move_leader(MoveLeaderRequest { target_id }).await
    };
    assert_refused(ask(follower, ids[leader]).await, EtcdError::NotLeader);
    assert_refused(ask(leader, 7).await, EtcdError::BadLeaderTransferee);
    ask(leader, ids[leader]).await.unwrap();
    ask(leader, ids[follower]).await.unwrap();
    assert_eq!(status(&members[leader]).await.leader, ids[follower]);
    ask(follower, ids[leader]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_agree_on_a_version() {
    let places = Places::new();
    let members = places.start_all(&[]);
    // The first leader may have decided before it could ask the others: then it asks again.
    let version = async {
        loop {
            let (_, version) = members[0].get("/version");
            if version.contains(r#""etcdcluster":"3.7.0""#) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), version).await.unwrap();
    assert_eq!(status(&members[0]).await.storage_version, "3.7.0");
}

async fn downgrade(member: &Member, action: DowngradeAction, version: &str) -> Result<String, Status> {
    let request = DowngradeRequest { action: action as i32, version: version.into() };
    let answer = maintenance(member).await.downgrade(request).await?;
    let DowngradeResponse { header, version } = answer.into_inner();
    assert!(header.unwrap().revision > 0);
    Ok(version)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downgrade_lowers_the_version_until_it_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--downgrade-check-time=100ms"]);
    member.wait_for_log("cluster version is updated");
    use DowngradeAction::{Cancel, Enable, Validate};
    assert_eq!(downgrade(&member, Validate, "3.6").await.unwrap(), "3.7");
    assert_refused(downgrade(&member, Validate, "3.5").await, EtcdError::InvalidDowngradeTargetVersion);
    assert_refused(downgrade(&member, Validate, "three").await, EtcdError::WrongDowngradeVersionFormat);
    assert_refused(downgrade(&member, Enable, "3.7.0").await, EtcdError::InvalidDowngradeTargetVersion);
    assert_eq!(downgrade(&member, Cancel, "").await.unwrap(), "3.7", "nothing to cancel is no error");
    assert_eq!(get(member.peer, "/downgrade/enabled"), (200, "false".into()));

    downgrade(&member, Enable, "3.6.0").await.unwrap();
    let info = DowngradeInfo { enabled: true, target_version: "3.6.0".into() };
    assert_eq!(status(&member).await.downgrade_info, Some(info.clone()));
    assert_eq!(get(member.peer, "/downgrade/enabled"), (200, "true".into()));
    member.wait_for_log("The server is ready to downgrade");
    assert_refused(downgrade(&member, Validate, "3.5").await, EtcdError::DowngradeInProcess);
    let (_, version) = member.get("/version");
    assert!(version.contains(r#""etcdserver":"3.7.1","etcdcluster":"3.6.0","storage":"3.6.0""#), "{version}");

    // Both outlive the process.
    let (client, peer) = (member.client, member.peer);
    assert_eq!(member.stop(), Some(0));
    let member = Member::start_on(dir.path(), client, peer, &[]);
    let now = status(&member).await;
    assert_eq!((now.downgrade_info, now.storage_version.as_str()), (Some(info), "3.6.0"));
    assert_eq!(downgrade(&member, Cancel, "").await.unwrap(), "3.6");
    assert_eq!(status(&member).await.downgrade_info, Some(DowngradeInfo::default()));
    member.wait_for_log("cluster version is updated");
    assert!(member.get("/version").1.contains(r#""etcdcluster":"3.7.0""#));
}
