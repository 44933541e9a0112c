//! One page for each run: what was done, what failed, what was found.
//!
//! The page is a single file. It loads nothing and needs no script: pictures are SVG within it, details are shown when
//! a mark is pointed at, and it follows the reader's choice of light or dark.

pub mod anomaly;
pub mod describe;
pub mod figures;
pub mod plots;
mod svg;

use anomaly::Anomaly;
use plots::Run;
use svg::escape;

const STYLE: &str = include_str!("style.css");

/// What one checker said of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// It is wrong.
    Fail,
    /// The checker gave up; this does not count as a pass.
    Undecided,
}

impl Verdict {
    fn class(self) -> &'static str {
        match self {
            Verdict::Pass => "ok",
            Verdict::Fail => "fail",
            Verdict::Undecided => "info",
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "passed",
            Verdict::Fail => "FAILED",
            Verdict::Undecided => "undecided",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
    pub detail: String,
}

/// What a fault did, for the table of faults.
#[derive(Clone, Debug)]
pub struct FaultRow {
    pub name: String,
    pub detail: String,
    pub effect: String,
    pub begin: f64,
    pub end: f64,
    /// The longest time without a success, in milliseconds, from the fault's begin until the next fault.
    pub outage_ms: f64,
    /// From the healing to the next success.
    pub recovery_ms: f64,
}

/// Everything on a page.
pub struct Page {
    pub title: String,
    /// The command that runs it again, versions, sizes.
    pub settings: Vec<(String, String)>,
    pub figures: Vec<(String, String)>,
    pub checks: Vec<Check>,
    pub anomalies: Vec<Anomaly>,
    pub faults: Vec<FaultRow>,
    pub run: Run,
}

impl Page {
    pub fn verdict(&self) -> Verdict {
        let any = |verdict| self.checks.iter().any(|check| check.verdict == verdict);
        match () {
            () if any(Verdict::Fail) => Verdict::Fail,
            () if any(Verdict::Undecided) || self.checks.is_empty() => Verdict::Undecided,
            () => Verdict::Pass,
        }
    }

    /// What did not pass, a line for each.
    pub fn failures(&self) -> Vec<String> {
        let failed = self.checks.iter().filter(|check| check.verdict != Verdict::Pass);
        failed.map(|check| format!("{} {}: {}", check.name, check.verdict.word(), check.detail)).collect()
    }

    pub fn html(&self) -> String {
        let (title, verdict) = (escape(&self.title), self.verdict());
        let (class, word) = (verdict.class(), verdict.word());
        let mut html = format!(
            "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n\
             <meta name=viewport content='width=device-width'>\n<title>{title}: {word}</title>\n\
             <style>\n{STYLE}</style>\n<main>\n<h1>{title} <span class='tag {class}'>{word}</span></h1>\n"
        );
        html.push_str(&pairs(&self.settings));
        html.push_str("<h2>Verdict</h2>\n");
        html.push_str(&self.checks());
        if !self.anomalies.is_empty() {
            html.push_str("<h2>What was found</h2>\n");
            html.extend(self.anomalies.iter().map(Anomaly::html));
        }
        html.push_str("<h2>Figures</h2>\n");
        html.push_str(&pairs(&self.figures));
        html.push_str(&self.operations());
        html.push_str(&format!("<h2>Answers</h2>\n{LEGEND}{}\n", self.run.throughput()));
        html.push_str(&format!("<h2>Latencies</h2>\n{LEGEND}{}\n", self.run.latencies()));
        html.push_str(&format!("<h2>Faults and processes</h2>\n{LEGEND}{}\n", self.run.timeline()));
        html.push_str(&self.faults());
        html.push_str("</main>\n</html>\n");
        html
    }

    fn checks(&self) -> String {
        let mut rows = String::new();
        for Check { name, verdict, detail } in &self.checks {
            let (class, word, name, detail) = (verdict.class(), verdict.word(), escape(name), escape(detail));
            rows.push_str(&format!("<tr><td>{name}<td><span class='tag {class}'>{word}</span><td>{detail}</tr>\n"));
        }
        format!("<div class=wide><table><tr><th>check<th>verdict<th>detail</tr>\n{rows}</table></div>\n")
    }

    fn operations(&self) -> String {
        let mut rows = String::new();
        for (name, row) in self.run.table() {
            rows.push_str(&format!("<tr><td>{}", escape(name)));
            for count in row.counts {
                rows.push_str(&format!("<td class=number>{count}"));
            }
            for quantile in [0.5, 0.99, 1.0] {
                let latency = row.latency(quantile).map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1}"));
                rows.push_str(&format!("<td class=number>{latency}"));
            }
            rows.push_str("</tr>\n");
        }
        format!(
            "<div class=wide><table><tr><th>operation<th class=number>ok<th class=number>not done<th class=number>unknown<th class=number>p50 ms\
             <th class=number>p99 ms<th class=number>max ms</tr>\n\
             {rows}</table></div>\n"
        )
    }

    fn faults(&self) -> String {
        if self.faults.is_empty() {
            return "<p>No faults.</p>\n".to_owned();
        }
        let mut rows = String::new();
        for fault in &self.faults {
            rows.push_str(&format!(
                "<tr><td class=number>{:.2}<td class=number>{:.2}<td>{}<td>{}<td>{}<td class=number>{:.0}\
                 <td class=number>{:.0}</tr>\n",
                fault.begin,
                fault.end,
                escape(&fault.name),
                escape(&fault.detail),
                escape(&fault.effect),
                fault.outage_ms,
                fault.recovery_ms,
            ));
        }
        format!(
            "<div class=wide><table><tr><th class=number>begin s<th class=number>end s<th>fault<th>members<th>effect\
             <th class=number>outage ms<th class=number>recovery ms</tr>\n{rows}</table></div>\n"
        )
    }
}

const LEGEND: &str = "<p class=legend><span class='tag ok'>ok</span> <span class='tag fail'>not done</span> \
    <span class='tag info'>unknown</span> <span class='tag nemesis'>fault</span></p>\n";

fn pairs(pairs: &[(String, String)]) -> String {
    let mut html = String::from("<dl>\n");
    for (name, value) in pairs {
        html.push_str(&format!("<dt>{}<dd>{}\n", escape(name), escape(value)));
    }
    html.push_str("</dl>\n");
    html
}
