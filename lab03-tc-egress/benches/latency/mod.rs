//! What a rate does to the packets of a sender that sends twice as much: how long they wait, and how many are lost.
//!
//! The programs say so themselves, packet by packet, in real time: when a packet may leave is written on it, and read back
//! from the test run.

use std::{
    fmt::Write as _,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;
use lab01_count_packets::load;
use lab03_tc_egress::{
    policy::Policy,
    tables::{self, ProgramTables, now_ns},
};
use testbed::{
    bpf::{TestRun, test_run},
    packets,
};

const RATE: &str = "10mbit";
/// With IPv4 and UDP headers. 2,500 of these a second are 20 mbit.
const IP_BYTES: usize = 1000;
const PACKETS_PER_SECOND: u128 = 2500;
const SECONDS: usize = 5;
/// How many points a second a curve has.
const POINTS: usize = 10;

/// `TC_ACT_SHOT`.
const DROP: u32 = 2;
/// Of `struct __sk_buff`, the fields `tstamp` and `wire_len`, and all of it.
const TSTAMP: usize = 152;
const WIRE_LEN: usize = 160;
const SK_BUFF: usize = 192;

/// What became of the packets of a tenth of a second.
#[derive(Clone, Copy, Default)]
struct Point {
    sent: u32,
    lost: u32,
    waits_ns: u64,
}

impl Point {
    fn wait_ms(self) -> f64 {
        self.waits_ns as f64 / 1e6 / f64::from((self.sent - self.lost).max(1))
    }

    fn lost_percent(self) -> f64 {
        f64::from(self.lost) * 100.0 / f64::from(self.sent.max(1))
    }
}

type Curve = Vec<Point>;
/// What of a point is drawn.
type Value = fn(Point) -> f64;

/// Sends by both ways, and draws what came of it.
pub fn drawing() -> Result<String> {
    Ok(draw(&curve(true)?, &curve(false)?))
}

fn curve(can_wait: bool) -> Result<Curve> {
    let policy = Policy {
        shapes: vec![RATE.parse().map_err(anyhow::Error::msg)?],
        ..Policy::default()
    };
    let mut ebpf = tables::load(policy.max_flows)?;
    let program: &mut SchedClassifier = load::program(&mut ebpf, "lab03_egress", "SchedClassifier")?;
    program
        .load()
        .map_err(|error| load::explain_program("lab03_egress", error))?;
    let fd = program.fd()?.try_clone()?;
    let (mut tables, _) = ProgramTables::put(&mut ebpf, &policy)?;
    tables.set_can_wait(can_wait)?;
    let frame = packets::ethernet()
        .ipv4("192.0.2.1", "192.0.2.2")
        .udp(1, 53)
        .payload([0; IP_BYTES - 28])
        .build();
    let mut context = vec![0; SK_BUFF];
    context[WIRE_LEN..WIRE_LEN + 4].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    let run = TestRun {
        context: &context,
        ..TestRun::once(&frame)
    };
    let mut curve = vec![Point::default(); SECONDS * POINTS];
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        let elapsed = start.elapsed();
        let Some(point) = curve.get_mut((elapsed.as_millis() as usize) * POINTS / 1000) else {
            return Ok(curve);
        };
        if sent >= elapsed.as_micros() * PACKETS_PER_SECOND / 1_000_000 {
            thread::sleep(Duration::from_micros(200));
            continue;
        }
        sent += 1;
        let before_ns = now_ns();
        let outcome = test_run(fd.as_fd(), run)?;
        point.sent += 1;
        if outcome.retval == DROP {
            point.lost += 1;
            continue;
        }
        let departure = outcome
            .context_out
            .get(TSTAMP..TSTAMP + 8)
            .context("the kernel gave no context back")?;
        let departure_ns = u64::from_ne_bytes(departure.try_into()?);
        // 0 for at once.
        point.waits_ns += departure_ns.saturating_sub(before_ns);
    }
}

/// Two panels above each other, with both curves.
fn draw(waiting: &[Point], dropping: &[Point]) -> String {
    let mut svg = String::from(
        "<svg viewBox=\"0 0 460 306\" role=\"img\" aria-label=\"Of a sender that sends twice the rate: by waiting, \
         packets wait longer and longer up to two seconds, and only then half of them are lost; by dropping none waits, \
         and half are lost from the beginning\">\n",
    );
    for panel in &PANELS {
        panel.frame(&mut svg);
        // The dashed one on top: where they are the same, both are seen.
        panel.curve(&mut svg, waiting, "here");
        panel.curve(&mut svg, dropping, "there");
    }
    svg.push_str("</svg>\n");
    svg
}

const LEFT: f64 = 50.0;
const WIDTH: f64 = 390.0;
const HEIGHT: f64 = 90.0;

struct Panel {
    title: &'static str,
    top: f64,
    most: f64,
    value: Value,
    /// What stands beside the curves, and where.
    labels: &'static [(&'static str, f64, f64)],
}

const PANELS: [Panel; 2] = [
    Panel {
        title: "how long those wait that leave, in ms",
        top: 40.0,
        most: 2000.0,
        value: Point::wait_ms,
        labels: &[("waiting, by fq", 150.0, 106.0), ("dropping", 300.0, 122.0)],
    },
    Panel {
        title: "how many are lost, of a hundred",
        top: 190.0,
        most: 100.0,
        value: Point::lost_percent,
        labels: &[
            ("dropping", 80.0, 226.0),
            ("waiting, by fq", 100.0, 272.0),
            ("both", 300.0, 226.0),
        ],
    },
];

impl Panel {
    fn x(seconds: f64) -> f64 {
        LEFT + WIDTH * seconds / SECONDS as f64
    }

    fn y(&self, value: f64) -> f64 {
        self.top + HEIGHT * (1.0 - (value / self.most).min(1.0))
    }

    /// All but the curves.
    fn frame(&self, svg: &mut String) {
        let Self { title, top, labels, .. } = self;
        let _ = writeln!(
            svg,
            r#"<text class="small strong" x="10" y="{}">{title}</text>"#,
            top - 16.0
        );
        for value in [0.0, self.most / 2.0, self.most] {
            let y = self.y(value);
            let _ = writeln!(
                svg,
                r#"<path class="axis" d="M{LEFT} {y}H{}"/><text class="small end" x="{}" y="{}">{value}</text>"#,
                LEFT + WIDTH,
                LEFT - 6.0,
                y + 4.0
            );
        }
        for second in 0..=SECONDS {
            let _ = writeln!(
                svg,
                r#"<text class="small middle" x="{}" y="{}">{second} s</text>"#,
                Self::x(second as f64),
                top + HEIGHT + 18.0
            );
        }
        for (label, x, y) in *labels {
            let _ = writeln!(svg, r#"<text class="small" x="{x}" y="{y}">{label}</text>"#);
        }
    }

    fn curve(&self, svg: &mut String, curve: &[Point], class: &str) {
        let points: Vec<String> = (0..)
            .zip(curve)
            .map(|(index, point)| {
                let seconds = (f64::from(index) + 0.5) / POINTS as f64;
                format!("{:.1},{:.1}", Self::x(seconds), self.y((self.value)(*point)))
            })
            .collect();
        let _ = writeln!(
            svg,
            r#"<polyline class="{class}" fill="none" points="{}"/>"#,
            points.join(" ")
        );
    }
}
