//! One of the two servers: its process, its connections, and the values only it knows (its own ids and URLs).

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::etcdserverpb as pb;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::{
    json::{self, Form},
    normal::Normalise as _,
    request::{Answer, Call, Caller, Clients, Door, Failure, Reply, Request},
    version::Version,
};
use crate::process::{Node, Target, channel};

/// Longer than a server takes to give up on its own.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long a call may take to leave the key with which it waits.
const KEYS_LIMIT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

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
    added_member: Mutex<u64>,
    tokens: Mutex<HashMap<String, String>>,
}

/// Like a token, and of nobody.
const FORGED_TOKEN: &str = "abcdefghijklmnop.7";

impl Peer {
    pub async fn start(binary: &Path, dir: &Path, flags: &[String]) -> Result<Peer> {
        let target = Target::new(binary)?;
        let mut node = Node::single(&target, dir, flags)?;
        node.start().await.with_context(|| node.log_tail())?;
        let clients = Clients::new(channel(&node.endpoint()));

        let members = clients.call(Request::MemberList(pb::MemberListRequest { linearizable: true }), None).await;
        let Ok(Reply::MemberList(members)) = members else { return Err(anyhow!("MemberList answered {members:?}")) };
        let member = members.members.first().context("a cluster without members")?;
        let status = clients.call(Request::Status(pb::StatusRequest {}), None).await;
        let Ok(Reply::Status(status)) = status else { return Err(anyhow!("Status answered {status:?}")) };

        Ok(Peer {
            version: status.version.parse()?,
            watch_channel: channel(&node.endpoint()),
            clients,
            own_member: member.id,
            own_url: member.peer_ur_ls.first().context("a member without a peer URL")?.clone(),
            added_member: Mutex::new(0),
            tokens: Mutex::default(),
            node,
        })
    }

    /// Sends a request with this peer's own values in it; the answer is normalised. The form is that of the gateway's
    /// answer.
    pub async fn call(&self, call: Call) -> (Answer, Option<Form>) {
        let Call { mut request, caller, door } = call;
        self.fill_in(&mut request);
        let token = self.token(caller);
        let sent = request.clone();
        let answered = async {
            match door {
                Door::Grpc => (self.clients.call(request, token.as_deref()).await, None),
                Door::Json => match json::call(&self.address(), &request, token.as_deref()).await {
                    Ok((answer, form)) => (answer, Some(form)),
                    Err(error) => (Err(Failure::of_gateway(&error)), None),
                },
            }
        };
        let Ok((mut answer, form)) = timeout(ANSWER_LIMIT, answered).await else {
            return (Err(Failure::unanswered(ANSWER_LIMIT)), None);
        };
        if let Ok(reply) = &mut answer {
            self.learn(&sent, reply);
            reply.normalise();
        }
        (answer, form)
    }

    /// Remembers what only this peer says and later requests need.
    fn learn(&self, request: &Request, reply: &Reply) {
        match (request, reply) {
            (Request::MemberAdd(_), Reply::MemberAdd(pb::MemberAddResponse { member: Some(member), .. })) => {
                *self.added_member.lock() = member.id;
            }
            (Request::Authenticate(request), Reply::Authenticate(response)) => {
                self.tokens.lock().insert(request.name.clone(), response.token.clone());
            }
            _ => {}
        }
    }

    fn token(&self, caller: Caller) -> Option<String> {
        match caller {
            Caller::Nobody => None,
            Caller::User(name) => self.tokens.lock().get(name).cloned(),
            Caller::Forger => Some(FORGED_TOKEN.to_owned()),
        }
    }

    /// Waits until so many keys begin with a prefix.
    pub async fn await_keys(&self, prefix: &Bytes, keys: i64) -> Result<()> {
        let mut range_end = prefix.to_vec();
        *range_end.last_mut().context("no prefix")? += 1;
        let range = pb::RangeRequest {
            key: prefix.clone(),
            range_end: range_end.into(),
            count_only: true,
            ..Default::default()
        };
        let enough = async {
            loop {
                match self.clients.call(Request::Range(range.clone()), None).await {
                    Ok(Reply::Range(found)) if found.count >= keys => return Ok(()),
                    Ok(_) => sleep(POLL_INTERVAL).await,
                    Err(failure) => return Err(anyhow!("while keys were awaited: {failure:?}")),
                }
            }
        };
        timeout(KEYS_LIMIT, enough).await.map_err(|_| anyhow!("there are not {keys} keys below {prefix:?}"))?
    }

    fn address(&self) -> String {
        self.node.endpoint().trim_start_matches("http://").to_owned()
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
            ADDED_MEMBER => *self.added_member.lock(),
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
