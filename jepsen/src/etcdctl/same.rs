//! Two programs, one server: what only reads is asked by both, one after the other, and every byte must be the same.

use std::path::Path;

use anyhow::{Context as _, Result};
use tokio::time::timeout;

use super::{COMMAND_LIMIT, Side, difference, normalise, script::Step};

/// Commands that leave the store, the log and the clocks of leases as they are.
const READS: &[&str] = &[
    "get",
    "lease list",
    "member list",
    "endpoint status",
    "endpoint hashkv",
    "user list",
    "user get",
    "role list",
    "role get",
    "auth status",
];

pub fn only_reads(step: &Step) -> bool {
    let command = step.words.join(" ");
    step.ends.is_none() && READS.iter().any(|read| command == *read || command.starts_with(&format!("{read} ")))
}

/// What differs between etcdctl's output and that of another program. Which of several members answers is chance.
pub async fn compare(side: &Side, program: &Path, step: &Step) -> Result<String> {
    if side.cluster.nodes.len() > 1 {
        return Ok(String::new());
    }
    let words = &step.words;
    let expected = outcome(side, &side.control, words).await?;
    let actual = outcome(side, &program.canonicalize()?, words).await?;
    Ok(difference("the same etcd", &expected, &actual))
}

async fn outcome(side: &Side, program: &Path, words: &[String]) -> Result<Vec<String>> {
    let mut command = side.program(program, words);
    side.tell_endpoints(&mut command, words);
    let output = timeout(COMMAND_LIMIT, command.output()).await.context("no end")??;
    // What is not text has escapes, so that no two bytes look the same.
    let mut lines: Vec<String> = normalise::without_use(&output.stdout)
        .split(|byte| *byte == b'\n')
        .map(|line| line.escape_ascii().to_string())
        .collect();
    let complaints = normalise::complaints(&output.stderr);
    lines.push(format!("{} {}", output.status, String::from_utf8_lossy(&complaints)));
    Ok(lines)
}
