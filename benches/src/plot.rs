//! Bars as SVG: self-contained, readable on light and dark ground.

use std::{fs, path::Path};

use anyhow::Context;

use crate::{
    compare::{ECHO, ETCD, Figures, PINTLE},
    report::number,
    table::Rounds,
    workload::Spec,
};

const WIDTH: f64 = 760.0;
const LABELS: f64 = 150.0;
const NUMBERS: f64 = 70.0;
const BAR: f64 = 12.0;
const GAP: f64 = 10.0;
const TOP: f64 = 58.0;
const SERIES: [(&str, &str); 3] = [(PINTLE, "#2f6fde"), (ETCD, "#d9822b"), (ECHO, "#8a8f98")];

/// A figure that is drawn for every workload.
struct Figure {
    file: &'static str,
    title: &'static str,
    value: fn(&Figures) -> Option<f64>,
}

const FIGURES: [Figure; 3] = [
    Figure { file: "throughput", title: "operations/s, longer is better", value: |f| Some(f.per_second) },
    Figure { file: "p99", title: "p99 latency in ms, shorter is better", value: |f| Some(f.p99_ms) },
    Figure {
        file: "cpu",
        title: "server CPU in µs per operation, shorter is better",
        value: |f| f.cpu_us_per_operation,
    },
];

/// Draws the figures into the folder beside the document that has its name. Returns the lines that show them there.
pub fn write(docs: &Path, name: &str, workloads: &[Spec], figures: &[Figures]) -> anyhow::Result<String> {
    let folder = docs.with_extension("");
    let folder_name = folder.file_name().context("the document has no name")?.to_string_lossy().into_owned();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let mut lines = String::from("\n");
    for Figure { file, title, value } in &FIGURES {
        let groups: Vec<Group> = workloads.iter().map(|spec| Group::of(spec, figures, *value)).collect();
        let file = format!("{name}-{file}.svg");
        let path = folder.join(&file);
        fs::write(&path, draw(title, &groups)).with_context(|| format!("write {}", path.display()))?;
        lines += &format!("![{title}]({folder_name}/{file})\n");
    }
    Ok(lines)
}

/// The bars of one workload, a median for each system that has one.
struct Group {
    label: String,
    bars: Vec<(usize, f64)>,
}

impl Group {
    fn of(spec: &Spec, figures: &[Figures], value: fn(&Figures) -> Option<f64>) -> Group {
        let rounds = Rounds::of(spec, figures);
        let median = |(index, (system, _)): (usize, &(&str, &str))| Some((index, rounds.median(system, value)?));
        Group { label: spec.to_string(), bars: SERIES.iter().enumerate().filter_map(median).collect() }
    }

    fn height(&self) -> f64 {
        self.bars.len() as f64 * BAR + GAP
    }
}

/// Each workload has a scale of its own, its longest bar fills the width: they differ by orders of magnitude.
fn draw(title: &str, groups: &[Group]) -> String {
    let height = TOP + groups.iter().map(Group::height).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\" fill=\"#1b1f24\">{}</text>\n",
        escaped(title)
    );
    for (index, (system, color)) in SERIES.iter().enumerate() {
        let x = LABELS + 110.0 * index as f64;
        svg += &format!(
            "<rect x=\"{x}\" y=\"32\" width=\"10\" height=\"10\" fill=\"{color}\"/>\
             <text x=\"{}\" y=\"41\" fill=\"#1b1f24\">{system}</text>\n",
            x + 15.0
        );
    }
    let mut y = TOP;
    for group in groups {
        let most = group.bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let middle = y + (group.height() - GAP) / 2.0 + 4.0;
        let label = escaped(&group.label);
        svg += &format!("<text x=\"10\" y=\"{middle}\" fill=\"#1b1f24\">{label}</text>\n");
        for (row, (series, value)) in group.bars.iter().enumerate() {
            let top = y + row as f64 * BAR;
            let length = if most > 0.0 { value / most * (WIDTH - LABELS - NUMBERS) } else { 0.0 };
            svg += &format!(
                "<rect x=\"{LABELS}\" y=\"{top}\" width=\"{length:.1}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{}\" fill=\"#57606a\">{}</text>\n",
                BAR - 2.0,
                SERIES[*series].1,
                LABELS + length + 5.0,
                top + 9.0,
                number(*value)
            );
        }
        y += group.height();
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fills_the_width_and_the_others_are_in_proportion() {
        let groups = [Group { label: "a<b".to_string(), bars: vec![(0, 200.0), (1, 50.0)] }];
        let svg = draw("t", &groups);
        assert!(svg.contains("width=\"540.0\"") && svg.contains("width=\"135.0\""), "{svg}");
        assert!(svg.contains("a&lt;b") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn plots_stand_in_a_folder_beside_the_document() {
        let dir = tempfile::tempdir().unwrap();
        let docs = dir.path().join("speed.md");
        let lines = write(&docs, "one", &["put:1".parse().unwrap()], &[]).unwrap();
        assert!(lines.contains("(speed/one-p99.svg)"), "{lines}");
        assert!(dir.path().join("speed/one-throughput.svg").is_file());
    }
}
