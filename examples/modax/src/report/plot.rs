//! The timeline: two rates above, the state of each component below, one band for each scenario. Inline SVG; colours
//! come from the page's style so that they follow the reader's light or dark setting.

use std::fmt::Write as _;

use super::{Lane, Report, Series, State, seconds};

const WIDTH: f64 = 1180.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 46.0;
const PANEL: f64 = 110.0;
const PANEL_GAP: f64 = 34.0;
const LANE: f64 = 17.0;
const LANE_GAP: f64 = 5.0;

/// The whole plot.
pub(super) fn plot(report: &Report) -> String {
    let end = report.totals.seconds.max(1.0);
    let scale = Scale { end };
    let lanes_top = TOP + report.series.len() as f64 * (PANEL + PANEL_GAP);
    let bottom = lanes_top + report.lanes.len() as f64 * (LANE + LANE_GAP);
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Timeline of the run">"#,
        height = bottom + 34.0
    );
    hatch(&mut svg);
    bands(&mut svg, report, &scale, bottom);
    for (index, series) in report.series.iter().enumerate() {
        panel(&mut svg, series, &scale, TOP + index as f64 * (PANEL + PANEL_GAP));
    }
    for (index, lane) in report.lanes.iter().enumerate() {
        draw_lane(&mut svg, lane, &scale, lanes_top + index as f64 * (LANE + LANE_GAP));
    }
    marks(&mut svg, report, &scale, bottom);
    axis(&mut svg, &scale, bottom);
    svg.push_str("</svg>");
    svg
}

struct Scale {
    end: f64,
}

impl Scale {
    fn x(&self, t: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (t / self.end).clamp(0.0, 1.0)
    }
}

/// Down is hatched as well as red: a colour alone is not enough for every reader.
fn hatch(svg: &mut String) {
    svg.push_str(concat!(
        r#"<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">"#,
        r#"<rect width="6" height="6" class="down"/><line x1="0" y1="0" x2="0" y2="6" class="hatch"/></pattern></defs>"#,
    ));
}

fn bands(svg: &mut String, report: &Report, scale: &Scale, bottom: f64) {
    for (index, scenario) in report.scenarios.iter().enumerate() {
        let (from, to) = (scale.x(scenario.started_at), scale.x(scenario.ended_at));
        let _ = write!(
            svg,
            r#"<rect x="{from:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="band"><title>{number}. {title}</title></rect>"#,
            y = TOP - 8.0,
            width = (to - from).max(1.0),
            height = bottom - TOP + 8.0,
            number = index + 1,
            title = escape(&scenario.title),
        );
    }
}

fn marks(svg: &mut String, report: &Report, scale: &Scale, bottom: f64) {
    for (index, scenario) in report.scenarios.iter().enumerate() {
        let start = scenario.started_at;
        let lines = [
            ("start", Some(0), "broken"),
            ("noticed", scenario.detected_ms, "noticed after"),
            ("recovered", scenario.recovered_ms, "working again after"),
        ];
        for (class, after_ms, words) in lines {
            let Some(after_ms) = after_ms else { continue };
            let x = scale.x(start + after_ms as f64 / 1e3);
            let _ = write!(
                svg,
                r#"<line x1="{x:.1}" x2="{x:.1}" y1="{y:.1}" y2="{bottom:.1}" class="{class}"><title>{words} {after}</title></line>"#,
                y = TOP - 8.0,
                after = if class == "start" { String::new() } else { seconds(Some(after_ms)) },
            );
        }
        let x = scale.x(start);
        let _ = write!(
            svg,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="11" class="number"/><text x="{x:.1}" y="{text:.1}" class="digit">{number}</text>"#,
            y = TOP - 22.0,
            text = TOP - 17.5,
            number = index + 1,
        );
    }
}

