//! What a checker says.

use std::{collections::BTreeMap, fmt};

/// A checker's answer. It proves something only if it looked at something.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    pub anomalies: Vec<Anomaly>,
    /// What could not be decided within bounds. No pass.
    pub undecided: Vec<String>,
    /// How many of what were looked at.
    pub looked_at: BTreeMap<&'static str, u64>,
}

/// Something that cannot have happened in a store that keeps its promises.
#[derive(Clone, Debug, PartialEq)]
pub struct Anomaly {
    /// As the field calls it.
    pub name: &'static str,
    pub explanation: String,
    /// The entries of the history that show it.
    pub entries: Vec<usize>,
}

impl Verdict {
    pub fn passes(&self) -> bool {
        self.anomalies.is_empty() && self.undecided.is_empty() && self.looked_at.values().any(|count| *count > 0)
    }

    /// The distinct names of what was found.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = self.anomalies.iter().map(|anomaly| anomaly.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(super) fn count(&mut self, what: &'static str, many: usize) {
        *self.looked_at.entry(what).or_default() += many as u64;
    }

    pub(super) fn found(&mut self, name: &'static str, entries: impl Into<Vec<usize>>, explanation: impl fmt::Display) {
        self.anomalies.push(Anomaly { name, explanation: explanation.to_string(), entries: entries.into() });
    }

    /// The verdict of two checks together.
    #[must_use]
    pub fn and(mut self, other: Verdict) -> Verdict {
        self.anomalies.extend(other.anomalies);
        self.undecided.extend(other.undecided);
        for (what, count) in other.looked_at {
            *self.looked_at.entry(what).or_default() += count;
        }
        self
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for anomaly in &self.anomalies {
            writeln!(f, "{}: {}", anomaly.name, anomaly.explanation)?;
        }
        for undecided in &self.undecided {
            writeln!(f, "undecided: {undecided}")?;
        }
        let counts: Vec<String> = self.looked_at.iter().map(|(what, count)| format!("{count} {what}")).collect();
        write!(f, "looked at {}", if counts.is_empty() { "nothing".to_owned() } else { counts.join(", ") })
    }
}
