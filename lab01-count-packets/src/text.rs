//! Numbers and tables as people like to read them.

use std::fmt::Write as _;

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes with a binary unit: `1536` as `1.5 KiB`.
pub fn binary_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // Not 1024: what would be rounded to "1024.0 KiB" is "1.0 MiB".
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// A share from 0 to 1 as `12.5 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A table: the first column is text, aligned left, the others are numbers, aligned right.
#[derive(Clone, Debug)]
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// The least width of the first column, so that tables below one another line up.
const FIRST_COLUMN: usize = 26;
/// The least width of every other column.
const OTHER_COLUMNS: usize = 12;

impl Table {
    /// An empty table with these heads of columns.
    pub fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, which has a cell for every head.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.heads.len());
        self.rows.push(cells);
    }

    /// The lines of the table, heads first, without trailing spaces; `width` is at most the terminal's.
    pub fn lines(&self) -> Vec<String> {
        let heads = self.heads.iter().map(ToString::to_string).collect();
        let all = std::iter::once(&heads).chain(&self.rows);
        let mut widths: Vec<usize> = (0..self.heads.len())
            .map(|column| if column == 0 { FIRST_COLUMN } else { OTHER_COLUMNS })
            .collect();
        for row in all.clone() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        all.map(|row: &Vec<String>| line(row, &widths)).collect()
    }
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let mut text = String::new();
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        if column == 0 {
            let _ = write!(text, "{cell:<width$}");
        } else {
            let _ = write!(text, "  {cell:>width$}");
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn bytes_take_the_unit_that_keeps_them_short() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(binary_bytes(bytes), text);
        }
    }

    #[test]
    fn columns_line_up_whatever_their_cells() {
        let mut table = Table::new(&["source", "packets"]);
        table.row(vec!["192.0.2.1".into(), "7".into()]);
        table.row(vec![
            "2001:db8:1234:5678:9abc:def0:1234:5678".into(),
            "1,000,000,000,000".into(),
        ]);
        let lines = table.lines();
        let ends: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert_eq!(ends, [57, 57, 57], "{lines:#?}");
    }
}
