//! Instructions per operation: as callgrind counts them, and as they are recorded.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};

use crate::workloads::WORKLOADS;

/// Instructions per operation by workload.
pub type Counts = BTreeMap<String, u64>;

/// Runs this program's workloads under callgrind. Its profiles are left in `profiles`, named as the workloads.
pub fn count(of_child: (&str, &Path), profiles: &Path) -> anyhow::Result<Counts> {
    let work = tempfile::tempdir()?;
    let profile = work.path().join("profile");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=instructions_counted"])
        .arg("--dump-after=instructions_told")
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .env(of_child.0, of_child.1)
        .output()
        .context("valgrind cannot be run; script/setup --test installs it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the workloads failed under valgrind ({}):\n{said}", output.status);
    fs::create_dir_all(profiles)?;
    let mut counts = Counts::new();
    for (i, (name, operations)) in WORKLOADS.iter().enumerate() {
        let path = profile.with_extension((i + 1).to_string());
        let text =
            fs::read_to_string(&path).with_context(|| format!("callgrind wrote no {}:\n{said}", path.display()))?;
        let total = total(&text).with_context(|| format!("no total in what callgrind wrote for {name}"))?;
        ensure!(total > 0, "callgrind counted nothing for {name}:\n{said}");
        counts.insert(name.to_string(), total / operations);
        fs::write(profiles.join(name), text)?;
    }
    Ok(counts)
}

fn total(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

pub fn read(path: &Path) -> anyhow::Result<Counts> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut counts = Counts::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let count = line.split_once(' ').and_then(|(name, count)| Some((name, count.parse().ok()?)));
        let (name, count) = count.with_context(|| format!("{}: {line:?} is no workload and count", path.display()))?;
        counts.insert(name.to_string(), count);
    }
    Ok(counts)
}

pub fn write(path: &Path, head: &str, counts: &Counts) -> anyhow::Result<()> {
    let lines: String = WORKLOADS.iter().map(|(name, _)| format!("{name} {}\n", counts[*name])).collect();
    Ok(fs::write(path, format!("{head}{lines}"))?)
}
