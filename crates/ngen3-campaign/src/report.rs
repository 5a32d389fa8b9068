//! The closing table of a campaign.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

/// Results of a campaign, a row for each scenario.
#[derive(Debug, Default)]
pub struct Report {
    columns: Vec<&'static str>,
    rows: Vec<(String, BTreeMap<&'static str, u64>)>,
    has_sums: bool,
}

impl Report {
    /// Makes an empty table with these columns; `lost` is the last of each.
    pub fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.iter().copied().chain(["lost"]).collect(), has_sums: true, ..Self::default() }
    }

    /// Leaves out the sums, of columns whose rows cannot be added up.
    pub fn without_sums(self) -> Self {
        Self { has_sums: false, ..self }
    }

    /// Begins a row, to which further counts belong.
    pub fn row(&mut self, name: &str) {
        self.rows.push((name.to_owned(), BTreeMap::new()));
    }

    /// Adds to a column of the last row.
    pub fn add(&mut self, column: &'static str, count: u64) {
        debug_assert!(self.columns.contains(&column), "no column {column}");
        if let Some((_, counts)) = self.rows.last_mut() {
            *counts.entry(column).or_default() += count;
        }
    }

    /// Adds a loss to the last row, and prints it with the command that repeats it.
    pub fn lose(&mut self, reason: &str, again: &str) {
        self.add("lost", 1);
        let name = self.rows.last().map(|(name, _)| name.clone()).unwrap_or_default();
        let text = format!("LOST {name}: {reason}\n     again: {again}");
        clear();
        println!("{text}");
    }

    /// Returns the sum of a column.
    pub fn sum(&self, column: &str) -> u64 {
        self.rows.iter().filter_map(|(_, counts)| counts.get(column)).sum()
    }

    /// Shows how far the last row is.
    pub fn progress(&self, done: usize, of: usize) {
        let Some((name, _)) = self.rows.last() else { return };
        if std::io::stdout().is_terminal() {
            print!("\r\x1b[K{name}: {done}/{of}");
            let _ = std::io::stdout().flush();
        }
    }

    /// Prints the last row, which is complete.
    pub fn row_done(&self) {
        clear();
        if let Some((name, counts)) = self.rows.last() {
            let counts: Vec<_> =
                self.columns.iter().filter_map(|name| Some(format!("{} {name}", counts.get(name)?))).collect();
            println!("{name}: {}", counts.join(", "));
        }
    }

    /// Returns the table, with sums.
    pub fn table(&self) -> String {
        let sums = self.columns.iter().map(|&name| (name, self.sum(name))).collect();
        let rows = self
            .rows
            .iter()
            .map(|(name, counts)| (name.as_str(), counts))
            .chain(self.has_sums.then_some(("sum", &sums)));
        let rows: Vec<_> = rows.collect();
        let widest = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default().max("scenario".len());
        let mut text = format!("| {:widest$} |", "scenario");
        self.columns.iter().for_each(|name| _ = write!(text, " {name:>7} |"));
        _ = write!(text, "\n|{}|", "-".repeat(widest + 2));
        self.columns.iter().for_each(|name| _ = write!(text, "{}:|", "-".repeat(name.len().max(7) + 1)));
        for (name, counts) in rows {
            _ = write!(text, "\n| {name:widest$} |");
            for column in &self.columns {
                _ = write!(text, " {:>1$} |", counts.get(column).copied().unwrap_or(0), column.len().max(7));
            }
        }
        text
    }
}

/// Clears the line of the progress.
fn clear() {
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_of_a_table_is_the_sum() {
        let mut report = Report::new(&["tries", "old"]);
        report.row("a");
        report.add("tries", 3);
        report.row("b");
        report.add("tries", 4);
        report.add("old", 2);
        report.lose("gone", "scripts/campaign");
        assert_eq!((report.sum("tries"), report.sum("lost")), (7, 1));
        let table = report.table();
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(cells(table.lines().next().unwrap()), ["", "scenario", "tries", "old", "lost", ""]);
        assert_eq!(cells(table.lines().last().unwrap()), ["", "sum", "7", "2", "1", ""]);
    }
}
