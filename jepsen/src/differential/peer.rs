//! One of the two servers: its process, its connections, and the values only it knows (its own ids and URLs).

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use proto::etcdserverpb as pb;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{
    normal::Normalise as _,
    request::{Answer, Clients, Failure, Reply, Request},
    version::Version,
};
use crate::process::{Node, Target, channel};

/// Longer than a server takes to give up on its own.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Stands for the member's own id in a request, for each peer puts its own there.
pub const OWN_MEMBER: u64 = u64::MAX - 1;
/// Stands for the id of the member that was added last.
pub const ADDED_MEMBER: u64 = u64::MAX - 2;
/// Stands for the member's own peer URL.
pub const OWN_URL: &str = "own peer URL";

pub struct Peer {
    pub version: Version,
    node: Node,
    clients: Clients,
    /// Watches have a connection of their own: events that wait to be read must not hold up unary answers.
    watch_channel: Channel,
    own_member: u64,
    own_url: String,
    added_member: u64,
}

impl Peer {
    pub async fn start(binary: &Path, dir: &Path, flags: &[String]) -> Result<Peer> {
        let target = Target::new(binary)?;
        let mut node = Node::single(&target, dir, flags)?;
        node.start().await.with_context(|| node.log_tail())?;
        let clients = Clients::new(channel(&node.endpoint()));

        let members = clients.call(Request::MemberList(pb::MemberListRequest { linearizable: true })).await;
        let Ok(Reply::MemberList(members)) = members else { return Err(anyhow!("MemberList answered {members:?}")) };
        let member = members.members.first().context("a cluster without members")?;
        let status = clients.call(Request::Status(pb::StatusRequest {})).await;
        let Ok(Reply::Status(status)) = status else { return Err(anyhow!("Status answered {status:?}")) };

        Ok(Peer {
            version: status.version.parse()?,
            watch_channel: channel(&node.endpoint()),
            clients,
            own_member: member.id,
            own_url: member.peer_ur_ls.first().context("a member without a peer URL")?.clone(),
            added_member: 0,
            node,
        })
    }

    /// Sends a request with this peer's own values in it; the answer is normalised.
    pub async fn call(&self, mut request: Request) -> Answer {
        self.fill_in(&mut request);
        let mut answer = self.answer(request).await;
        if let Ok(reply) = &mut answer {
            reply.normalise();
        }
        answer
    }

    async fn answer(&self, request: Request) -> Answer {
        let Ok(answer) = timeout(ANSWER_LIMIT, self.clients.call(request)).await else {
            return Err(Failure::unanswered(ANSWER_LIMIT));
        };
        answer
    }

    /// Adds a member and remembers the id it got, for [`ADDED_MEMBER`].
    pub async fn add_member(&mut self, mut request: Request) -> Answer {
        self.fill_in(&mut request);
        let mut answer = self.answer(request).await;
        if let Ok(Reply::MemberAdd(pb::MemberAddResponse { member: Some(member), .. })) = &answer {
            self.added_member = member.id;
        }
        if let Ok(reply) = &mut answer {
            reply.normalise();
        }
        answer
    }

    pub fn watch_client(&self) -> pb::watch_client::WatchClient<Channel> {
        pb::watch_client::WatchClient::new(self.watch_channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub fn log_tail(&self) -> String {
        self.node.log_tail()
    }

    fn fill_in(&self, request: &mut Request) {
        let id = match request {
            Request::MemberRemove(request) => &mut request.id,
            Request::MemberUpdate(request) => &mut request.id,
            Request::MemberPromote(request) => &mut request.id,
            Request::MoveLeader(request) => &mut request.target_id,
            Request::MemberAdd(request) => {
                request.peer_ur_ls.iter_mut().for_each(|url| self.fill_in_url(url));
                return;
            }
            _ => return,
        };
        *id = match *id {
            OWN_MEMBER => self.own_member,
            ADDED_MEMBER => self.added_member,
            other => other,
        };
        if let Request::MemberUpdate(request) = request {
            request.peer_ur_ls.iter_mut().for_each(|url| self.fill_in_url(url));
        }
    }

    fn fill_in_url(&self, url: &mut String) {
        if url == OWN_URL {
            url.clone_from(&self.own_url);
        }
    }
}
