//! What several endpoints have answered.

use std::time::Duration;

use client::{
    Error, MemberId,
    pb::{HashKvResponse, StatusResponse},
};

use super::{
    Answer, Style,
    fields::Fields,
    go,
    json::{Object, list, text},
    table::Table,
};

/// Whether one endpoint is healthy.
pub struct Health {
    pub endpoint: String,
    /// Nothing when there was not even a connection.
    pub took: Option<Duration>,
    pub error: Option<String>,
    /// Behind the error, if it is not an alarm.
    pub cause: Option<Error>,
}

impl Health {
    fn took(&self) -> String {
        self.took.map_or_else(String::new, go::duration)
    }

    fn error(&self) -> &str {
        self.error.as_deref().unwrap_or_default()
    }
}

pub struct Healths(pub Vec<Health>);

impl Answer for Healths {
    /// The healthy ones. Of the others, [`Healths::complaints`] speaks.
    fn simple(&self, _: Style) -> Vec<u8> {
        let healthy = self.0.iter().filter(|health| health.error.is_none());
        let line = |health: &Health| {
            let (endpoint, took) = (&health.endpoint, health.took());
            format!("{endpoint} is healthy: successfully committed proposal: took = {took}\n")
        };
        healthy.map(line).collect::<String>().into_bytes()
    }

    fn json(&self, _: Style) -> String {
        list(self.0.iter().map(|health| {
            Object::new()
                .field("endpoint", text(&health.endpoint))
                .field("health", health.error.is_none().to_string())
                .field("took", text(&health.took()))
                .text("error", health.error())
                .end()
        }))
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.0.iter().fold(Fields::default(), |fields, health| {
            fields
                .quoted("Endpoint", &health.endpoint)
                .show("Health", health.error.is_none())
                .show("Took", health.took())
                .show("Error", health.error())
                .blank()
        }))
    }

    fn table(&self) -> Option<Table> {
        let row = |health: &Health| {
            vec![health.endpoint.clone(), health.error.is_none().to_string(), health.took(), health.error().to_string()]
        };
        Some(Table::new(&["endpoint", "health", "took", "error"], self.0.iter().map(row).collect()))
    }
}

impl Healths {
    /// What is printed on standard error in the simple format.
    pub fn complaints(&self) -> impl Iterator<Item = String> {
        let unhealthy = self.0.iter().filter_map(|health| Some((&health.endpoint, health.error.as_ref()?)));
        unhealthy.map(|(endpoint, error)| format!("{endpoint} is unhealthy: failed to commit proposal: {error}"))
    }
}

pub struct Statuses(pub Vec<(String, StatusResponse)>);

impl Statuses {
    fn rows(&self) -> Vec<Vec<String>> {
        let row = |(endpoint, status): &(String, StatusResponse)| {
            let member = status.header.unwrap_or_default().member_id;
            vec![
                endpoint.clone(),
                MemberId(member).to_string(),
                status.version.clone(),
                go::size(status.db_size),
                (status.leader == member).to_string(),
                status.is_learner.to_string(),
                status.raft_term.to_string(),
                status.raft_index.to_string(),
                status.raft_applied_index.to_string(),
                status.errors.join(", "),
            ]
        };
        self.0.iter().map(row).collect()
    }
}

fn status_json(status: &StatusResponse) -> String {
    Object::new()
        .header(&status.header)
        .text("version", &status.version)
        .number("dbSize", status.db_size)
        .number("leader", status.leader)
        .number("raftIndex", status.raft_index)
        .number("raftTerm", status.raft_term)
        .number("raftAppliedIndex", status.raft_applied_index)
        .list("errors", status.errors.iter().map(|error| text(error)))
        .number("dbSizeInUse", status.db_size_in_use)
        .flag("isLearner", status.is_learner)
        .end()
}

impl Answer for Statuses {
    fn simple(&self, _: Style) -> Vec<u8> {
        self.rows().iter().map(|row| row.join(", ") + "\n").collect::<String>().into_bytes()
    }

    fn json(&self, _: Style) -> String {
        list(self.0.iter().map(|(endpoint, status)| {
            Object::new().field("Endpoint", text(endpoint)).field("Status", status_json(status)).end()
        }))
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.0.iter().fold(Fields::default(), |fields, (endpoint, status)| {
            fields
                .header(&status.header)
                .quoted("Version", &status.version)
                .show("DBSize", status.db_size)
                .show("Leader", status.leader)
                .show("IsLearner", status.is_learner)
                .show("RaftIndex", status.raft_index)
                .show("RaftTerm", status.raft_term)
                .show("RaftAppliedIndex", status.raft_applied_index)
                .show("Errors", format!("[{}]", status.errors.join(" ")))
                .quoted("Endpoint", endpoint)
                .blank()
        }))
    }

    fn table(&self) -> Option<Table> {
        let headings = [
            "endpoint",
            "ID",
            "version",
            "db size",
            "is leader",
            "is learner",
            "raft term",
            "raft index",
            "raft applied index",
            "errors",
        ];
        Some(Table::new(&headings, self.rows()))
    }
}

pub struct Hashes(pub Vec<(String, HashKvResponse)>);

impl Answer for Hashes {
    fn simple(&self, _: Style) -> Vec<u8> {
        let line = |(endpoint, answer): &(String, HashKvResponse)| format!("{endpoint}, {}\n", answer.hash);
        self.0.iter().map(line).collect::<String>().into_bytes()
    }

    fn json(&self, _: Style) -> String {
        list(self.0.iter().map(|(endpoint, answer)| {
            let hash = Object::new()
                .header(&answer.header)
                .number("hash", answer.hash)
                .number("compact_revision", answer.compact_revision)
                .end();
            Object::new().field("Endpoint", text(endpoint)).field("HashKV", hash).end()
        }))
    }

    fn fields(&self) -> Option<Fields> {
        Some(self.0.iter().fold(Fields::default(), |fields, (endpoint, answer)| {
            fields.header(&answer.header).quoted("Endpoint", endpoint).show("Hash", answer.hash).blank()
        }))
    }

    fn table(&self) -> Option<Table> {
        let row = |(endpoint, answer): &(String, HashKvResponse)| vec![endpoint.clone(), answer.hash.to_string()];
        Some(Table::new(&["endpoint", "hash"], self.0.iter().map(row).collect()))
    }
}
