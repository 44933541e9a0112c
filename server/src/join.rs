//! Joining a cluster that runs: the members are asked for the list of members, which has to agree with the flags and
//! says who this member is. Source: etcd, `server/etcdserver/bootstrap.go` (bootstrapExistingClusterNoWAL),
//! `cluster_util.go`, `api/membership/cluster.go` (ValidateClusterAndAssignIDs).

use std::{fmt, time::Duration};

use proto::{ClusterId, MemberId};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    identity::Identity,
    peer_http::PeerHttp,
    urls::{self, Url},
};

pub const CLUSTER_HEADER: &str = "x-etcd-cluster-id";
/// For one member's answer, as in etcd.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A member as `/members` lists it: etcd's fields in etcd's order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PeerMember {
    pub id: u64,
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty")]
    pub client_urls: Vec<String>,
}

impl From<raft::Member> for PeerMember {
    fn from(member: raft::Member) -> PeerMember {
        PeerMember {
            id: member.id.0,
            peer_urls: member.peer_urls,
            is_learner: member.is_learner,
            name: member.name,
            client_urls: member.client_urls,
        }
    }
}

impl From<proto::etcdserverpb::Member> for PeerMember {
    fn from(member: proto::etcdserverpb::Member) -> PeerMember {
        PeerMember {
            id: member.id,
            peer_urls: member.peer_ur_ls,
            is_learner: member.is_learner,
            name: member.name,
            client_urls: member.client_ur_ls,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs; \
         --initial-cluster must hold at least one member that runs"
    )]
    NoAnswer,
    #[error("cannot fetch cluster info from peer urls: failed to get raft cluster member(s) from the given URLs")]
    NoMembers,
    #[error(
        "error validating peerURLs {cluster}: member count is unequal: the cluster has {found} members, --initial-cluster {given}; give all, and this one, which MemberAdd has to have added before"
    )]
    Count { cluster: Cluster, found: usize, given: usize },
    #[error(
        "error validating peerURLs {cluster}: PeerURLs: no match found for existing member ({id}, {urls:?}): --initial-cluster must hold it with these URLs"
    )]
    NoMatch { cluster: Cluster, id: MemberId, urls: Vec<String> },
    #[error(
        "member {0} has already been bootstrapped: it was part of the cluster with another data directory; remove it and add a new one"
    )]
    Bootstrapped(MemberId),
    #[error(
        "incompatible with current running cluster: its members run etcd, not Pintle, and the two do not form a cluster together"
    )]
    Etcd,
    #[error("membership: too many learner members in cluster: --max-learners={0}")]
    TooManyLearners(usize),
}

/// The cluster as its members describe it.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub id: ClusterId,
    pub members: Vec<PeerMember>,
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ClusterID:{} Members:[", self.id)?;
        for (i, member) in self.members.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{} at {}", MemberId(member.id), member.peer_urls.join(","))?;
        }
        f.write_str("]}")
    }
}

/// Who this member is, and the members of the cluster it joins.
pub struct Joined {
    pub identity: Identity,
    pub members: Vec<raft::Member>,
}

