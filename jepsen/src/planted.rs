//! Each planted bug against the run that has to find it.
//!
//! The bugs are in `storage/src/planted.rs`, compiled into a server that was built with the feature `planted`. For each
//! of them [`table`] names the cheapest runs of this program that find it, and what they must then complain of. A bug
//! counts as caught when a run fails with it, for that reason, and passes without it.

mod table;

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{process::Command, time::timeout};

use table::{CATCHES, Catch};

/// Names the active bug to the server.
const VARIABLE: &str = "PINTLE_PLANTED";
const RUN_LIMIT: Duration = Duration::from_secs(600);
const FINDING_CHARACTERS: usize = 160;

#[derive(clap::Args)]
pub struct Arguments {
    /// Pintle, built with `--features planted`
    #[arg(long)]
    binary: PathBuf,
    /// Only these bugs
    #[arg(long, value_name = "NAME")]
    bug: Vec<String>,
    /// Only runs of these commands
    #[arg(long, value_name = "COMMAND")]
    tier: Vec<String>,
    /// Every run that is known to find a bug, and not only the first
    #[arg(long)]
    every: bool,
}

/// What became of a bug in one of its runs.
enum Verdict {
    Caught {
        attempts: u32,
        time: Duration,
        finding: String,
    },
    /// All attempts passed.
    Escaped {
        attempts: u32,
    },
    /// The run failed, but not because of the bug.
    Otherwise {
        finding: String,
    },
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let binary = arguments.binary.canonicalize().context("no server")?;
    check_table(&known_bugs(&binary).await?)?;
    let chosen = choose(&arguments)?;
    let mut runner = Runner { binary, sound: BTreeSet::new() };
    let mut rows = vec!["| bug | found by | attempts | seconds | as |\n|---|---|---|---|---|".to_owned()];
    let mut missed = Vec::new();
    for catch in &chosen {
        let verdict = runner.judge(catch).await?;
        let row = row(catch, &verdict);
        println!("{row}");
        rows.push(row);
        if !matches!(verdict, Verdict::Caught { .. }) {
            missed.push(catch.bug);
        }
    }
    println!("\n{}\n\n{} runs, {} caught", rows.join("\n"), chosen.len(), chosen.len() - missed.len());
    ensure!(missed.is_empty(), "not caught: {}", missed.join(", "));
    Ok(())
}

/// The bugs that the server was built with.
async fn known_bugs(binary: &Path) -> Result<BTreeSet<String>> {
    let output = Command::new(binary).env(VARIABLE, "?").arg("--version").output().await?;
    let listed = String::from_utf8(output.stdout)?;
    let names: BTreeSet<String> = listed.lines().filter_map(|line| Some(line.split_once('\t')?.0.to_owned())).collect();
    ensure!(!names.is_empty(), "{} has no planted bugs: build it with `--features planted`", binary.display());
    Ok(names)
}

fn check_table(known: &BTreeSet<String>) -> Result<()> {
    let named: BTreeSet<String> = CATCHES.iter().map(|catch| catch.bug.to_owned()).collect();
    let difference: Vec<&String> = known.symmetric_difference(&named).collect();
    ensure!(difference.is_empty(), "only the server knows these bugs, or only the table of runs does: {difference:?}");
    Ok(())
}

fn choose(arguments: &Arguments) -> Result<Vec<Catch>> {
    let is_chosen = |catch: &&Catch| {
        (arguments.bug.is_empty() || arguments.bug.iter().any(|bug| bug == catch.bug))
            && (arguments.tier.is_empty() || arguments.tier.iter().any(|tier| tier == catch.arguments[0]))
    };
    let mut chosen: Vec<Catch> = CATCHES.iter().filter(is_chosen).copied().collect();
    if !arguments.every {
        let mut seen = BTreeSet::new();
        chosen.retain(|catch| seen.insert(catch.bug));
    }
    ensure!(!chosen.is_empty(), "no run is left to do");
    Ok(chosen)
}

struct Runner {
    binary: PathBuf,
    /// Runs that passed without a bug.
    sound: BTreeSet<Vec<String>>,
}

