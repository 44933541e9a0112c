//! What a run looked like over time: successes a second, latencies, and who did what while which fault was there.

use std::collections::{BTreeMap, BTreeSet};

use super::svg::{Panel, Scale, escape, short};

const WIDTH: f64 = 1100.0;
/// Columns into which the time of a run is divided where single operations would be too many to draw.
const COLUMNS: usize = 500;
const LATENCY_MS_MIN: f64 = 0.1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Ok,
    /// Certainly not done.
    Fail,
    /// Nobody knows.
    Info,
}

impl Outcome {
    pub const ALL: [Outcome; 3] = [Outcome::Ok, Outcome::Fail, Outcome::Info];

    pub fn class(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Fail => "fail",
            Outcome::Info => "info",
        }
    }
}

/// One operation of a run; times are seconds since its begin.
#[derive(Clone, Debug)]
pub struct Operation {
    pub process: u64,
    pub name: &'static str,
    pub begin: f64,
    pub end: f64,
    pub outcome: Outcome,
}

/// One fault, from the first that was done for it until it was healed.
#[derive(Clone, Debug)]
pub struct Fault {
    pub name: String,
    pub detail: String,
    pub begin: f64,
    pub end: f64,
}

/// All that the plots show.
pub struct Run {
    pub operations: Vec<Operation>,
    pub faults: Vec<Fault>,
    pub seconds: f64,
}

impl Run {
    fn shade(&self, panel: &mut Panel) {
        for fault in &self.faults {
            panel.band("fault", fault.begin, fault.end, &format!("{}: {}", fault.name, fault.detail));
        }
    }

    /// Answers a second, one line for each outcome.
    pub fn throughput(&self) -> String {
        let width = bin_width(self.seconds);
        let bins = (self.seconds / width).ceil().max(1.0) as usize;
        let mut counts = [(); 3].map(|()| vec![0u32; bins]);
        for operation in &self.operations {
            let bin = ((operation.end / width) as usize).min(bins - 1);
            counts[operation.outcome as usize][bin] += 1;
        }
        let highest = counts.iter().flatten().max().copied().unwrap_or(0);
        let y = Scale::Linear { max: (f64::from(highest) / width * 1.05).max(1.0) };
        let mut panel = Panel::new(WIDTH, 240.0, Scale::Linear { max: self.seconds }, y);
        panel.axes("seconds", "answers a second", short);
        self.shade(&mut panel);
        for outcome in Outcome::ALL {
            let points: Vec<(f64, f64)> = (counts[outcome as usize].iter().enumerate())
                .map(|(bin, count)| ((bin as f64 + 0.5) * width, f64::from(*count) / width))
                .collect();
            panel.line(&format!("line {}", outcome.class()), &points);
        }
        panel.finish()
    }

    /// A dot for each latency at each time; where many coincide there is one.
    pub fn latencies(&self) -> String {
        let latency = |operation: &Operation| ((operation.end - operation.begin) * 1000.0).max(LATENCY_MS_MIN);
        let highest = self.operations.iter().map(latency).fold(10.0, f64::max);
        let y = Scale::Logarithmic { min: LATENCY_MS_MIN, max: highest * 1.3 };
        let mut panel = Panel::new(WIDTH, 320.0, Scale::Linear { max: self.seconds }, y);
        panel.axes("seconds", "latency", milliseconds);
        self.shade(&mut panel);
        let mut dots = BTreeSet::new();
        for operation in &self.operations {
            let (x, y) = (panel.x(operation.end), panel.y(latency(operation)));
            if dots.insert((operation.outcome, (x / 2.0) as u32, (y / 2.0) as u32)) {
                panel.dot(operation.outcome.class(), operation.end, latency(operation));
            }
        }
        panel.finish()
    }