pub async fn join(config: &Config, http: &PeerHttp) -> Result<Joined, JoinError> {
    let others = config.cluster.members.iter().filter(|(name, _)| **name != config.name);
    let mut remotes: Vec<&Url> = others.flat_map(|(_, urls)| urls).collect();
    remotes.sort();
    let mut refusal = None;
    for url in remotes {
        let cluster = match ask(http, url).await {
            Ok(cluster) => cluster,
            Err(reason) => {
                tracing::warn!(%url, reason, "failed to get cluster response");
                continue;
            }
        };
        match find_self(config, &cluster) {
            Ok(own) if runs_pintle(http, url).await => {
                let identity = Identity { member: own, cluster: cluster.id, name: config.name.clone(), has_log: false };
                return Ok(Joined { identity, members: cluster.members.into_iter().map(member).collect() });
            }
            Ok(_) => return Err(JoinError::Etcd),
            // One that lags does not know yet that this member was added: the next may.
            Err(error @ (JoinError::Count { .. } | JoinError::NoMatch { .. })) => {
                tracing::warn!(%url, %error, "a member's list of members does not agree with the flags");
                refusal.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(refusal.unwrap_or(JoinError::NoAnswer))
}

async fn ask(http: &PeerHttp, url: &Url) -> Result<Cluster, String> {
    let answer = http.get(url.as_str(), "/members", ANSWER_WITHIN).await.map_err(|error| error.to_string())?;
    let members = answer.json()?;
    let id = answer.headers.get(CLUSTER_HEADER).and_then(|id| u64::from_str_radix(id.to_str().ok()?, 16).ok());
    Ok(Cluster { id: ClusterId(id.ok_or("the answer names no cluster")?), members })
}

async fn runs_pintle(http: &PeerHttp, url: &Url) -> bool {
    let Ok(answer) = http.get(url.as_str(), "/version", ANSWER_WITHIN).await else { return false };
    answer.json::<serde_json::Value>().is_ok_and(|version| version.get("pintle").is_some())
}

/// Each member of the cluster is in the flags with its URLs; gives the id of the one that the flags say is this.
fn find_self(config: &Config, cluster: &Cluster) -> Result<MemberId, JoinError> {
    let (found, given) = (cluster.members.len(), config.cluster.members.len());
    if found == 0 {
        return Err(JoinError::NoMembers);
    }
    if found != given {
        return Err(JoinError::Count { cluster: cluster.clone(), found, given });
    }
    let mut own = None;
    for member in &cluster.members {
        let urls = parse(&member.peer_urls);
        let named = config.cluster.members.iter().find(|(_, given)| urls::are_same(&urls, given));
        let Some((name, _)) = named else {
            let (id, urls) = (MemberId(member.id), member.peer_urls.clone());
            return Err(JoinError::NoMatch { cluster: cluster.clone(), id, urls });
        };
        if *name == config.name {
            own = Some(member);
        }
    }
    let learners = cluster.members.iter().filter(|member| member.is_learner).count();
    if learners > config.change_policy.learners_max {
        return Err(JoinError::TooManyLearners(config.change_policy.learners_max));
    }
    // As many as there are, and each is one of them: this one, too.
    let own = own.expect("the flags hold this member");
    match own.client_urls.is_empty() {
        true => Ok(MemberId(own.id)),
        false => Err(JoinError::Bootstrapped(MemberId(own.id))),
    }
}

/// Sorted; none where one is no URL.
fn parse(urls: &[String]) -> Vec<Url> {
    let mut urls = urls.iter().map(|url| Url::parse(url)).collect::<Result<Vec<_>, _>>().unwrap_or_default();
    urls.sort();
    urls
}

fn member(member: PeerMember) -> raft::Member {
    raft::Member {
        id: MemberId(member.id),
        name: member.name,
        peer_urls: member.peer_urls,
        client_urls: member.client_urls,
        is_learner: member.is_learner,
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;
    use crate::{flags::Flags, tls::Dialer};

    fn config(cluster: &str) -> Config {
        let flags = ["--name=b", &format!("--initial-cluster={cluster}"), "--initial-cluster-state=existing"];
        Config::from_flags(&Flags::read(flags.map(str::to_string), []).unwrap()).unwrap()
    }

    fn cluster(members: &[(u64, &str, &str)]) -> Cluster {
        let member = |(id, url, client): &(u64, &str, &str)| PeerMember {
            id: *id,
            peer_urls: vec![url.to_string()],
            client_urls: [client].iter().filter(|url| !url.is_empty()).map(|url| url.to_string()).collect(),
            ..PeerMember::default()
        };
        Cluster { id: ClusterId(7), members: members.iter().map(member).collect() }
    }

    #[test]
    fn the_list_of_members_says_who_this_one_is() {
        let config = config("a=http://127.0.0.1:1,b=http://127.0.0.1:2");
        let found = cluster(&[(5, "http://127.0.0.1:1", "http://c"), (6, "http://127.0.0.1:2", "")]);
        assert_eq!(find_self(&config, &found).unwrap(), MemberId(6));
    }

    #[test]
    fn flags_and_list_have_to_agree() {
        let config = config("a=http://127.0.0.1:1,b=http://127.0.0.1:2");
        let refusal = |members: &[(u64, &str, &str)]| find_self(&config, &cluster(members)).unwrap_err().to_string();
        let a = (5, "http://127.0.0.1:1", "http://c");
        assert!(refusal(&[]).contains("failed to get raft cluster member(s)"));
        assert!(refusal(&[a]).contains("member count is unequal"));
        assert!(refusal(&[a, (6, "http://127.0.0.1:3", "")]).contains("no match found for existing member (6"));
        assert!(refusal(&[a, (6, "http://127.0.0.1:2", "http://d")]).contains("has already been bootstrapped"));
    }

    /// Answers as a member that knows of these members.
    async fn serve(listener: tokio::net::TcpListener, cluster: Cluster) {
        let members =
            move || async move { ([(CLUSTER_HEADER, cluster.id.to_string())], axum::Json(cluster.members.clone())) };
        let version = || async { axum::Json(serde_json::json!({ "pintle": "0" })) };
        let routes = axum::Router::new().route("/members", get(members)).route("/version", get(version));
        axum::serve(listener, routes).await.unwrap();
    }

    #[tokio::test]
    async fn a_member_that_lags_keeps_nobody_out() {
        let listeners = [bind().await, bind().await];
        let [a, c] = listeners.each_ref().map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        let config = config(&format!("a={a},b=http://127.0.0.1:2,c={c}"));
        let before = cluster(&[(5, &a, "http://c"), (7, &c, "http://c")]);
        let after = cluster(&[(5, &a, "http://c"), (6, "http://127.0.0.1:2", ""), (7, &c, "http://c")]);
        // They are asked in the order of their URLs.
        let [lags, knows] = if a < c { listeners } else { swap(listeners) };
        let http = PeerHttp::new(std::sync::Arc::new(Dialer::plain()));
        tokio::spawn(serve(lags, before));
        tokio::spawn(serve(knows, after));
        assert_eq!(join(&config, &http).await.unwrap().identity.member, MemberId(6));
    }

    fn swap<T>([a, b]: [T; 2]) -> [T; 2] {
        [b, a]
    }

    async fn bind() -> tokio::net::TcpListener {
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    #[test]
    fn a_member_is_listed_with_etcds_names() {
        let member = PeerMember {
            id: 7,
            peer_urls: vec!["http://a:1".into()],
            is_learner: false,
            name: "a".into(),
            client_urls: vec!["http://a:2".into()],
        };
        let text = serde_json::to_string(&member).unwrap();
        assert_eq!(text, r#"{"id":7,"peerURLs":["http://a:1"],"name":"a","clientURLs":["http://a:2"]}"#);
    }
}
