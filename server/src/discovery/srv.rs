//! Who is there, from DNS. The members of a new cluster: each SRV record of `_etcd-server._tcp.<domain>` is one that speaks HTTP, each
//! of `_etcd-server-ssl._tcp.<domain>` one that speaks HTTPS. The record that leads to this member's own address is its
//! own; the others are numbered, since they will say their names themselves. For clients the same of `_etcd-client`.
//!
//! Source: etcd, `client/pkg/srv/srv.go` (GetCluster, GetClient), `server/embed/config.go` (GetDNSClusterNames).

use std::net::SocketAddr;

use hickory_resolver::{TokioResolver, net::NetError, proto::rr::RData};

use crate::urls::{self, Url};

#[derive(Debug, thiserror::Error)]
pub enum SrvError {
    #[error("the system's resolver cannot be used: {0}")]
    Resolver(NetError),
    #[error("error querying DNS SRV records for _{service}: {reason}")]
    Query { service: String, reason: String },
    #[error("{0}; {1}")]
    Both(Box<SrvError>, Box<SrvError>),
}

/// One SRV record.
struct Target {
    host: String,
    port: u16,
}

/// What both clients and members are reached by: with TLS and without.
type Services = [(&'static str, &'static str); 2];

const OF_MEMBERS: Services = [("https", "etcd-server-ssl"), ("http", "etcd-server")];
const OF_CLIENTS: Services = [("https", "etcd-client-ssl"), ("http", "etcd-client")];

fn system_resolver() -> Result<TokioResolver, SrvError> {
    TokioResolver::builder_tokio().and_then(|builder| builder.build()).map_err(SrvError::Resolver)
}

/// The URLs that clients are to ask, those with TLS first; `service` is the suffix of `--discovery-srv-name`, or empty.
pub async fn client_urls(domain: &str, service: &str) -> Result<Vec<String>, SrvError> {
    client_urls_from(&system_resolver()?, domain, service).await
}

async fn client_urls_from(resolver: &TokioResolver, domain: &str, service: &str) -> Result<Vec<String>, SrvError> {
    of_services(OF_CLIENTS, service, async |scheme, service| {
        let targets = targets(resolver, &name(service, domain)).await?;
        Ok(targets.iter().map(|target| target.url(scheme)).collect())
    })
    .await
}

/// What is found of both services, unless nothing is.
async fn of_services(
    services: Services,
    suffix: &str,
    look_up: impl AsyncFn(&'static str, &str) -> Result<Vec<String>, String>,
) -> Result<Vec<String>, SrvError> {
    let suffix = if suffix.is_empty() { String::new() } else { format!("-{suffix}") };
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for (scheme, service) in services {
        let service = format!("{service}{suffix}");
        match look_up(scheme, &service).await {
            Ok(of_service) => {
                tracing::info!(service, found = of_service.join(","), "found in DNS");
                found.extend(of_service);
            }
            Err(reason) => errors.push(SrvError::Query { service, reason }),
        }
    }
    match (found.is_empty(), errors.pop(), errors.pop()) {
        (true, Some(http), Some(https)) => Err(SrvError::Both(Box::new(https), Box::new(http))),
        (true, Some(error), None) => Err(error),
        _ => Ok(found),
    }
}

fn name(service: &str, domain: &str) -> String {
    format!("_{service}._tcp.{domain}.")
}

impl Target {
    fn url(&self, scheme: &str) -> String {
        let Target { host, port } = self;
        match host.contains(':') {
            true => format!("{scheme}://[{host}]:{port}"),
            false => format!("{scheme}://{host}:{port}"),
        }
    }
}

/// Members as `name=url`; `service` is the suffix of `--discovery-srv-name`, or empty.
pub async fn members(domain: &str, service: &str, name: &str, own: &[Url]) -> Result<Vec<String>, SrvError> {
    members_from(&system_resolver()?, domain, service, name, own).await
}

async fn members_from(
    resolver: &TokioResolver,
    domain: &str,
    service: &str,
    name: &str,
    own: &[Url],
) -> Result<Vec<String>, SrvError> {
    let look_up = async |scheme, service: &str| members_of_service(resolver, domain, service, scheme, name, own).await;
    of_services(OF_MEMBERS, service, look_up).await
}

async fn members_of_service(
    resolver: &TokioResolver,
    domain: &str,
    service: &str,
    scheme: &str,
    name: &str,
    own: &[Url],
) -> Result<Vec<String>, String> {
    let mut own_addresses = Vec::new();
    for url in own {
        if let urls::Target::Tcp(host, port) = url.target() {
            own_addresses.push((resolve(host, port).await?, url));
        }
    }
    let (mut members, mut numbered, mut reason) = (Vec::new(), 0, None);
    for target in targets(resolver, &self::name(service, domain)).await? {
        let address = match resolve(&target.host, target.port).await {
            Ok(address) => address,
            Err(error) => {
                reason = Some(error);
                continue;
            }
        };
        let url = target.url(scheme);
        let is_own = own_addresses.iter().find(|(own, _)| *own == address);
        let member = match is_own {
            Some((_, expected)) if expected.is_tls() != (scheme == "https") => {
                reason = Some(format!("{url} has another scheme than the expected peer {expected}"));
                continue;
            }
            Some(_) => name.to_string(),
            None => {
                numbered += 1;
                (numbered - 1).to_string()
            }
        };
        members.push(format!("{member}={url}"));
    }
    match (members.is_empty(), reason) {
        (true, Some(reason)) => Err(reason),
        _ => Ok(members),
    }
}

/// The records in the order of their priorities.
async fn targets(resolver: &TokioResolver, service: &str) -> Result<Vec<Target>, String> {
    let lookup = resolver.srv_lookup(service).await.map_err(|error| error.to_string())?;
    let mut records: Vec<_> = lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.priority, srv.target.to_utf8(), srv.port)),
            _ => None,
        })
        .collect();
    records.sort();
    let target = |(_, host, port): (u16, String, u16)| Target { host: host.trim_end_matches('.').into(), port };
    Ok(records.into_iter().map(target).collect())
}

