//! The results of loads as an SVG picture: the distributions of their times, and the gaps of streams over time.

use std::fmt::Write as _;

use super::summary::Row;

const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 220.0;
const MARGIN: f64 = 46.0;
/// Colours that people with any kind of sight tell apart (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// One scale of a panel.
#[derive(Clone, Copy)]
struct Scale {
    least: f64,
    most: f64,
    is_log: bool,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        let of = |value: f64| if self.is_log { value.max(self.least).log10() } else { value };
        (of(value) - of(self.least)) / (of(self.most) - of(self.least)).max(f64::MIN_POSITIVE)
    }

    /// Values with a line: powers of ten and their double and fivefold, or about five of equal distance.
    fn ticks(self) -> Vec<f64> {
        let fits = |value: &f64| (self.least..=self.most).contains(value);
        if self.is_log {
            let powers = -4..6;
            return powers.flat_map(|p| [1.0, 2.0, 5.0].map(|n| n * 10_f64.powi(p))).filter(fits).collect();
        }
        let raw = (self.most - self.least) / 5.0;
        let power = 10_f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= raw).unwrap_or(power);
        (0..=10).map(|n| self.least + step * f64::from(n)).filter(fits).collect()
    }
}

/// A panel with its two scales, at a place of the picture.
struct Panel<'a> {
    out: &'a mut String,
    left: f64,
    top: f64,
    x: Scale,
    y: Scale,
}

