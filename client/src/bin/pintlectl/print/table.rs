//! The format `table`: a frame around columns, headings in capitals and centred, cells at the right.

use std::fmt;

pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&str], rows: Vec<Vec<String>>) -> Table {
        Table { headings: headings.iter().map(|heading| heading.to_uppercase()).collect(), rows }
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.chain(&self.headings[column..=column]).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..self.headings.len()).map(width).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let frame = |left: &str, middle: &str, right: &str| {
            let columns: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
            format!("{left}{}{right}", columns.join(middle))
        };
        let row = |cells: &[String], centred: bool| {
            let columns = cells.iter().zip(&widths).map(|(cell, width)| match centred {
                true => format!(" {cell:^width$} "),
                false => format!(" {cell:>width$} "),
            });
            format!("│{}│", columns.collect::<Vec<String>>().join("│"))
        };
        writeln!(f, "{}", frame("┌", "┬", "┐"))?;
        writeln!(f, "{}", row(&self.headings, true))?;
        // A table without rows has nothing to set apart from its headings.
        if !self.rows.is_empty() {
            writeln!(f, "{}", frame("├", "┼", "┤"))?;
        }
        for cells in &self.rows {
            writeln!(f, "{}", row(cells, false))?;
        }
        writeln!(f, "{}", frame("└", "┴", "┘"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["127.0.0.1:2379".to_string(), "7".to_string()]];
        let expected = "\
┌────────────────┬──────┐
│    ENDPOINT    │ HASH │
├────────────────┼──────┤
│ 127.0.0.1:2379 │    7 │
└────────────────┴──────┘
";
        assert_eq!(Table::new(&["endpoint", "hash"], rows).to_string(), expected);
    }
}