fn panel(svg: &mut String, series: &Series, scale: &Scale, top: f64) {
    let highest = series.points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let step = tick_step(highest);
    let ceiling = (highest / step).ceil().max(1.0) * step;
    let y = |value: f64| top + PANEL - PANEL * (value / ceiling).clamp(0.0, 1.0);
    let _ = write!(
        svg,
        r#"<text x="{x}" y="{label:.1}" class="title">{name}</text>"#,
        x = 4,
        label = top + 14.0,
        name = escape(&series.name),
    );
    // In lines of their own: side by side they would run into the numbers of the axis.
    for (index, part) in series.unit.split(", ").enumerate() {
        let y = top + 30.0 + index as f64 * 14.0;
        let _ = write!(svg, r#"<text x="4" y="{y:.1}" class="unit">{part}</text>"#, part = escape(part));
    }
    let mut value = 0.0;
    while value <= ceiling + step / 2.0 {
        let _ = write!(
            svg,
            r#"<line x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}" class="grid"/><text x="{x}" y="{text:.1}" class="tick end">{value:.0}</text>"#,
            right = WIDTH - RIGHT,
            at = y(value),
            x = LEFT - 6.0,
            text = y(value) + 4.0,
        );
        value += step;
    }
    let mut line = String::new();
    for (t, value) in &series.points {
        let _ = write!(line, "{:.1},{:.1} ", scale.x(*t), y(*value));
    }
    let (first, last) = (series.points.first().map_or(0.0, |p| p.0), series.points.last().map_or(0.0, |p| p.0));
    let _ = write!(
        svg,
        r#"<polygon points="{x0:.1},{base:.1} {line}{x1:.1},{base:.1}" class="area"/><polyline points="{line}" class="line"/>"#,
        x0 = scale.x(first),
        x1 = scale.x(last),
        base = y(0.0),
    );
}

/// A step of 1, 2 or 5 times a power of ten that gives at most four ticks.
fn tick_step(highest: f64) -> f64 {
    let rough = (highest / 4.0).max(0.25);
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(power).max(1.0)
}

fn draw_lane(svg: &mut String, lane: &Lane, scale: &Scale, top: f64) {
    let _ = write!(
        svg,
        r#"<text x="{x}" y="{y:.1}" class="lane end">{name}</text>"#,
        x = LEFT - 6.0,
        y = top + LANE - 4.0,
        name = escape(&lane.name),
    );
    for (index, (from, state)) in lane.states.iter().enumerate() {
        let to = lane.states.get(index + 1).map_or(scale.end, |next| next.0);
        let (x, width) = (scale.x(*from), scale.x(to) - scale.x(*from));
        if width <= 0.0 {
            continue;
        }
        let (class, words) = match state {
            State::Working => ("working", "working"),
            State::Leading => ("leading", "working, in the lead"),
            State::Impaired => ("impaired", "running, not fully able"),
            State::Down => ("stopped", "not answering"),
        };
        let _ = write!(
            svg,
            r#"<rect x="{x:.1}" y="{top:.1}" width="{width:.1}" height="{LANE}" class="{class}"><title>{name}: {words}, {from:.1} s to {to:.1} s</title></rect>"#,
            name = escape(&lane.name),
        );
    }
}

fn axis(svg: &mut String, scale: &Scale, bottom: f64) {
    let step = if scale.end > 150.0 { 30.0 } else { 10.0 };
    let mut t = 0.0;
    while t <= scale.end {
        let _ = write!(
            svg,
            r#"<text x="{x:.1}" y="{y:.1}" class="tick middle">{minutes:.0}:{seconds:02.0}</text>"#,
            x = scale.x(t),
            y = bottom + 18.0,
            minutes = (t / 60.0).floor(),
            seconds = t % 60.0,
        );
        t += step;
    }
    let _ = write!(svg, r#"<text x="4" y="{y:.1}" class="unit">minutes:seconds</text>"#, y = bottom + 18.0);
}

/// Text that cannot become markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        assert!((tick_step(120.0) - 50.0).abs() < 1e-9);
        assert!((tick_step(5.2) - 2.0).abs() < 1e-9);
        assert!((tick_step(0.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_long_unit_keeps_clear_of_the_axis() {
        let series = Series { name: "Commands".into(), unit: "to the devices, each second".into(), points: vec![] };
        let mut svg = String::new();
        panel(&mut svg, &series, &Scale { end: 1.0 }, 0.0);
        let units: Vec<&str> =
            svg.split(r#"class="unit">"#).skip(1).filter_map(|text| text.split('<').next()).collect();
        assert_eq!(units, ["to the devices", "each second"]);
        // 11 px letters are some 6 wide; the numbers take 30.
        assert!(units.iter().all(|unit| 4.0 + unit.len() as f64 * 6.0 < LEFT - 36.0));
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }
}
