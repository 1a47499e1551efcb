//! A measurement as a picture: one HTML file that needs no other, the distribution of each case on a logarithmic scale and its figures below.

use std::fmt::Write as _;

use super::report::{Measurement, Row};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 40.0;

/// The page.
pub(crate) fn html(measured: &Measurement) -> String {
    let mut page = String::new();
    let title = format!("{}: what each case costs", measured.control);
    let intro = "Time inside of the plugin for one exchange, hostcalls included. The curve tells how many of a hundred exchanges took no longer.";
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{} on {}. {intro}</p>\n",
        escaped(&measured.cases),
        escaped(&measured.module),
        title = escaped(&title),
    );
    for row in &measured.measured {
        let _ = write!(
            page,
            "<h2>{}</h2>\n{}\n<pre>{}</pre>\n",
            escaped(&row.case),
            curve(row),
            escaped(&row.to_string())
        );
    }
    for it in &measured.not_measured {
        let _ = writeln!(
            page,
            "<p>Not measured: {} ({})</p>",
            escaped(&it.case),
            escaped(&it.reason)
        );
    }
    page.push_str("</body></html>\n");
    page
}

const STYLE: &str = "body{font:15px system-ui,sans-serif;max-width:760px;margin:2em auto;color:#222}pre{overflow-x:auto;background:#f6f6f6;padding:1em}svg{width:100%}text{font-size:12px;fill:#555}.grid{stroke:#ddd}.curve{fill:none;stroke:#0a58ca;stroke-width:2}.median{stroke:#b02a37;stroke-dasharray:4}";

/// Where a time stands between two powers of ten.
struct Axis {
    from: i32,
    to: i32,
}

impl Axis {
    fn of(values: &[f64]) -> Self {
        let known = values.iter().copied().filter(|us| *us > 0.0);
        let (least, most) = known.fold((f64::INFINITY, 0.001_f64), |(least, most), us| {
            (least.min(us), most.max(us))
        });
        let least = if least.is_finite() { least } else { most };
        let from = power(least.log10().floor());
        Self {
            from,
            to: power(most.log10().ceil()).max(from + 1),
        }
    }

    fn x(&self, us: f64) -> f64 {
        let exponent = us.max(10_f64.powi(self.from)).log10();
        let share = (exponent - f64::from(self.from)) / f64::from(self.to - self.from);
        MARGIN + share * (WIDTH - 2.0 * MARGIN)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "of times between a nanosecond and an hour"
)]
fn power(exponent: f64) -> i32 {
    exponent.clamp(-3.0, 10.0) as i32
}

fn y(percent: f64) -> f64 {
    HEIGHT - MARGIN - percent / 100.0 * (HEIGHT - 2.0 * MARGIN)
}

fn curve(row: &Row) -> String {
    let axis = Axis::of(&row.distribution_us);
    let (left, right, bottom) = (MARGIN, WIDTH - MARGIN, y(0.0));
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for exponent in axis.from..=axis.to {
        let us = 10_f64.powi(exponent);
        let x = axis.x(us);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{MARGIN}\" y2=\"{bottom}\"/><text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{us} µs</text>",
            bottom + 18.0
        );
    }
    for percent in [0.0, 50.0, 90.0, 99.0] {
        let y = y(percent);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{percent}%</text>",
            left - 6.0,
            y + 4.0
        );
    }
    svg.push_str("<polyline class=\"curve\" points=\"");
    for (percent, us) in (1_u8..=100).zip(&row.distribution_us) {
        let _ = write!(svg, "{:.1},{:.1} ", axis.x(*us), y(f64::from(percent)));
    }
    let median = axis.x(row.exchange.p50_us);
    let _ = write!(
        svg,
        "\"/><line class=\"median\" x1=\"{median:.1}\" x2=\"{median:.1}\" y1=\"{MARGIN}\" y2=\"{bottom}\"/><text x=\"{:.1}\" y=\"{:.0}\">median {:.2} µs</text></svg>",
        median + 5.0,
        MARGIN - 6.0,
        row.exchange.p50_us
    );
    svg
}

/// As text of HTML.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_between_powers_of_ten() {
        let axis = Axis::of(&[0.9, 1.2, 37.0]);
        assert_eq!((axis.from, axis.to), (-1, 2));
        assert!((axis.x(0.1) - MARGIN).abs() < 1e-9);
        assert!((axis.x(100.0) - (WIDTH - MARGIN)).abs() < 1e-9);
        let nothing = Axis::of(&[0.0]);
        assert!(nothing.from < nothing.to && nothing.x(0.0) >= MARGIN);
    }

    #[test]
    fn names_are_no_markup() {
        assert_eq!(escaped("<b>&\"c\""), "&lt;b&gt;&amp;&quot;c&quot;");
    }
}
