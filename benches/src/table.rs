//! The comparison as Markdown: a line for each workload, and every figure below.

use std::path::Path;
use std::time::Duration;

use crate::{
    ceilings::{self, Appended},
    compare::{ECHO, ETCD, Figures, PINTLE},
    report::{Spread, number},
    workload::Spec,
};

/// The disk alone, in one round.
pub struct Disk {
    one: Appended,
    hundred: Appended,
    /// RocksDB's write batches, puts/s.
    rocksdb: f64,
    value_size: usize,
}

impl Disk {
    pub fn measure(dir: &Path, value_size: usize, time: Duration) -> anyhow::Result<Disk> {
        let one = ceilings::append(dir, value_size, 1, time)?;
        let hundred = ceilings::append(dir, value_size, ceilings::BATCH, time)?;
        let rocksdb = ceilings::rocksdb::write(dir, value_size, ceilings::BATCH, time)?;
        Ok(Disk { one, hundred, rocksdb, value_size })
    }
}

struct Row {
    name: &'static str,
    /// What is better, so that a reader need not think about it.
    better: &'static str,
    value: fn(&Figures) -> Option<f64>,
}

const ROWS: [Row; 10] = [
    Row { name: "operations/s", better: "higher", value: |f| Some(f.per_second) },
    Row { name: "p50 ms", better: "lower", value: |f| Some(f.p50_ms) },
    Row { name: "p99 ms", better: "lower", value: |f| Some(f.p99_ms) },
    Row { name: "p99.9 ms", better: "lower", value: |f| Some(f.p999_ms) },
    Row { name: "server CPU us/operation", better: "lower", value: |f| f.cpu_us_per_operation },
    Row { name: "RSS MiB", better: "lower", value: |f| Some(f.rss_mib) },
    Row { name: "of it anonymous MiB", better: "lower", value: |f| Some(f.anon_mib) },
    Row { name: "load generator CPU us/operation", better: "", value: |f| f.load_cpu_us_per_operation },
    Row { name: "bytes written per byte put", better: "lower", value: |f| f.written_per_put },
    Row { name: "log syncs/s", better: "", value: |f| f.fsyncs_per_second },
];

/// One workload's figures on all systems.
pub struct Rounds<'a> {
    figures: Vec<&'a Figures>,
}

impl<'a> Rounds<'a> {
    pub fn of(spec: &Spec, figures: &'a [Figures]) -> Rounds<'a> {
        let name = spec.to_string();
        Rounds { figures: figures.iter().filter(|f| f.workload == name).collect() }
    }

    fn system(&self, system: &str) -> impl Iterator<Item = &&'a Figures> {
        self.figures.iter().filter(move |f| f.system == system)
    }

    pub fn median(&self, system: &str, value: fn(&Figures) -> Option<f64>) -> Option<f64> {
        Spread::of(self.system(system).filter_map(|f| value(f))).map(|spread| spread.median)
    }

    /// Of the rounds' own ratios, so that what slows a round slows both of its sides.
    pub fn ratio(&self, ours: &str, theirs: &str, value: fn(&Figures) -> Option<f64>) -> Option<Spread> {
        let ratios = self.system(ours).filter_map(|ours| {
            let theirs = self.system(theirs).find(|theirs| theirs.round == ours.round)?;
            let (ours, theirs) = (value(ours)?, value(theirs)?);
            (theirs > 0.0).then(|| ours / theirs)
        });
        Spread::of(ratios)
    }

    fn failed(&self, system: &str) -> u64 {
        self.system(system).map(|f| f.errors + f.missed).sum()
    }
}

fn cell(value: Option<f64>) -> String {
    value.map_or("-".to_string(), number)
}

fn share(spread: Option<Spread>) -> String {
    spread.map_or("-".to_string(), |spread| format!("{:.0} %", spread.median * 100.0))
}

fn shown(spread: Option<Spread>) -> String {
    spread.map_or("-".to_string(), |spread| spread.to_string())
}

pub fn render(workloads: &[Spec], figures: &[Figures], disks: &[Disk]) -> String {
    let mut text = summary(workloads, figures);
    text += &disk(workloads, figures, disks);
    text + &details(workloads, figures)
}

fn summary(workloads: &[Spec], figures: &[Figures]) -> String {
    let mut text = String::from(
        "Medians of the rounds, Pintle / etcd; a ratio is the median of the rounds' ratios, with least and greatest for \
         throughput. *gRPC alone* is a server that answers without doing anything; the shares are of its operations/s.\n\n\
         | workload | operations/s | ratio min / median / max | p50 ms | p99 ms | p99.9 ms | server CPU us/operation \
         | load CPU us/operation | share of gRPC alone |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for spec in workloads {
        let rounds = Rounds::of(spec, figures);
        let both = |value: fn(&Figures) -> Option<f64>| {
            let (ours, theirs) = (rounds.median(PINTLE, value), rounds.median(ETCD, value));
            let ratio =
                rounds.ratio(PINTLE, ETCD, value).map_or("-".to_string(), |spread| format!("{:.2}", spread.median));
            format!("{} / {} ({ratio})", cell(ours), cell(theirs))
        };
        let rate: fn(&Figures) -> Option<f64> = |f| Some(f.per_second);
        text += &format!(
            "| {spec} | {} / {} | {} | {} | {} | {} | {} | {} / {} | {} / {} |\n",
            cell(rounds.median(PINTLE, rate)),
            cell(rounds.median(ETCD, rate)),
            shown(rounds.ratio(PINTLE, ETCD, rate)),
            both(|f| Some(f.p50_ms)),
            both(|f| Some(f.p99_ms)),
            both(|f| Some(f.p999_ms)),
            both(|f| f.cpu_us_per_operation),
            cell(rounds.median(PINTLE, |f| f.load_cpu_us_per_operation)),
            cell(rounds.median(ETCD, |f| f.load_cpu_us_per_operation)),
            share(rounds.ratio(PINTLE, ECHO, rate)),
            share(rounds.ratio(ETCD, ECHO, rate)),
        );
    }
    text
}

