//! Members, alarms, who leads, downgrades.

use client::{
    MemberId,
    pb::{
        AlarmResponse, DowngradeResponse, Member, MemberAddResponse, MemberListResponse, MemberPromoteResponse,
        MemberRemoveResponse, MemberUpdateResponse, MoveLeaderResponse, ResponseHeader,
    },
};
use prost::Message;

use super::{
    Answer, Style,
    fields::Fields,
    json::{Object, text},
    table::Table,
};

fn urls(urls: &[String]) -> impl Iterator<Item = String> {
    urls.iter().map(|url| text(url))
}

fn member_json(member: &Member) -> String {
    Object::new()
        .number("ID", member.id)
        .text("name", &member.name)
        .list("peerURLs", urls(&member.peer_ur_ls))
        .list("clientURLs", urls(&member.client_ur_ls))
        .flag("isLearner", member.is_learner)
        .end()
}

/// etcdctl's spelling of the last name is its own here.
fn member_hex_json(member: &Member) -> String {
    Object::new()
        .field("ID", text(&MemberId(member.id).to_string()))
        .text("name", &member.name)
        .list("peerURLs", urls(&member.peer_ur_ls))
        .list("clientURLS", urls(&member.client_ur_ls))
        .end()
}

fn header_hex_json(header: &ResponseHeader) -> String {
    Object::new()
        .field("cluster_id", text(&format!("{:x}", header.cluster_id)))
        .field("member_id", text(&MemberId(header.member_id).to_string()))
        .number("revision", header.revision)
        .number("raft_term", header.raft_term)
        .end()
}

fn row(member: &Member) -> Vec<String> {
    // A member that never started has no name yet.
    let state = if member.name.is_empty() { "unstarted" } else { "started" };
    vec![
        MemberId(member.id).to_string(),
        state.to_string(),
        member.name.clone(),
        member.peer_ur_ls.join(","),
        member.client_ur_ls.join(","),
        member.is_learner.to_string(),
    ]
}

impl Answer for MemberListResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        self.members.iter().map(|member| row(member).join(", ") + "\n").collect::<String>().into_bytes()
    }

    fn json(&self, style: Style) -> String {
        match style.hex {
            true => Object::new()
                .field("header", header_hex_json(&self.header.unwrap_or_default()))
                .field("members", super::json::list(self.members.iter().map(member_hex_json)))
                .end(),
            false => Object::new().header(&self.header).list("members", self.members.iter().map(member_json)).end(),
        }
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.members.iter().fold(Fields::of(&self.header), |fields, member| {
            let fields = fields.show("ID", member.id).quoted("Name", &member.name);
            let fields = member.peer_ur_ls.iter().fold(fields, |fields, url| fields.quoted("PeerURL", url));
            let fields = member.client_ur_ls.iter().fold(fields, |fields, url| fields.quoted("ClientURL", url));
            fields.show("IsLearner", member.is_learner).blank()
        }))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn table(&self) -> Option<Table> {
        let headings = ["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"];
        Some(Table::new(&headings, self.members.iter().map(row).collect()))
    }
}

impl Answer for MemberAddResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        changed(self.member.as_ref().map_or(0, |member| member.id), "added to", &self.header)
    }

    fn json(&self, _: Style) -> String {
        Object::new()
            .header(&self.header)
            .optional("member", self.member.as_ref().map(member_json))
            .list("members", self.members.iter().map(member_json))
            .end()
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

fn changed(member: u64, how: &str, header: &Option<ResponseHeader>) -> Vec<u8> {
    let cluster = header.unwrap_or_default().cluster_id;
    format!("Member {member:16x} {how} cluster {cluster:16x}\n").into_bytes()
}

/// An answer that does not repeat which member it is about.
pub struct About<'a, M> {
    pub member: MemberId,
    pub answer: &'a M,
}

macro_rules! about {
    ($($answer:ty => $how:literal),* $(,)?) => {$(
        impl Answer for About<'_, $answer> {
            fn simple(&self, _: Style) -> Vec<u8> {
                changed(self.member.0, $how, &self.answer.header)
            }

            fn json(&self, _: Style) -> String {
                let members = self.answer.members.iter().map(member_json);
                Object::new().header(&self.answer.header).list("members", members).end()
            }

            fn protobuf(&self) -> Option<Vec<u8>> {
                Some(self.answer.encode_to_vec())
            }
        }
    )*};
}

about!(
    MemberRemoveResponse => "removed from",
    MemberUpdateResponse => "updated in",
    MemberPromoteResponse => "promoted in",
);

impl Answer for AlarmResponse {
    fn simple(&self, _: Style) -> Vec<u8> {
        let line = |alarm: &client::pb::AlarmMember| {
            format!("memberID:{} alarm:{} \n", alarm.member_id, alarm.alarm().as_str_name())
        };
        self.alarms.iter().map(line).collect::<String>().into_bytes()
    }

    fn json(&self, _: Style) -> String {
        let alarms = self
            .alarms
            .iter()
            .map(|alarm| Object::new().number("memberID", alarm.member_id).number("alarm", alarm.alarm).end());
        Object::new().header(&self.header).list("alarms", alarms).end()
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.alarms.iter().fold(Fields::of(&self.header), |fields, alarm| {
            fields.show("MemberID", alarm.member_id).show("AlarmType", alarm.alarm().as_str_name()).blank()
        }))
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }
}

pub struct LeaderMoved {
    pub from: MemberId,
    pub to: MemberId,
    pub answer: MoveLeaderResponse,
}

impl Answer for LeaderMoved {
    fn simple(&self, _: Style) -> Vec<u8> {
        format!("Leadership transferred from {} to {}\n", self.from, self.to).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        Object::new().header(&self.answer.header).end()
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}

pub struct Downgraded {
    /// What was asked for: validate, enable, cancel.
    pub action: &'static str,
    pub answer: DowngradeResponse,
}

impl Answer for Downgraded {
    fn simple(&self, _: Style) -> Vec<u8> {
        format!("Downgrade {} success, cluster version {}\n", self.action, self.answer.version).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        Object::new().header(&self.answer.header).text("version", &self.answer.version).end()
    }

    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.answer.encode_to_vec())
    }
}
