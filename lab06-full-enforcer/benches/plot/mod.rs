//! Draws what a packet costs against the number of rules, both by powers of ten.

use std::fmt::Write as _;

use lab01_count_packets::text::grouped;

use crate::packet::Curve;

/// Of the drawing: where the axes are, and how far a power of ten is.
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 250.0;
const DECADE_X: f64 = 80.0;
const DECADE_Y: f64 = 44.0;

/// Powers of ten: 10 to 100,000 rules, 10 to 1,000,000 nanoseconds.
const RULES: std::ops::RangeInclusive<u32> = 1..=5;
const NANOSECONDS: std::ops::RangeInclusive<u32> = 1..=6;

/// The curves in one panel.
pub fn drawing(curves: &[Curve]) -> String {
    let mut svg = String::from(
        "<svg viewBox=\"0 0 560 300\" role=\"img\" aria-label=\"What a packet costs against the number of rules, by powers \
         of ten: a straight line upwards for rule after rule, flatter ones for two tries and a hash and for the \
         enforcer\">\n",
    );
    for power in NANOSECONDS {
        let y = y(10_f64.powi(power.cast_signed()));
        let _ = writeln!(
            svg,
            r#"<path class="axis" d="M{LEFT} {y}H{}"/><text class="small end" x="{}" y="{}">{}</text>"#,
            LEFT + 4.0 * DECADE_X,
            LEFT - 6.0,
            y + 4.0,
            grouped(10_u64.pow(power))
        );
    }
    for power in RULES {
        let _ = writeln!(
            svg,
            r#"<text class="small middle" x="{}" y="{}">{}</text>"#,
            x(10_f64.powi(power.cast_signed())),
            BOTTOM + 18.0,
            grouped(10_u64.pow(power))
        );
    }
    let _ = writeln!(
        svg,
        r#"<text class="small" x="10" y="14">nanoseconds a packet, above an empty program</text><text class="small middle" x="{}" y="{}">rules</text>"#,
        LEFT + 2.0 * DECADE_X,
        BOTTOM + 36.0
    );
    let labels = apart(
        curves
            .iter()
            .map(|curve| curve.points.last().map_or(BOTTOM, height))
            .collect(),
    );
    for ((curve, class), label) in curves.iter().zip(["here", "there", "box"]).zip(labels) {
        let points = curve.points.iter();
        let path: Vec<String> = points
            .map(|point| format!("{:.1},{:.1}", x(point.0 as f64), height(point)))
            .collect();
        let _ = writeln!(
            svg,
            r#"<polyline class="{class}" style="fill: none" points="{}"/><text class="small" x="{}" y="{:.1}">{}</text>"#,
            path.join(" "),
            LEFT + 4.0 * DECADE_X + 6.0,
            label + 4.0,
            curve.name
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn x(rules: f64) -> f64 {
    LEFT + DECADE_X * (rules.log10() - 1.0)
}

fn y(nanoseconds: f64) -> f64 {
    BOTTOM - DECADE_Y * (nanoseconds.log10() - 1.0)
}

/// How high a point is; what the axis cannot show lies on it.
fn height((_, nanoseconds): &(usize, i64)) -> f64 {
    y((*nanoseconds as f64).max(10.0))
}

/// Where labels are written that belong to these heights: so far from each other that all can be read.
fn apart(heights: Vec<f64>) -> Vec<f64> {
    const LINE: f64 = 15.0;
    let mut order: Vec<usize> = (0..heights.len()).collect();
    order.sort_by(|one, other| heights[*one].total_cmp(&heights[*other]));
    let mut labels = heights;
    for pair in order.windows(2) {
        labels[pair[1]] = labels[pair[1]].max(labels[pair[0]] + LINE);
    }
    labels
}