impl Runner {
    async fn judge(&mut self, catch: &Catch) -> Result<Verdict> {
        let began = Instant::now();
        for attempt in 1..=catch.attempts {
            let arguments = self.arguments(catch, attempt);
            let output = self.execute(&arguments, Some(catch.bug)).await?;
            if output.status.success() {
                continue;
            }
            let (time, text) = (began.elapsed(), text_of(&output));
            let Some(finding) = finding(&text, catch.reasons) else {
                eprintln!("{text}");
                return Ok(Verdict::Otherwise { finding: last_words(&text) });
            };
            self.check_sound(arguments).await?;
            return Ok(Verdict::Caught { attempts: attempt, time, finding });
        }
        Ok(Verdict::Escaped { attempts: catch.attempts })
    }

    fn arguments(&self, catch: &Catch, attempt: u32) -> Vec<String> {
        let mut arguments: Vec<String> = catch.arguments.iter().map(|argument| (*argument).to_owned()).collect();
        if catch.takes_seed {
            arguments.extend(["--seed".to_owned(), attempt.to_string()]);
        }
        if catch.takes_binary {
            arguments.extend(["--binary".to_owned(), self.binary.display().to_string()]);
        }
        arguments
    }

    async fn execute(&self, arguments: &[String], bug: Option<&str>) -> Result<Output> {
        let mut command = Command::new(env::current_exe()?);
        command.args(arguments).env_remove(VARIABLE).env("RUST_BACKTRACE", "0").envs(bug.map(|bug| (VARIABLE, bug)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(RUN_LIMIT, command.output()).await;
        Ok(output.with_context(|| format!("{} took longer than {RUN_LIMIT:?}", arguments.join(" ")))??)
    }

    /// A run that fails without the bug has not found it.
    async fn check_sound(&mut self, arguments: Vec<String>) -> Result<()> {
        if self.sound.contains(&arguments) {
            return Ok(());
        }
        let output = self.execute(&arguments, None).await?;
        if !output.status.success() {
            bail!("{} fails without a bug, too:\n{}", arguments.join(" "), text_of(&output));
        }
        self.sound.insert(arguments);
        Ok(())
    }
}

fn text_of(output: &Output) -> String {
    [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat()
}

/// The first line that says what was expected.
fn finding(text: &str, reasons: &[&str]) -> Option<String> {
    text.lines().find(|line| reasons.iter().any(|reason| line.contains(reason))).map(shortened)
}

fn last_words(text: &str) -> String {
    let line = text.lines().find(|line| line.starts_with("FAILED") || line.starts_with("Error"));
    line.or(text.lines().last()).map_or_else(String::new, shortened)
}

fn shortened(line: &str) -> String {
    let line = line.trim().trim_start_matches("FAILED ").replace('|', "/");
    match line.char_indices().nth(FINDING_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn row(catch: &Catch, verdict: &Verdict) -> String {
    let command = catch.arguments.join(" ");
    match verdict {
        Verdict::Caught { attempts, time, finding } => {
            format!("| {} | `{command}` | {attempts} | {:.1} | {finding} |", catch.bug, time.as_secs_f64())
        }
        Verdict::Escaped { attempts } => format!("| {} | `{command}` | {attempts} | | ESCAPED |", catch.bug),
        Verdict::Otherwise { finding } => {
            format!("| {} | `{command}` | | | FAILED FOR ANOTHER REASON: {finding} |", catch.bug)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_the_line_that_gives_the_reason() {
        let text = "round 1: fine\nFAILED lock: a lock that is held was given to another; 0.3 s\nError: 1 of 1";
        assert_eq!(
            finding(text, &["a stale read", "given to another"]).unwrap(),
            "lock: a lock that is held was given to another; 0.3 s"
        );
        assert_eq!(finding(text, &["a stale read"]), None);
    }

    #[test]
    fn every_run_says_what_it_must_complain_of() {
        for catch in CATCHES {
            let is_said = !catch.reasons.is_empty() && catch.reasons.iter().all(|reason| reason.len() > 5);
            assert!(is_said && !catch.arguments.is_empty() && catch.attempts > 0, "{}", catch.bug);
        }
    }
}
