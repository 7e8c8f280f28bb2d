//! Charts as inline SVG: colours from the page's style, a text alternative in each.

use std::fmt::Write;

/// Size of the drawing; the page scales it to its column.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 224.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// More points than this are averaged in runs of equal length.
const MOST_POINTS: usize = 400;
/// What of a bar's label fits; the text alternative has all of it.
const LABEL_CHARACTERS: usize = 48;

/// One line of a chart.
pub struct Line {
    pub name: String,
    /// Which colour of the page.
    pub colour: usize,
    pub dashed: bool,
    pub points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    /// Faint as measured, and smoothed over it.
    Smoothed,
    /// With a mark at each point.
    Marked,
}

pub struct Chart<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub lines: &'a [Line],
    pub drawn: Drawn,
    /// Ends of the y axis; None fits the points.
    pub range: Option<(f64, f64)>,
    /// A horizontal line to compare with, and its name.
    pub baseline: Option<(f64, &'a str)>,
}

/// Text as HTML and SVG show it. Control characters become visible.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(visible(c)),
        }
    }
    out
}

/// Control characters, and those that turn the direction of what follows, become visible.
pub fn visible(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// At most four significant digits, without a tail of zeros.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "-".into();
    }
    if size >= 10_000.0 {
        return match size {
            s if s >= 1e9 => format!("{}G", short(value / 1e9)),
            s if s >= 1e6 => format!("{}M", short(value / 1e6)),
            _ => format!("{}k", short(value / 1e3)),
        };
    }
    if size > 0.0 && size < 1e-3 {
        return format!("{value:.1e}");
    }
    let digits = if size >= 100.0 {
        0
    } else if size >= 10.0 {
        1
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// Round numbers within a range, about `count` of them.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let all = (0..=2 * count as i64 + 2).map(|i| (first + i) as f64 * step);
    all.take_while(|tick| *tick <= high + step * 1e-9).collect()
}

/// Mean over about a twentieth of the points, half of them before and half after; fewer towards the ends.
pub fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let most = points.len() / 40;
    let mean = |i: usize| {
        let half = most.min(i).min(points.len() - 1 - i);
        let around = &points[i - half..=i + half];
        around.iter().map(|point| point.1).sum::<f64>() / around.len() as f64
    };
    points.iter().enumerate().map(|(i, point)| (point.0, mean(i))).collect()
}

fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let run = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(run).map(mean).collect()
}

struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn of(chart: &Chart) -> Option<Self> {
        let points = || chart.lines.iter().flat_map(|line| &line.points);
        let bounds = |of: fn(&(f64, f64)) -> f64| {
            let low = points().map(of).reduce(f64::min)?;
            let high = points().map(of).reduce(f64::max)?;
            Some((low, high))
        };
        let (x, mut y) = (bounds(|p| p.0)?, bounds(|p| p.1)?);
        if let Some((value, _)) = chart.baseline {
            y = (y.0.min(value), y.1.max(value));
        }
        // A flat line lies in the middle.
        let room = if y.1 - y.0 > 1e-12 { (y.1 - y.0) * 0.06 } else { y.0.abs().max(1.0) * 0.1 };
        let lowest = if y.0 >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        let y = chart.range.unwrap_or(((y.0 - room).max(lowest), y.1 + room));
        Some(Self { x: if x.1 > x.0 { x } else { (x.0 - 1.0, x.0 + 1.0) }, y })
    }

    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = ((y - self.y.0) / (self.y.1 - self.y.0)).clamp(0.0, 1.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }
}

