//! What a run can do without, for a server that does not have it.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Area {
    /// Users and roles
    Auth,
    /// Alarms, raised and taken back by hand
    Alarms,
    /// Learners that come and go, and leadership that moves
    Members,
    /// Defragmentation, snapshots and downgrades
    Maintenance,
    /// Elections and locks
    Elections,
    /// The JSON gateway
    Gateway,
    /// Requests and answers of megabytes
    Sizes,
}

impl Area {
    /// Which area has requests of this kind, if any has.
    pub fn of_kind(kind: &str) -> Option<Area> {
        match kind {
            "Alarm" => Some(Area::Alarms),
            "MemberAdd" | "MemberRemove" | "MemberUpdate" | "MemberPromote" | "MoveLeader" => Some(Area::Members),
            "Defragment" | "Downgrade" | "Snapshot" => Some(Area::Maintenance),
            "Campaign" | "Proclaim" | "Leader" | "Observe" | "Resign" | "Lock" | "Unlock" => Some(Area::Elections),
            // Sent alone, besides the watches that are followed, only to see who may watch.
            "Watch" => Some(Area::Auth),
            _ if ["Auth", "User", "Role"].iter().any(|service| kind.starts_with(service)) => Some(Area::Auth),
            _ => None,
        }
    }
}
