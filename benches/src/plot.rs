//! A comparison as pictures: SVG files that need no other file.

use crate::figures::{PER_MILLE, Turn};
use crate::growth::Series;
use crate::report::Report;
use crate::statistics::{Spread, median, spread};
use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
/// What a line of the title has room for, in most fonts.
const TITLE_CHARACTERS: usize = 100;
/// Room for names right of a plot.
const NAMES: f64 = 200.0;
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#333}.title{font-size:16px}.grid{stroke:#ddd}.curve{fill:none;stroke-width:2}.whisker{stroke:#333}";
/// Colours that people with a colour blindness tell apart (Okabe and Ito), then darker ones.
const COLOURS: [&str; 14] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442",
    "#5a3d8a", "#7f7f7f", "#8c564b", "#17becf", "#2ca02c", "#d62728",
];

/// The distribution of each peer's latencies under the open loop: time on a logarithmic scale, and the share of requests on one that
/// widens towards the slowest (each line is ten times as rare as the one below). A curve is the median over the rounds, share by share.
pub fn latency(report: &Report) -> String {
    let curves: Vec<(String, Vec<f64>)> = report
        .subjects()
        .into_iter()
        .filter(|(_, protocol)| *protocol == report.protocol)
        .map(|subject| {
            let points = PER_MILLE
                .iter()
                .filter_map(|per_mille| {
                    median(&report.values(subject, |turn| turn.open.latency_us(*per_mille)))
                })
                .collect();
            (subject.0.to_string(), points)
        })
        .collect();
    let height = 520.0;
    let (right, bottom) = (WIDTH - NAMES, height - 60.0);
    let axis = Axis::of(curves.iter().flat_map(|(_, points)| points), LEFT, right);
    let y = |per_mille: f64| bottom - rarity(per_mille) / rarity(999.0) * (bottom - TOP);
    let mut svg = opened(
        height,
        &format!(
            "Latency from the intended start, {} over TLS 1.3",
            report.protocol
        ),
    );
    for exponent in axis.from..=axis.to {
        let us = 10_f64.powi(exponent);
        let x = axis.x(us);
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{us} µs</text>",
            bottom + 20.0
        );
    }
    for (per_mille, name) in [
        (0.0, "0"),
        (500.0, "50 %"),
        (900.0, "90 %"),
        (990.0, "99 %"),
        (999.0, "99.9 %"),
    ] {
        let y = y(per_mille);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for (place, ((name, points), colour)) in
        (0_u16..).zip(curves.iter().zip(COLOURS.iter().cycle()))
    {
        let _ = write!(
            svg,
            "<polyline class=\"curve\" stroke=\"{colour}\" points=\""
        );
        for (per_mille, us) in PER_MILLE.iter().zip(points) {
            let _ = write!(svg, "{:.1},{:.1} ", axis.x(*us), y(*per_mille as f64));
        }
        let at = TOP + 22.0 * f64::from(place);
        let _ = writeln!(
            svg,
            "\"/><rect x=\"{:.0}\" y=\"{at:.0}\" width=\"14\" height=\"14\" fill=\"{colour}\"/><text x=\"{:.0}\" y=\"{:.0}\">{name}</text>",
            right + 20.0,
            right + 40.0,
            at + 12.0
        );
    }
    svg + "</svg>\n"
}

/// What a request costs each peer in CPU time, under the open loop and at saturation: medians, with the least and the most of the rounds.
pub fn cost(report: &Report) -> String {
    let rows: Vec<(String, [Option<Spread>; 2])> = report
        .subjects()
        .into_iter()
        .map(|subject| {
            let of = |figure: fn(&Turn) -> f64| {
                spread(&report.values(subject, |turn| Some(figure(turn))))
            };
            (
                format!("{}, {}", subject.0, subject.1),
                [
                    of(|turn| turn.open.cpu_us),
                    of(|turn| turn.saturation.cpu_us),
                ],
            )
        })
        .collect();
    let most = rows
        .iter()
        .flat_map(|(_, spreads)| spreads.iter().flatten())
        .map(|spread| spread.max)
        .fold(1.0, f64::max);
    let row_height = 44.0;
    let height = TOP + row_height * rows.len() as f64 + 50.0;
    let left = NAMES + 20.0;
    let x = |us: f64| left + us / most * (WIDTH - left - 80.0);
    let mut svg = opened(
        height,
        "CPU a request: dark under the open loop, light at saturation (bars: medians; lines: least and most of the rounds)",
    );
    for (place, (name, spreads)) in (0_u16..).zip(&rows) {
        let top = TOP + row_height * f64::from(place);
        let _ = writeln!(
            svg,
            "<text x=\"{NAMES}\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>",
            top + 24.0
        );
        for ((spread, colour), top) in spreads
            .iter()
            .zip(["#0072b2", "#8fc1e0"])
            .zip([top + 2.0, top + 20.0])
        {
            let Some(spread) = spread else { continue };
            let middle = top + 8.0;
            let _ = writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{top}\" width=\"{:.1}\" height=\"16\" fill=\"{colour}\"/><line class=\"whisker\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\"/><text x=\"{:.1}\" y=\"{:.0}\">{:.1} µs</text>",
                x(spread.median) - left,
                x(spread.min),
                x(spread.max),
                x(spread.max) + 6.0,
                middle + 5.0,
                spread.median
            );
        }
    }
    svg + "</svg>\n"
}

