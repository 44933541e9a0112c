//! The history that explains an anomaly, drawn so that it can be read: one row for each process, operations as bars.
//!
//! What matters is which operation ended before which began. So time is not to scale: each begin and each end takes
//! one step, and a bar is long enough for its text wherever its steps allow it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    plots::Outcome,
    svg::{escape, short},
};

const STEP: f64 = 46.0;
const ROW: f64 = 34.0;
const NAMES: f64 = 110.0;
const CHARACTER: f64 = 6.6;
/// More are not drawn, only listed.
pub const DRAWN_MAX: usize = 60;

/// An operation of an explaining history; times are seconds since the begin of the run.
#[derive(Clone, Debug)]
pub struct Step {
    pub process: u64,
    pub text: String,
    pub begin: f64,
    /// `None`: nobody knows when it took effect, or whether.
    pub end: Option<f64>,
    pub outcome: Outcome,
}

/// What a checker found, and the smallest history that shows it.
#[derive(Clone, Debug)]
pub struct Anomaly {
    pub title: String,
    pub text: String,
    pub steps: Vec<Step>,
}

impl Anomaly {
    pub fn html(&self) -> String {
        let (title, text) = (escape(&self.title), escape(&self.text));
        if self.steps.is_empty() {
            return format!("<h3>{title}</h3>\n<pre>{text}</pre>\n");
        }
        let mut html = format!("<h3>{title}</h3>\n");
        if self.steps.len() <= DRAWN_MAX {
            html.push_str(&format!("<div class=wide>{}</div>\n", self.picture()));
        }
        html.push_str(&self.list());
        html.push_str(&format!("<details><summary>in the checker's words</summary><pre>{text}</pre></details>\n"));
        html
    }

    fn picture(&self) -> String {
        let places = self.places();
        let columns = places.values().map(|(_, end)| *end).max().unwrap_or(0) + 1;
        let processes: BTreeSet<u64> = self.steps.iter().map(|step| step.process).collect();
        let (width, height) = (NAMES + columns as f64 * STEP + 12.0, processes.len() as f64 * ROW + 10.0);
        let mut shapes = String::new();
        for (row, process) in processes.iter().enumerate() {
            let y = row as f64 * ROW + 5.0;
            let (names, middle) = (NAMES - 10.0, y + 17.0);
            shapes.push_str(&format!("<text x={names} y={middle} text-anchor=end>process {process}</text>\n"));
            for (index, step) in self.steps.iter().enumerate().filter(|(_, step)| step.process == *process) {
                let (begin, end) = places[&index];
                let (x, bar) = (NAMES + begin as f64 * STEP, (end - begin) as f64 * STEP - 4.0);
                let class = step.outcome.class();
                let text = format!("{} {}", index + 1, step.text);
                let (full, shown) = (escape(&text), escape(&fit(&text, bar - 10.0)));
                shapes.push_str(&format!(
                    "<g><title>{full}</title><rect class='bar {class}' x={x} y={y} width={bar} height=26 rx=4 />\
                     <text class=on x={} y={middle}>{shown}</text></g>\n",
                    x + 5.0
                ));
            }
        }
        format!("<svg style='width:{width}px' viewBox='0 0 {width} {height}' role=img>\n{shapes}</svg>")
    }

    /// By step, the columns of its begin and of its end. An operation without an end lasts until all others are over.
    fn places(&self) -> BTreeMap<usize, (usize, usize)> {
        let mut moments: Vec<(f64, bool, usize)> = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            moments.push((step.begin, false, index));
            moments.push((step.end.unwrap_or(f64::INFINITY), true, index));
        }
        moments.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let mut places: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        for (column, (_, ends, index)) in moments.into_iter().enumerate() {
            let place = places.entry(index).or_insert((column, column + 1));
            if ends {
                place.1 = column;
            }
        }
        // Steps of one process that follow each other share a row: each needs at least one step.
        for place in places.values_mut() {
            place.1 = place.1.max(place.0 + 1);
        }
        places
    }

    fn list(&self) -> String {
        let mut rows = String::new();
        for (index, step) in self.steps.iter().enumerate() {
            let end = step.end.map_or_else(|| "never".to_owned(), |end| format!("{end:.6}"));
            let class = step.outcome.class();
            rows.push_str(&format!(
                "<tr><td class=number>{}<td class=number>{:.6}<td class=number>{end}<td class=number>{}\
                 <td><span class='tag {class}'>{}</span><td><code>{}</code></tr>\n",
                index + 1,
                step.begin,
                short(step.process as f64),
                step.outcome.class(),
                escape(&step.text),
            ));
        }
        format!(
            "<div class=wide><table><tr><th class=number>#<th class=number>begin s\
             <th class=number>end s<th class=number>process\
             <th>outcome<th>operation</tr>\n{rows}</table></div>\n"
        )
    }
}

/// As much of the text as there is room for.
fn fit(text: &str, room: f64) -> String {
    let characters = (room / CHARACTER).max(1.0) as usize;
    if text.chars().count() <= characters {
        return text.to_owned();
    }
    let kept: String = text.chars().take(characters.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(process: u64, begin: f64, end: Option<f64>) -> Step {
        Step { process, text: "put x = 1".into(), begin, end, outcome: Outcome::Ok }
    }

    fn anomaly(steps: Vec<Step>) -> Anomaly {
        Anomaly { title: "lost".into(), text: String::new(), steps }
    }

    #[test]
    fn bars_keep_the_order_of_begins_and_ends() {
        let anomaly = anomaly(vec![step(1, 0.0, Some(1.0)), step(2, 0.5, None), step(3, 2.0, Some(3.0))]);
        let places = anomaly.places();
        assert!(places[&0].1 <= places[&2].0, "the first ended before the third began");
        assert!(places[&1].0 < places[&0].1, "the second began before the first ended");
        assert!(places[&1].1 > places[&2].1, "the second has no end");
    }

    #[test]
    fn bars_of_one_process_do_not_overlap() {
        let steps = (0..20).map(|index| step(1, f64::from(index), Some(f64::from(index) + 0.5))).collect();
        let places = anomaly(steps).places();
        let mut bars: Vec<(usize, usize)> = places.into_values().collect();
        bars.sort_unstable();
        assert!(bars.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }

    #[test]
    fn texts_are_cut_to_their_bars() {
        assert_eq!(fit("abcdefgh", CHARACTER * 4.0), "abc…");
        assert_eq!(fit("abc", CHARACTER * 4.0), "abc");
    }
}