    /// A row for each kind of fault, and below one for each worker: when it had which answers. A process whose
    /// operation has no known outcome goes on under another number; the numbers that follow each other share a row.
    pub fn timeline(&self) -> String {
        let workers = self.workers();
        let kinds: BTreeSet<&str> = self.faults.iter().map(|fault| fault.name.as_str()).collect();
        let (row, bar) = (18.0, 12.0);
        let names = 170.0;
        let rows = kinds.len() + workers.len();
        let height = row * rows as f64 + 40.0;
        let scale = (WIDTH - names - 12.0) / self.seconds;
        let at = |seconds: f64| names + seconds.clamp(0.0, self.seconds) * scale;
        let mut shapes = String::new();
        let mut y = 4.0;
        let name = |shapes: &mut String, y: f64, name: &str| {
            let (x, y) = (names - 8.0, y + bar - 2.0);
            shapes.push_str(&format!("<text x={x} y={y:.1} text-anchor=end>{}</text>\n", escape(name)));
        };
        for kind in &kinds {
            name(&mut shapes, y, kind);
            for fault in self.faults.iter().filter(|fault| fault.name == *kind) {
                let (x, width) = (at(fault.begin), (at(fault.end) - at(fault.begin) - 1.0).max(2.0));
                let title = escape(&format!("{:.2} s to {:.2} s: {}", fault.begin, fault.end, fault.detail));
                shapes.push_str(&format!(
                    "<rect class=nemesis x={x:.1} y={y:.1} width={width:.1} height={bar}><title>{title}</title></rect>\n"
                ));
            }
            y += row;
        }
        for (worker, processes) in workers.iter().enumerate() {
            name(&mut shapes, y, &format!("worker {}", worker + 1));
            for (outcome, from, to) in self.strip(processes) {
                let (x, width) = (at(from), (at(to) - at(from)).max(0.5));
                let class = outcome.class();
                shapes.push_str(&format!("<rect class={class} x={x:.1} y={y:.1} width={width:.1} height={bar} />\n"));
            }
            y += row;
        }
        for tick in 0..=6 {
            let seconds = self.seconds / 6.0 * f64::from(tick);
            let (x, label) = (at(seconds), short((seconds * 10.0).round() / 10.0));
            shapes.push_str(&format!("<text x={x:.1} y={:.1} text-anchor=middle>{label}</text>\n", y + 14.0));
        }
        let middle = (names + WIDTH) / 2.0;
        shapes.push_str(&format!("<text x={middle:.1} y={:.1} text-anchor=middle>seconds</text>\n", y + 30.0));
        format!("<svg viewBox='0 0 {WIDTH} {height}' role=img>\n{shapes}</svg>\n")
    }

    /// Processes in as few rows as they need if none may overlap.
    fn workers(&self) -> Vec<BTreeSet<u64>> {
        let mut lives: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for operation in &self.operations {
            let life = lives.entry(operation.process).or_insert((operation.begin, operation.end));
            *life = (life.0.min(operation.begin), life.1.max(operation.end));
        }
        let mut lives: Vec<(u64, (f64, f64))> = lives.into_iter().collect();
        lives.sort_by(|a, b| a.1.0.total_cmp(&b.1.0));
        let mut rows: Vec<(BTreeSet<u64>, f64)> = Vec::new();
        for (process, (begin, end)) in lives {
            // The row that has been free for the shortest time: most likely it was the same worker.
            let free = rows.iter_mut().filter(|(_, until)| *until <= begin).max_by(|a, b| a.1.total_cmp(&b.1));
            match free {
                Some((row, until)) => {
                    row.insert(process);
                    *until = end;
                }
                None => rows.push((BTreeSet::from([process]), end)),
            }
        }
        rows.into_iter().map(|(row, _)| row).collect()
    }

    /// The time of one worker in pieces of one colour: the worst outcome of what was under way.
    fn strip(&self, processes: &BTreeSet<u64>) -> Vec<(Outcome, f64, f64)> {
        let column = self.seconds / COLUMNS as f64;
        let mut columns: Vec<Option<Outcome>> = vec![None; COLUMNS];
        for operation in self.operations.iter().filter(|operation| processes.contains(&operation.process)) {
            let first = ((operation.begin / column) as usize).min(COLUMNS - 1);
            let last = ((operation.end / column) as usize).min(COLUMNS - 1);
            for worst in &mut columns[first..=last] {
                *worst = (*worst).max(Some(operation.outcome));
            }
        }
        let mut pieces: Vec<(Outcome, f64, f64)> = Vec::new();
        for (index, outcome) in columns.into_iter().enumerate() {
            let Some(outcome) = outcome else { continue };
            let (from, to) = (index as f64 * column, (index + 1) as f64 * column);
            match pieces.last_mut() {
                Some((last, _, end)) if *last == outcome && (from - *end).abs() < column / 2.0 => *end = to,
                _ => pieces.push((outcome, from, to)),
            }
        }
        pieces
    }