impl Panel<'_> {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.left + self.x.place(x) * WIDTH, self.top + HEIGHT - self.y.place(y) * HEIGHT)
    }

    fn frame(&mut self, title: &str, x_label: &str) {
        let (left, top) = (self.left, self.top);
        let _ = writeln!(self.out, r#"<text class="title" x="{left}" y="{}">{title}</text>"#, top - 12.0);
        for tick in self.x.ticks() {
            let (x, _) = self.at(tick, self.y.least);
            let (bottom, label) = (top + HEIGHT, tidy(tick));
            let _ = writeln!(self.out, r#"<path class="grid" d="M{x:.1} {top}V{bottom}"/>"#);
            let _ = writeln!(self.out, r#"<text class="x" x="{x:.1}" y="{}">{label}</text>"#, bottom + 15.0);
        }
        for tick in self.y.ticks() {
            let (_, y) = self.at(self.x.least, tick);
            let _ = writeln!(self.out, r#"<path class="grid" d="M{left} {y:.1}h{WIDTH}"/>"#);
            let _ =
                writeln!(self.out, r#"<text class="y" x="{}" y="{:.1}">{}</text>"#, left - 6.0, y + 4.0, tidy(tick));
        }
        let (x, y) = (left + WIDTH / 2.0, top + HEIGHT + 32.0);
        let _ = writeln!(self.out, r#"<text class="x" x="{x}" y="{y}">{x_label}</text>"#);
    }

    fn line(&mut self, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
        let mut path = String::new();
        for (index, (x, y)) in points.enumerate() {
            let (x, y) = self.at(x, y);
            let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
        }
        let _ = writeln!(self.out, r#"<path class="line" stroke="{colour}" d="{path}"/>"#);
    }

    fn dots(&mut self, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = self.at(x, y);
            let _ = write!(path, "M{x:.1} {y:.1}h0");
        }
        let _ = writeln!(self.out, r#"<path class="dots" stroke="{colour}" d="{path}"/>"#);
    }
}

/// A picture of all rows.
pub fn svg(rows: &[Row]) -> String {
    let streams: Vec<(usize, &Row)> = rows.iter().enumerate().filter(|(_, row)| row.streams.is_some()).collect();
    let legend = HEIGHT + 2.0 * MARGIN + 20.0;
    let below = legend + 18.0 * rows.len() as f64 + MARGIN;
    let (width, each) = (3.0 * (WIDTH + MARGIN) + MARGIN, HEIGHT + 2.0 * MARGIN);
    let height = below + each * streams.len().div_ceil(3) as f64;
    let mut out = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" font-family="sans-serif" font-size="11">
<style>.title {{ font-size: 13px; font-weight: bold }} .x {{ text-anchor: middle }} .y {{ text-anchor: end }}
.grid {{ stroke: #ddd }} .line {{ fill: none; stroke-width: 2 }} .dots {{ stroke-width: 2.5; stroke-linecap: round; opacity: 0.5 }}</style>
<rect width="100%" height="100%" fill="white"/>
"#
    );
    for (place, title) in ["time to first token", "between tokens", "end to end"].into_iter().enumerate() {
        let times = |row: &Row| [&row.ttft_ms, &row.itl_ms, &row.e2el_ms][place].clone();
        let values = || rows.iter().flat_map(|row| times(row).percentiles).filter(|time| *time > 0.0);
        let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(0.1, f64::max));
        let x = Scale { least: least.min(most) * 0.9, most: most * 1.1, is_log: true };
        let left = MARGIN + place as f64 * (WIDTH + MARGIN);
        let y = Scale { least: 0.0, most: 100.0, is_log: false };
        let mut panel = Panel { out: &mut out, left, top: MARGIN, x, y };
        panel.frame(&format!("{title}: percent that took no longer"), "milliseconds");
        for (row, colour) in rows.iter().zip(COLOURS.iter().cycle()) {
            panel
                .line(times(row).percentiles.iter().enumerate().map(|(percent, time)| (*time, percent as f64)), colour);
        }
    }
    for (index, (row, colour)) in rows.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let y = legend + 18.0 * index as f64;
        let said = format!("{}, {}: {:.0} tokens/s", escape(&row.server), load(row), row.output_throughput);
        let _ = writeln!(out, r#"<path class="line" stroke="{colour}" d="M{MARGIN} {y}h24"/>"#);
        let _ = writeln!(out, r#"<text x="{}" y="{}">{said}</text>"#, MARGIN + 32.0, y + 4.0);
    }
    for (place, (index, row)) in streams.into_iter().enumerate() {
        let Some(gaps) = &row.streams else { continue };
        let most = |of: fn(&(f64, f64)) -> f64| gaps.timeline.iter().map(of).fold(0.01, f64::max);
        let x = Scale { least: 0.0, most: most(|point| point.0), is_log: false };
        let y = Scale { least: 0.0, most: most(|point| point.1) * 1.05e3, is_log: false };
        let left = MARGIN + (place % 3) as f64 * (WIDTH + MARGIN);
        let top = below + (place / 3) as f64 * each + MARGIN;
        let mut panel = Panel { out: &mut out, left, top, x, y };
        let title = format!("{}: gaps of {} streams in ms", escape(&row.server), gaps.count);
        panel.frame(&title, &format!("seconds; prompts arrive from {:.1} on", gaps.load_began));
        panel.dots(gaps.timeline.iter().map(|(at, gap)| (*at, gap * 1e3)), COLOURS[index % COLOURS.len()]);
        for (from, to, p99) in
            [(0.0, gaps.load_began, gaps.quiet_ms.p99), (gaps.load_began, x.most, gaps.loaded_ms.p99)]
        {
            panel.line([(from, p99), (to, p99)].into_iter(), "#000000");
        }
    }
    out + "</svg>\n"
}

/// What a load is called.
pub fn load(row: &Row) -> String {
    match (row.max_concurrency, row.request_rate) {
        (Some(1), _) => "1 client".to_owned(),
        (Some(clients), _) => format!("{clients} clients"),
        (_, Some(rate)) => format!("{rate} a second"),
        _ => String::new(),
    }
}

/// A number without digits that say nothing.
fn tidy(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::summary::{StreamGaps, Times};
    use super::*;

    #[test]
    fn scales_put_ends_at_their_ends_and_ticks_between() {
        let linear = Scale { least: 0.0, most: 100.0, is_log: false };
        assert_eq!((linear.place(0.0), linear.place(25.0), linear.place(100.0)), (0.0, 0.25, 1.0));
        assert_eq!(linear.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        let log = Scale { least: 1.0, most: 100.0, is_log: true };
        assert_eq!((log.place(1.0), log.place(10.0), log.place(100.0)), (0.0, 0.5, 1.0));
        assert_eq!(log.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    }

    #[test]
    fn a_picture_names_every_load_and_is_well_formed() {
        let times = Times::of((1..50).map(|n| f64::from(n) / 100.0));
        let timeline = vec![(0.1, 0.01), (1.0, 0.02)];
        let gaps = StreamGaps { count: 16, timeline, load_began: 0.5, ..StreamGaps::default() };
        let row = |server: &str, streams| Row {
            server: server.to_owned(),
            max_concurrency: Some(8),
            ttft_ms: times.clone(),
            itl_ms: times.clone(),
            e2el_ms: times.clone(),
            streams,
            ..Row::default()
        };
        let picture = svg(&[row("a<b", None), row("other", Some(gaps))]);
        assert!(picture.contains("a&lt;b, 8 clients") && picture.contains("other, 8 clients"), "{picture}");
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());
        assert_eq!(picture.matches(r#"class="dots""#).count(), 1);
    }
}
