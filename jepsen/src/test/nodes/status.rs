//! What members say of themselves.

use proto::{
    EtcdError,
    etcdserverpb::{StatusRequest, StatusResponse, maintenance_client::MaintenanceClient},
};
use tonic::{Status, transport::Channel};

use crate::root::as_root;

/// A member's status. While a workload has authentication enabled, only users may ask; a token needs a leader, so that
/// it is first tried without.
pub async fn ask(channel: Channel) -> Result<StatusResponse, Status> {
    let answer = match MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await {
        Err(refused) if refused.message() == EtcdError::UserEmpty.message() => {
            MaintenanceClient::new(as_root(channel).await?).status(StatusRequest {}).await
        }
        answer => answer,
    };
    Ok(answer?.into_inner())
}

/// The one that leads the latest term.
pub fn leading(statuses: &[Option<StatusResponse>]) -> Option<usize> {
    let leads = |status: &StatusResponse| {
        status.leader != 0 && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
    };
    let terms = statuses.iter().enumerate().filter_map(|(node, status)| {
        let status = status.as_ref().filter(|status| leads(status))?;
        Some((status.raft_term, node))
    });
    terms.max().map(|(_, node)| node)
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::ResponseHeader;

    use super::*;

    fn status(member_id: u64, leader: u64, raft_term: u64) -> Option<StatusResponse> {
        let header = Some(ResponseHeader { member_id, ..ResponseHeader::default() });
        Some(StatusResponse { header, leader, raft_term, ..StatusResponse::default() })
    }

    #[test]
    fn of_two_that_lead_the_later_term_counts() {
        assert_eq!(leading(&[status(1, 1, 4), status(2, 2, 5), None]), Some(1));
    }

    #[test]
    fn a_follower_does_not_lead() {
        assert_eq!(leading(&[None, status(2, 1, 5), status(3, 0, 6)]), None);
    }
}