/// How a cost grows, both axes logarithmic: medians with the least and the most of the rounds, and dashed what growth in proportion would be.
pub fn growth(series: &Series) -> String {
    let points: Vec<(f64, Spread)> = series
        .points
        .iter()
        .filter_map(|point| Some((f64::from(point.n), spread(&point.us)?)))
        .collect();
    let height = 520.0;
    let (right, bottom) = (WIDTH - 60.0, height - 60.0);
    let along = Axis::of(points.iter().map(|(n, _)| n), LEFT, right);
    let us = points.iter().flat_map(|(_, us)| [&us.min, &us.max]);
    // Upwards is towards 0.
    let up = Axis::of(us, bottom, TOP);
    let mut svg = opened(height, series.title);
    for exponent in along.from..=along.to {
        let n = 10_f64.powi(exponent);
        let x = along.x(n);
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{n} {}{}</text>",
            bottom + 20.0,
            series.unit,
            if exponent == 0 { "" } else { "s" }
        );
    }
    for exponent in up.from..=up.to {
        let us = 10_f64.powi(exponent);
        let y = up.x(us);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{us} µs</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    if let (Some((least, first)), Some((most, _))) = (points.first(), points.last()) {
        // As far as the picture goes.
        let most = most.min(least * 10_f64.powi(up.to) / first.median);
        let _ = writeln!(
            svg,
            "<line class=\"whisker\" stroke-dasharray=\"4 4\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            along.x(*least),
            along.x(most),
            up.x(first.median),
            up.x(first.median * most / least)
        );
    }
    let _ = write!(
        svg,
        "<polyline class=\"curve\" stroke=\"#0072b2\" points=\""
    );
    for (n, us) in &points {
        let _ = write!(svg, "{:.1},{:.1} ", along.x(*n), up.x(us.median));
    }
    svg.push_str("\"/>\n");
    for (n, us) in &points {
        let (x, y) = (along.x(*n), up.x(us.median));
        let _ = writeln!(
            svg,
            "<line class=\"whisker\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#0072b2\"/>",
            up.x(us.min),
            up.x(us.max)
        );
    }
    svg + "</svg>\n"
}

fn opened(height: f64, title: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (place, line) in (0_u16..).zip(lines(title)) {
        let y = 22 + 20 * place;
        let _ = writeln!(
            svg,
            "<text class=\"title\" x=\"20\" y=\"{y}\">{line}</text>"
        );
    }
    svg
}

/// A title in lines that fit: there is room for two.
fn lines(title: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in title.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < TITLE_CHARACTERS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// How many times ten a request among so many is: 0 for any, 1 for the slowest tenth, 3 for the slowest thousandth.
fn rarity(per_mille: f64) -> f64 {
    -(1.0 - per_mille.min(999.0) / 1000.0).log10()
}

/// Times between two powers of ten, on a logarithmic scale.
struct Axis {
    from: i32,
    to: i32,
    left: f64,
    right: f64,
}

impl Axis {
    fn of<'a>(values: impl Iterator<Item = &'a f64>, left: f64, right: f64) -> Self {
        let known = values.copied().filter(|us| *us > 0.0 && us.is_finite());
        let (least, most) = known.fold((f64::INFINITY, 1.0_f64), |(least, most), us| {
            (least.min(us), most.max(us))
        });
        let from = power(least.min(most).log10().floor());
        Self {
            from,
            to: power(most.log10().ceil()).max(from + 1),
            left,
            right,
        }
    }

    fn x(&self, us: f64) -> f64 {
        let exponent = us.max(10_f64.powi(self.from)).log10();
        let share = (exponent - f64::from(self.from)) / f64::from(self.to - self.from);
        self.left + share * (self.right - self.left)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "of times between a nanosecond and an hour"
)]
fn power(exponent: f64) -> i32 {
    exponent.clamp(-3.0, 10.0) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_between_powers_of_ten() {
        let axis = Axis::of([90.0, 1200.0].iter(), 10.0, 110.0);
        assert_eq!((axis.from, axis.to), (1, 4));
        for (us, x) in [(10.0, 10.0), (10_000.0, 110.0), (1.0, 10.0)] {
            assert!((axis.x(us) - x).abs() < 1e-9, "{us}");
        }
        let nothing = Axis::of([].iter(), 0.0, 1.0);
        assert!(nothing.from < nothing.to);
    }

    #[test]
    fn long_titles_take_two_lines() {
        assert_eq!(lines("one two"), ["one two"]);
        let long = "word ".repeat(38);
        let lines = lines(long.trim_end());
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.len() <= TITLE_CHARACTERS));
        assert_eq!(lines.join(" "), long.trim_end());
    }

    #[test]
    fn each_line_is_ten_times_as_rare_as_the_one_below() {
        for (per_mille, rare) in [(0.0, 0.0), (900.0, 1.0), (990.0, 2.0), (999.0, 3.0)] {
            assert!((rarity(per_mille) - rare).abs() < 1e-9, "{per_mille}");
        }
    }
}