/// The disk alone, and what puts reach of it: those of one client each need a sync, those of many share one.
fn disk(workloads: &[Spec], figures: &[Figures], disks: &[Disk]) -> String {
    let Some(first) = disks.first() else { return String::new() };
    let median = |value: fn(&Disk) -> f64| Spread::of(disks.iter().map(value)).map(|spread| spread.median);
    let (one, hundred) = (median(|d| d.one.puts_per_second), median(|d| d.hundred.puts_per_second));
    let rocksdb = median(|d| d.rocksdb);
    let mut text = format!(
        "\nThe disk alone, appending what puts of {} B take in a log and syncing it: {} puts/s with a sync for each \
         (p50 {} ms, p99 {} ms), {} puts/s with a sync for a hundred. RocksDB alone, a hundred puts to a batch, not synced: \
         {} puts/s.\n\n| workload | share of the disk alone, Pintle / etcd | share of RocksDB alone, Pintle |\n|---|---|---|\n",
        first.value_size,
        cell(one),
        cell(median(|d| d.one.p50_ms)),
        cell(median(|d| d.one.p99_ms)),
        cell(hundred),
        cell(rocksdb),
    );
    for spec in workloads.iter().filter(|spec| spec.kind.is_put()) {
        let ceiling = if spec.clients == 1 { one } else { hundred };
        let rounds = Rounds::of(spec, figures);
        let of = |system, most| {
            let share = rounds.median(system, |f| Some(f.per_second)).zip(most).map(|(rate, most)| rate / most);
            share.map_or("-".to_string(), |share| format!("{:.0} %", share * 100.0))
        };
        let which = if spec.clients == 1 { "a sync for each" } else { "a sync for a hundred" };
        let (ours, theirs) = (of(PINTLE, ceiling), of(ETCD, ceiling));
        text += &format!("| {spec}, {which} | {ours} / {theirs} | {} |\n", of(PINTLE, rocksdb));
    }
    text
}

fn details(workloads: &[Spec], figures: &[Figures]) -> String {
    let mut text = String::from(
        "\n<details><summary>Every figure</summary>\n\n\
         | workload | figure | better | Pintle (median) | etcd (median) | gRPC alone | ratio min / median / max |\n\
         |---|---|---|---:|---:|---:|---:|\n",
    );
    for spec in workloads {
        let rounds = Rounds::of(spec, figures);
        for Row { name, better, value } in &ROWS {
            let median = |system| cell(rounds.median(system, *value));
            let (ours, theirs, echo) = (median(PINTLE), median(ETCD), median(ECHO));
            let ratio = shown(rounds.ratio(PINTLE, ETCD, *value));
            text += &format!("| {spec} | {name} | {better} | {ours} | {theirs} | {echo} | {ratio} |\n");
        }
        let (ours, theirs, echo) = (rounds.failed(PINTLE), rounds.failed(ETCD), rounds.failed(ECHO));
        if ours + theirs + echo > 0 {
            text += &format!("| {spec} | errors and missed, all rounds | lower | {ours} | {theirs} | {echo} | |\n");
        }
    }
    text + "\n</details>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(round: u32, system: &'static str, per_second: f64) -> Figures {
        let workload = "put:1".to_string();
        Figures { round, system, per_second, workload, p50_ms: 1.0, ..Default::default() }
    }

    #[test]
    fn ratios_are_formed_within_a_round() {
        let all = [
            figures(1, PINTLE, 200.0),
            figures(1, ETCD, 100.0),
            figures(1, ECHO, 400.0),
            figures(2, ETCD, 1000.0),
            figures(2, PINTLE, 1000.0),
            figures(2, ECHO, 2000.0),
        ];
        let workloads = ["put:1".parse().unwrap()];
        let table = render(&workloads, &all, &[]);
        assert!(table.contains("| put:1 | operations/s | higher | 600 | 550 | 1200 | 1.00 / 1.50 / 2.00 |"), "{table}");
        assert!(table.contains("| put:1 | server CPU us/operation | lower | - | - | - | - |"), "{table}");
        assert!(table.contains("| put:1 | 600 / 550 | 1.00 / 1.50 / 2.00 | 1.00 / 1.00 (1.00) |"), "{table}");
        assert!(table.contains("| 50 % / 38 % |"), "{table}");
        assert!(!table.contains("errors and missed"), "{table}");
    }
}