/// As Go's `net.ResolveTCPAddr`: one address, of IPv4 where there is one.
async fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(|address| address.is_ipv6());
    found.into_iter().next().ok_or_else(|| format!("{host}: it has no address"))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig, ResolverConfig},
        net::runtime::TokioRuntimeProvider,
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// Answers SRV questions, over UDP: for each name its records' ports; all lead to `localhost`.
    async fn serve(records: HashMap<&'static str, Vec<u16>>) -> TokioResolver {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut question).await {
                let answer = answer(&question[..len], &records);
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        let config = ResolverConfig::from_name_servers(vec![server]);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap()
    }

    /// RFC 1035, section 4, and RFC 2782.
    fn answer(question: &[u8], records: &HashMap<&'static str, Vec<u16>>) -> Vec<u8> {
        let (mut at, mut labels) = (12, Vec::new());
        while question[at] != 0 {
            let len = question[at] as usize;
            labels.push(String::from_utf8(question[at + 1..=at + len].to_vec()).unwrap());
            at += len + 1;
        }
        let end_of_question = at + 5;
        let name = labels.join(".").to_lowercase();
        let ports = records.get(name.as_str()).cloned().unwrap_or_default();
        let mut answer = question[..2].to_vec();
        // An answer, with authority; without records the name does not exist.
        answer.extend([0x85, if ports.is_empty() { 0x83 } else { 0x80 }, 0, 1, 0, ports.len() as u8, 0, 0, 0, 0]);
        answer.extend(&question[12..end_of_question]);
        for port in ports {
            // The name as in the question, SRV, IN, a minute; priority and weight 0, the port, the target.
            answer.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60, 0, 17, 0, 0, 0, 0]);
            answer.extend(port.to_be_bytes());
            answer.extend(b"\x09localhost\0");
        }
        answer
    }

    #[tokio::test]
    async fn a_domain_names_the_members() {
        let resolver = serve(HashMap::from([
            ("_etcd-server._tcp.example.org", vec![2001, 2002, 2003]),
            ("_etcd-server-blue._tcp.example.org", vec![3001]),
        ]))
        .await;
        let own = urls::Url::parse_list("http://127.0.0.1:2002").unwrap();
        let found = members_from(&resolver, "example.org", "", "me", &own).await.unwrap();
        assert_eq!(found, ["0=http://localhost:2001", "me=http://localhost:2002", "1=http://localhost:2003"]);
        let found = members_from(&resolver, "example.org", "blue", "me", &own).await.unwrap();
        assert_eq!(found, ["0=http://localhost:3001"]);
        let none = members_from(&resolver, "example.net", "", "me", &own).await.unwrap_err().to_string();
        assert!(none.contains("_etcd-server-ssl: ") && none.contains("_etcd-server: "), "{none}");
    }

    #[tokio::test]
    async fn a_domain_names_whom_clients_ask() {
        let resolver = serve(HashMap::from([
            ("_etcd-client._tcp.example.org", vec![2001, 2002]),
            ("_etcd-client-ssl._tcp.example.org", vec![2003]),
            ("_etcd-client-blue._tcp.example.org", vec![3001]),
        ]))
        .await;
        let found = client_urls_from(&resolver, "example.org", "").await.unwrap();
        assert_eq!(found, ["https://localhost:2003", "http://localhost:2001", "http://localhost:2002"]);
        assert_eq!(client_urls_from(&resolver, "example.org", "blue").await.unwrap(), ["http://localhost:3001"]);
        let none = client_urls_from(&resolver, "example.net", "").await.unwrap_err().to_string();
        assert!(none.contains("_etcd-client-ssl: ") && none.contains("_etcd-client: "), "{none}");
    }
}