    /// By operation: how many had which outcome, and the latencies of those that succeeded.
    pub fn table(&self) -> BTreeMap<&'static str, Row> {
        let mut rows: BTreeMap<&'static str, Row> = BTreeMap::new();
        for operation in &self.operations {
            let row = rows.entry(operation.name).or_default();
            row.counts[operation.outcome as usize] += 1;
            if operation.outcome == Outcome::Ok {
                row.latencies.push((operation.end - operation.begin) * 1000.0);
            }
        }
        for row in rows.values_mut() {
            row.latencies.sort_by(f64::total_cmp);
        }
        rows
    }
}

#[derive(Default)]
pub struct Row {
    /// By [`Outcome`].
    pub counts: [u64; 3],
    latencies: Vec<f64>,
}

impl Row {
    /// Milliseconds; `None` if nothing succeeded.
    pub fn latency(&self, quantile: f64) -> Option<f64> {
        quantile_of(&self.latencies, quantile)
    }
}

/// The value of sorted values that so great a part does not exceed.
pub fn quantile_of(sorted: &[f64], quantile: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    Some(sorted[((sorted.len() as f64 * quantile).ceil() as usize).saturating_sub(1).min(last)])
}

fn bin_width(seconds: f64) -> f64 {
    (seconds / 120.0).max(0.25)
}

fn milliseconds(value: f64) -> String {
    if value >= 1000.0 { format!("{} s", short(value / 1000.0)) } else { format!("{} ms", short(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(process: u64, begin: f64, end: f64, outcome: Outcome) -> Operation {
        Operation { process, name: "put", begin, end, outcome }
    }

    fn run(operations: Vec<Operation>) -> Run {
        let fault = Fault { name: "kill".into(), detail: "n1".into(), begin: 2.0, end: 3.0 };
        Run { operations, faults: vec![fault], seconds: 10.0 }
    }

    #[test]
    fn a_strip_shows_the_worst_outcome_of_each_time() {
        let run = run(vec![
            operation(1, 0.0, 0.99, Outcome::Ok),
            operation(1, 1.0, 1.5, Outcome::Info),
            operation(1, 5.0, 6.0, Outcome::Ok),
            operation(2, 0.0, 9.0, Outcome::Fail),
        ]);
        let outcomes: Vec<Outcome> = run.strip(&BTreeSet::from([1])).into_iter().map(|(outcome, ..)| outcome).collect();
        assert_eq!(outcomes, [Outcome::Ok, Outcome::Info, Outcome::Ok]);
    }

    #[test]
    fn a_process_that_goes_on_under_another_number_keeps_its_row() {
        let run = run(vec![
            operation(1, 0.0, 2.0, Outcome::Info),
            operation(2, 0.0, 9.0, Outcome::Ok),
            operation(3, 2.1, 5.0, Outcome::Ok),
        ]);
        assert_eq!(run.workers(), [BTreeSet::from([1, 3]), BTreeSet::from([2])]);
    }

    #[test]
    fn latencies_count_only_what_succeeded() {
        let mut operations: Vec<Operation> =
            (1..=100).map(|ms| operation(1, 1.0, 1.0 + f64::from(ms) / 1000.0, Outcome::Ok)).collect();
        operations.push(operation(1, 0.0, 10.0, Outcome::Info));
        let table = run(operations).table();
        assert_eq!(table["put"].counts, [100, 0, 1]);
        assert_eq!(table["put"].latency(0.5).map(f64::round), Some(50.0));
        assert_eq!(table["put"].latency(1.0).map(f64::round), Some(100.0));
        assert_eq!(quantile_of(&[], 0.5), None);
    }

    #[test]
    fn a_long_run_is_drawn_with_few_marks() {
        let operations: Vec<Operation> = (0..100_000)
            .map(|index| {
                operation(index % 10, f64::from(index as u32) / 1e4, f64::from(index as u32) / 1e4, Outcome::Ok)
            })
            .collect();
        let run = run(operations);
        assert!(run.latencies().len() + run.timeline().len() + run.throughput().len() < 200_000);
    }
}