impl Chart<'_> {
    /// Nothing where there is no point.
    pub fn svg(&self) -> Option<String> {
        let axes = Axes::of(self)?;
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.description())
        );
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in ticks(axes.y.0, axes.y.1, 4) {
            let (_, y) = axes.at((axes.x.0, tick));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 5.0,
                y + 3.5,
                short(tick)
            );
        }
        for tick in ticks(axes.x.0, axes.x.1, 5) {
            let (x, _) = axes.at((tick, axes.y.0));
            let _ = write!(
                out,
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 13.0,
                short(tick)
            );
        }
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 5.0,
            escape(self.x)
        );
        if let Some((value, name)) = self.baseline {
            let (_, y) = axes.at((axes.x.0, value));
            let _ = write!(
                out,
                "<line class=\"base\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                y - 4.0,
                escape(name)
            );
        }
        for line in self.lines.iter().filter(|line| !line.points.is_empty()) {
            self.draw(&mut out, &axes, line);
        }
        out.push_str("</svg>");
        Some(out)
    }

    fn draw(&self, out: &mut String, axes: &Axes, line: &Line) {
        let colour = line.colour;
        let dash = if line.dashed { " dash" } else { "" };
        let path = |points: &[(f64, f64)]| {
            let points = points.iter().map(|point| axes.at(*point));
            points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
        };
        match self.drawn {
            Drawn::Smoothed => {
                let _ = write!(
                    out,
                    "<polyline class=\"raw s{colour}\" points=\"{}\"/>\
                     <polyline class=\"line s{colour}{dash}\" points=\"{}\"/>",
                    path(&thinned(&line.points)),
                    path(&thinned(&smooth(&line.points)))
                );
            }
            Drawn::Marked => {
                let points = path(&line.points);
                let _ = write!(out, "<polyline class=\"line s{colour}{dash}\" points=\"{points}\"/>");
                // A single point is what the curve is drawn for; one of many has no room for marks.
                let radius = if line.points.len() == 1 { 5.0 } else { 2.4 };
                for (x, y) in line.points.iter().filter(|_| line.points.len() <= 30).map(|p| axes.at(*p)) {
                    let _ = write!(
                        out,
                        "<circle class=\"mark s{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"
                    );
                }
            }
        }
    }

    /// What the drawing shows, in words.
    fn description(&self) -> String {
        let mut text = format!("{} by {}.", self.title, self.x);
        for line in self.lines {
            if let (Some(first), Some(last)) = (line.points.first(), line.points.last()) {
                let ends = (short(first.1), short(last.1), short(first.0), short(last.0));
                let _ = write!(text, " {}: {} at {}, {} at {}.", line.name, ends.0, ends.2, ends.1, ends.3);
            }
        }
        text
    }
}

/// One bar after another, each with its number.
pub struct Bar<'a> {
    pub label: &'a str,
    /// Colour and value of each bar of the label.
    pub values: Vec<(usize, f64)>,
}

pub fn bars(title: &str, names: &[&str], rows: &[Bar]) -> String {
    let most = rows.iter().flat_map(|row| &row.values).map(|(_, value)| *value).fold(1.0, f64::max);
    let each: usize = rows.iter().map(|row| 17 + 11 * row.values.len()).sum();
    let mut text = format!("{title}.");
    for row in rows {
        let values: Vec<String> = names
            .iter()
            .zip(&row.values)
            .map(|(name, (_, value))| format!("{name} {}", short(*value)))
            .collect();
        let _ = write!(text, " {}: {}.", row.label, values.join(", "));
    }
    let mut out =
        format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">", each + 6, escape(&text));
    let mut y = 12.0;
    for row in rows {
        let mut label: String = row.label.chars().take(LABEL_CHARACTERS).collect();
        if label.len() < row.label.len() {
            label.push_str(" ...");
        }
        let _ = write!(out, "<text x=\"2\" y=\"{y}\">{}</text>", escape(&label));
        y += 4.0;
        for (colour, value) in &row.values {
            let width = (WIDTH - 44.0) * value / most;
            let _ = write!(
                out,
                "<rect class=\"bar s{colour}\" x=\"2\" y=\"{y}\" width=\"{width:.1}\" height=\"9\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>",
                width + 6.0,
                y + 8.5,
                short(*value)
            );
            y += 11.0;
        }
        y += 13.0;
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_a_constant_and_does_not_lag() {
        let flat: Vec<_> = (0..100).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smooth(&flat).iter().all(|(_, y)| (y - 3.0).abs() < 1e-12));
        let jump: Vec<_> = (0..100).map(|i| (f64::from(i), f64::from(u8::from(i >= 50)))).collect();
        let smoothed = smooth(&jump);
        // Means of five.
        assert_eq!(
            [0, 47, 48, 49, 50, 51, 52, 99].map(|i| smoothed[i].1),
            [0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
        );
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0, 4), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(ticks(3.0, 98.0, 5), [20.0, 40.0, 60.0, 80.0]);
        assert_eq!(
            [0.0, 0.25, 1234.0, 12_345.0, 2e6, 1e-5].map(short),
            ["0", "0.25", "1234", "12.3k", "2M", "1.0e-5"]
        );
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<a href=\"x\">&'\u{1b}"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\u{fffd}");
        let line =
            Line { name: "<script>".into(), colour: 0, dashed: false, points: vec![(1.0, 2.0), (2.0, 3.0)] };
        let chart = Chart {
            title: "t",
            x: "step",
            lines: &[line],
            drawn: Drawn::Smoothed,
            range: None,
            baseline: None,
        };
        let svg = chart.svg().unwrap();
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;: 2 at 1, 3 at 2."), "{svg}");
    }
}
