//! What was aimed at, and what has come of it.

use std::fmt::Write as _;

use serde::Serialize;
use testbed::figures::{Figure, Figures, Shown, markdown_table};

/// A row for each aim.
#[derive(Default, Serialize)]
pub struct Aims {
    rows: Vec<Aim>,
}

#[derive(Serialize)]
struct Aim {
    what: String,
    at_most: f64,
    measured: f64,
    unit: &'static str,
}

impl Aims {
    /// What a row of figures has above its floor is to be so many nanoseconds at most.
    pub fn above_floor(&mut self, what: &str, figures: &Figures, row: &str, at_most_ns: i32) {
        let measured = found(figures, row).above_floor_ns as f64;
        self.add(what, at_most_ns.into(), measured, "ns");
    }

    /// What a row of figures takes is to be so many times its floor at most.
    pub fn times_floor(&mut self, what: &str, figures: &Figures, row: &str, at_most: f64) {
        let figure = found(figures, row);
        let times = f64::from(figure.program_ns) / f64::from(figure.floor_ns.max(1));
        self.add(what, at_most, times, "×");
    }

    /// What a row of figures has above its floor is to be so many times that of another row at most.
    pub fn times_other(&mut self, what: &str, figures: &Figures, [row, other]: [&str; 2], at_most: f64) {
        let [above, of_other] = [row, other].map(|row| found(figures, row).above_floor_ns.max(1) as f64);
        self.add(what, at_most, above / of_other, "×");
    }

    /// What a row of figures takes is to be so many percent above its floor at most.
    pub fn percent_above_floor(&mut self, what: &str, figures: &Figures, row: &str, at_most: f64) {
        let figure = found(figures, row);
        let percent = figure.above_floor_ns as f64 * 100.0 / f64::from(figure.floor_ns.max(1));
        self.add(what, at_most, percent, "%");
    }

    /// Anything else.
    pub fn add(&mut self, what: &str, at_most: f64, measured: f64, unit: &'static str) {
        self.rows.push(Aim {
            what: what.to_owned(),
            at_most,
            measured,
            unit,
        });
    }

    fn cells(&self) -> Vec<[String; 4]> {
        let number = |number: f64| {
            if number < 10.0 {
                format!("{number:.2}")
            } else {
                format!("{number:.0}")
            }
        };
        let rows = self.rows.iter();
        rows.map(|aim| {
            let met = if aim.measured <= aim.at_most { "met" } else { "missed" };
            [
                aim.what.clone(),
                format!("{} {}", number(aim.at_most), aim.unit),
                number(aim.measured),
                met.to_owned(),
            ]
        })
        .collect()
    }
}

/// The row of this name.
///
/// # Panics
///
/// If there is none: an aim may not go missing because a row is called otherwise.
fn found<'a>(figures: &'a Figures, row: &str) -> &'a Figure {
    let found = figures.rows.iter().find(|figure| figure.name == row);
    found.unwrap_or_else(|| panic!("no row is called {row:?}"))
}

const HEADS: [&str; 4] = ["", "at most", "measured", ""];

impl Shown for Aims {
    fn table(&self) -> String {
        let mut text = String::new();
        for [what, aim, measured, met] in self.cells() {
            let _ = writeln!(text, "{what:<64}  {aim:>8}  {measured:>8}  {met}");
        }
        text
    }

    fn markdown(&self) -> String {
        markdown_table(&HEADS, self.cells())
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("aims have no map with keys that JSON lacks")
    }
}
