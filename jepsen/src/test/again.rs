//! A history that was kept, judged again.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use jepsen::check::history::History;

use super::{
    judge,
    report::{Page, Verdict, anomaly::Anomaly},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// The `history.jsonl` of a run
    #[arg(value_name = "HISTORY")]
    history: PathBuf,
    /// Write the page about the run to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let path = arguments.history.display();
    // In one line, as compilers tell where something is wrong.
    let page = judge_file(&arguments.history).map_err(|error| anyhow!("{path}: {error:#}"))?;
    print(&page);
    if let Some(report) = &arguments.report {
        fs::write(report, page.html()).with_context(|| format!("cannot write {}", report.display()))?;
    }
    ensure!(page.verdict() == Verdict::Pass, "{path}: not passed");
    Ok(())
}

fn judge_file(path: &Path) -> Result<Page> {
    judge::judge(&History::read(BufReader::new(File::open(path)?))?)
}

fn print(page: &Page) {
    println!("{:<9} {}", page.verdict().word(), page.title);
    for check in &page.checks {
        println!("  {:<9} {}: {}", check.verdict.word(), check.name, check.detail);
    }
    for Anomaly { title, text, steps } in &page.anomalies {
        println!("\n{title}\n{text}");
        for step in steps {
            let end = step.end.map_or_else(|| "?".to_owned(), |end| format!("{end:.6}"));
            println!("  {:.6} to {end} s, process {}: {}", step.begin, step.process, step.text);
        }
    }
}
