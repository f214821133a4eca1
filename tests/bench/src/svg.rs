//! A line chart as an SVG file: axes with titles and units, ticks, a legend. Not here: what is drawn.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
/// Around the plot: left, top, right, bottom.
const MARGIN: [f64; 4] = [76.0, 52.0, 24.0, 62.0];
const COLOURS: [&str; 6] = ["#1b6ca8", "#c8553d", "#3f8f4f", "#7a5195", "#b8860b", "#5f6b6d"];
const TICKS: usize = 6;

/// One line of a chart.
pub(crate) struct Line {
    /// As the legend has it.
    pub(crate) name: String,
    /// In order of x.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart.
pub(crate) struct Chart {
    pub(crate) title: String,
    /// With its unit.
    pub(crate) x_title: String,
    pub(crate) y_title: String,
    pub(crate) lines: Vec<Line>,
    /// Where it comes from: machine, commit, program.
    pub(crate) source: String,
}

impl Chart {
    /// The file. Both axes begin at 0, so that what looks like a slope is one.
    pub(crate) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_step = tick_step(points().map(|point| point.0).fold(0.0, f64::max));
        let y_step = tick_step(points().map(|point| point.1).fold(0.0, f64::max));
        let (x_ticks, y_ticks) = (ticks(x_step, points().map(|p| p.0)), ticks(y_step, points().map(|p| p.1)));
        let end = |ticks: &[f64]| ticks.last().copied().unwrap_or(1.0);
        let [left, top, right, bottom] = MARGIN;
        let (x_end, y_end) = (end(&x_ticks), end(&y_ticks));
        let x = |value: f64| left + value / x_end * (WIDTH - left - right);
        let y = |value: f64| HEIGHT - bottom - value / y_end * (HEIGHT - top - bottom);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        push_text(&mut svg, (WIDTH / 2.0, 22.0), "middle", &self.title, " font-size=\"16\"");
        for tick in &x_ticks {
            push_line(&mut svg, (x(*tick), y(0.0)), (x(*tick), y(y_end)), "#e4e4e4");
            push_text(&mut svg, (x(*tick), y(0.0) + 16.0), "middle", &label(*tick), "");
        }
        for tick in &y_ticks {
            push_line(&mut svg, (x(0.0), y(*tick)), (x(x_end), y(*tick)), "#e4e4e4");
            push_text(&mut svg, (x(0.0) - 6.0, y(*tick) + 4.0), "end", &label(*tick), "");
        }
        push_line(&mut svg, (x(0.0), y(0.0)), (x(x_end), y(0.0)), "#333");
        push_line(&mut svg, (x(0.0), y(0.0)), (x(0.0), y(y_end)), "#333");
        push_text(&mut svg, (x(x_end / 2.0), HEIGHT - 26.0), "middle", &self.x_title, "");
        let turned = format!(" transform=\"rotate(-90 18 {0})\"", y(y_end / 2.0));
        push_text(&mut svg, (18.0, y(y_end / 2.0)), "middle", &self.y_title, &turned);
        push_text(&mut svg, (WIDTH - 8.0, HEIGHT - 8.0), "end", &self.source, " font-size=\"9\" fill=\"#777\"");
        for ((index, line), colour) in self.lines.iter().enumerate().zip(COLOURS.iter().cycle()) {
            let path = line.points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value)));
            let path = path.collect::<Vec<_>>().join(" ");
            // Writing to a string does not fail.
            let _ = writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
            for (at, value) in &line.points {
                let _ =
                    writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(*at), y(*value));
            }
            let row = top + 6.0 + 16.0 * index as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>",
                left + 12.0,
                row - 5.0
            );
            push_text(&mut svg, (left + 32.0, row), "start", &line.name, "");
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// 1, 2 or 5 times a power of ten, so that some [`TICKS`] cover the values.
fn tick_step(max: f64) -> f64 {
    if !(max.is_finite() && max > 0.0) {
        return 1.0;
    }
    let raw = max / TICKS as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= raw * 0.999).unwrap_or(10.0);
    step * power
}

fn ticks(step: f64, values: impl Iterator<Item = f64>) -> Vec<f64> {
    let count = (values.fold(0.0, f64::max) / step).ceil().clamp(1.0, 100.0) as usize;
    (0..=count).map(|tick| tick as f64 * step).collect()
}

fn label(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn push_line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn push_text(svg: &mut String, at: (f64, f64), anchor: &str, text: &str, more: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\"{more}>{text}</text>", at.0, at.1);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every opening tag is closed, in order, and no text is left that XML would read otherwise.
    fn check_well_formed(svg: &str) {
        let mut open = Vec::new();
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            assert!(!rest[..start].contains('>'), "a bare > before {}", &rest[start..]);
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name.to_owned()));
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().unwrap_or_default().to_owned());
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?} is not closed");
        for (at, _) in svg.match_indices('&') {
            assert!(["&amp;", "&lt;", "&gt;"].iter().any(|entity| svg[at..].starts_with(entity)));
        }
    }

    #[test]
    fn a_chart_is_well_formed_and_has_titles_and_a_point_for_each_value() {
        let chart = Chart {
            title: "Step < time & more".into(),
            x_title: "batch (sequences)".into(),
            y_title: "time of a step (ms)".into(),
            lines: vec![
                Line { name: "base".into(), points: vec![(1.0, 2.0), (64.0, 17.5)] },
                Line { name: "adapters".into(), points: vec![(1.0, 2.5), (32.0, 19.0), (64.0, 40.0)] },
            ],
            source: "bench".into(),
        };
        let svg = chart.svg();
        check_well_formed(&svg);
        assert!(svg.starts_with("<svg xmlns="));
        for text in ["batch (sequences)", "time of a step (ms)", "Step &lt; time &amp; more", ">base<", ">80<", ">40<"]
        {
            assert!(svg.contains(text), "{text}:\n{svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 5);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn an_empty_chart_and_one_of_zeros_are_drawn_too() {
        for points in [vec![], vec![(0.0, 0.0)]] {
            let lines = vec![Line { name: "none".into(), points }];
            let (title, x_title, y_title) = (String::new(), String::new(), String::new());
            let svg = Chart { title, x_title, y_title, lines, source: String::new() }.svg();
            check_well_formed(&svg);
            assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        for max in [0.03, 1.0, 7.0, 64.0, 8192.0, 1e6] {
            let step = tick_step(max);
            let ticks = ticks(step, [max].into_iter());
            assert!((4..=9).contains(&ticks.len()), "{max}: {ticks:?}");
            assert!(ticks.last().is_some_and(|last| *last >= max * 0.999));
        }
        assert_eq!((tick_step(64.0), label(0.25), label(20.0)), (20.0, "0.25".into(), "20".into()));
    }
}
