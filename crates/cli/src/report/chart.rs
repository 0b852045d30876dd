//! Charts as plain geometry: what a template needs to write an SVG element for everything that is seen.
//!
//! All lengths are in the units of a picture 360 wide, the width of a phone: there a unit is a pixel.

use serde::Serialize;

pub(super) const WIDTH: f64 = 360.0;
const LEFT: f64 = 42.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 34.0;
const HEIGHT: f64 = 230.0;

/// How an axis maps values.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    Log2,
    Log10,
}

/// One axis: what it maps, and where to.
#[derive(Clone, Debug)]
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis that shows all `values`, from `from` to `to` in the picture.
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in
            values.filter(|value| value.is_finite() && (*value > 0.0 || matches!(scale, Scale::Linear)))
        {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (1.0, 2.0);
        }
        let (low, high) = match scale {
            Scale::Linear => (0.0, high.max(f64::MIN_POSITIVE) * 1.08),
            // Half a step of air at both ends.
            Scale::Log2 | Scale::Log10 => (low / 1.25, high * 1.25),
        };
        Axis { scale, low, high, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let map = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Log2 | Scale::Log10 => value.max(f64::MIN_POSITIVE).ln(),
        };
        let part = (map(value) - map(self.low)) / (map(self.high) - map(self.low));
        rounded(self.from + part.clamp(0.0, 1.0) * (self.to - self.from))
    }

    /// Round values inside the axis.
    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let rough = self.high / 4.0;
                let power = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough);
                let step = step.unwrap_or(rough);
                (0..).map(|i| f64::from(i) * step).take_while(|tick| *tick <= self.high).collect()
            }
            Scale::Log2 => powers(2.0, self.low, self.high, 7),
            Scale::Log10 => powers(10.0, self.low, self.high, 7),
        }
    }
}

/// The powers of a base between two values; every second or third of them where there are more than `most`.
fn powers(base: f64, low: f64, high: f64, most: usize) -> Vec<f64> {
    let first = (low.ln() / base.ln() - 1e-9).ceil() as i32;
    let last = (high.ln() / base.ln() + 1e-9).floor() as i32;
    let every = (last - first + 1).max(1).unsigned_abs().div_ceil(most as u32) as usize;
    (first..=last).step_by(every).map(|power| base.powi(power)).collect()
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A label on an axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Tick {
    at: f64,
    text: String,
}

/// A curve and its points.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Curve {
    /// The number of the system, which has one colour on the whole page.
    system: usize,
    /// `x,y x,y ...`; empty where only points are wanted.
    path: String,
    dots: Vec<Dot>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Dot {
    x: f64,
    y: f64,
    /// Shown when pointed at.
    text: String,
}

/// A line that is no system's: a peak.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Guide {
    path: String,
    text: String,
}

/// A chart with two axes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Chart {
    pub(super) title: String,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_label: String,
    y_label: String,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    curves: Vec<Curve>,
    guides: Vec<Guide>,
    /// What is in it: numbers and names, for its legend.
    pub(super) systems: Vec<(usize, String)>,
}

/// The points of one system.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) system: usize,
    pub(super) name: String,
    /// x, y, and what a point says when pointed at.
    pub(super) points: Vec<(f64, f64, String)>,
    pub(super) is_joined: bool,
}

/// What a chart shows.
pub(super) struct Plot<'p> {
    pub(super) title: String,
    pub(super) x: (Scale, &'p str),
    pub(super) y: (Scale, &'p str),
    pub(super) series: Vec<Series>,
    /// Broken lines through points, with a name each.
    pub(super) guides: Vec<(Vec<(f64, f64)>, String)>,
}

impl Plot<'_> {
    /// The geometry.
    pub(super) fn chart(self) -> Chart {
        let all = || self.series.iter().flat_map(|series| &series.points);
        let of_guides = || self.guides.iter().flat_map(|(points, _)| points);
        let x = Axis::new(
            self.x.0,
            all().map(|point| point.0).chain(of_guides().map(|point| point.0)),
            LEFT,
            WIDTH - RIGHT,
        );
        let y = Axis::new(
            self.y.0,
            all().map(|point| point.1).chain(of_guides().map(|point| point.1)),
            HEIGHT - BOTTOM,
            TOP,
        );
        let ticks = |axis: &Axis| {
            axis.ticks().into_iter().map(|tick| Tick { at: axis.place(tick), text: short(tick) }).collect()
        };
        let place = |at_x: f64, at_y: f64| (x.place(at_x), y.place(at_y));
        let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
            let places: Vec<String> = points
                .map(|(at_x, at_y)| {
                    let (x, y) = place(at_x, at_y);
                    format!("{x},{y}")
                })
                .collect();
            places.join(" ")
        };
        let curves = self.series.iter().map(|series| Curve {
            system: series.system,
            path: match series.is_joined {
                true => path(&mut series.points.iter().map(|point| (point.0, point.1))),
                false => String::new(),
            },
            dots: series
                .points
                .iter()
                .map(|(at_x, at_y, text)| {
                    let (x, y) = place(*at_x, *at_y);
                    Dot { x, y, text: text.clone() }
                })
                .collect(),
        });
        let guides = self
            .guides
            .iter()
            .map(|(points, text)| Guide { path: path(&mut points.iter().copied()), text: text.clone() });
        Chart {
            width: WIDTH,
            height: HEIGHT,
            left: LEFT,
            right: WIDTH - RIGHT,
            top: TOP,
            bottom: HEIGHT - BOTTOM,
            x_label: self.x.1.into(),
            y_label: self.y.1.into(),
            x_ticks: ticks(&x),
            y_ticks: ticks(&y),
            curves: curves.collect(),
            guides: guides.collect(),
            systems: legend(self.series.iter().map(|series| (series.system, series.name.clone()))),
            title: self.title,
        }
    }
}

/// Each system once, ours first.
fn legend(systems: impl Iterator<Item = (usize, String)>) -> Vec<(usize, String)> {
    let mut all: Vec<(usize, String)> = systems.collect();
    all.sort();
    all.dedup();
    all
}

/// One bar of a group.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Bar {
    system: usize,
    y: f64,
    width: f64,
    text: String,
    /// Where its text stands, and whether that is inside the bar.
    text_x: f64,
    is_inside: bool,
}

/// A name and its bars.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BarGroup {
    name: String,
    y: f64,
    bars: Vec<Bar>,
}

/// Lying bars in groups, one below the other.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Bars {
    pub(super) title: String,
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) bar_height: f64,
    pub(super) groups: Vec<BarGroup>,
    /// Lines over all bars: a peak, a bound.
    pub(super) marks: Vec<Tick>,
    pub(super) systems: Vec<(usize, String)>,
}

/// A bar's system, the system's name, its length, and what stands beside it.
pub(super) type BarValue = (usize, String, f64, String);

impl Bars {
    const BAR: f64 = 14.0;
    const NAME: f64 = 16.0;
    const GAP: f64 = 8.0;
    /// Room for a letter of the text of a bar.
    const LETTER: f64 = 6.2;

    /// Lays out groups of bars; `marks` are values with names.
    pub(super) fn new(
        title: String,
        groups: Vec<(String, Vec<BarValue>)>,
        marks: Vec<(f64, String)>,
    ) -> Self {
        let longest = groups
            .iter()
            .flat_map(|(_, bars)| bars.iter().map(|bar| bar.2))
            .chain(marks.iter().map(|mark| mark.0))
            .fold(f64::MIN_POSITIVE, f64::max);
        let x = |value: f64| rounded(value / longest * (WIDTH - 4.0));
        let systems =
            legend(groups.iter().flat_map(|(_, bars)| bars.iter().map(|bar| (bar.0, bar.1.clone()))));
        let mut y = if marks.is_empty() { 0.0 } else { Self::NAME };
        let mut placed = Vec::new();
        for (name, values) in groups {
            y += Self::NAME;
            let at = y - 4.0;
            let mut bars = Vec::new();
            for (system, name, value, text) in values {
                let width = x(value).max(1.0);
                // Where all bars are of one system, its name is in the legend.
                let text = if systems.len() == 1 { text } else { format!("{text} {name}") };
                let is_inside = width + 8.0 + Self::LETTER * text.len() as f64 > WIDTH;
                let text_x = if is_inside { width - 5.0 } else { width + 5.0 };
                bars.push(Bar { system, y: rounded(y), width, text, text_x, is_inside });
                y += Self::BAR + 2.0;
            }
            placed.push(BarGroup { name, y: at, bars });
            y += Self::GAP;
        }
        let marks = marks.into_iter().map(|(value, text)| Tick { at: x(value), text }).collect();
        Bars { title, width: WIDTH, height: y, bar_height: Self::BAR, groups: placed, marks, systems }
    }
}

/// A number for an axis: 16384 is 16k, 0.001 is 1e-3.
pub(super) fn short(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 {
        "0".into()
    } else if magnitude >= 1e6 && value % (1024.0 * 1024.0) == 0.0 {
        format!("{}M", value / 1024.0 / 1024.0)
    } else if magnitude >= 1024.0 && value % 1024.0 == 0.0 {
        format!("{}k", value / 1024.0)
    } else if magnitude >= 1e4 {
        format!("{}k", value / 1e3)
    } else if magnitude < 1e-2 {
        format!("{value:.0e}")
    } else {
        format!("{}", (value * 1000.0).round() / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks_within_their_range() {
        let linear = Axis::new(Scale::Linear, [3.0, 690.0].into_iter(), 0.0, 100.0);
        assert_eq!(linear.ticks(), [0.0, 200.0, 400.0, 600.0]);
        let lengths = Axis::new(Scale::Log2, [512.0, 16384.0].into_iter(), 0.0, 100.0);
        assert_eq!(lengths.ticks(), [512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0]);
        assert!(lengths.place(512.0) > 0.0 && lengths.place(16384.0) < 100.0);
        assert!(lengths.place(1024.0) < lengths.place(2048.0));
        // Nothing to show is no reason to fail.
        assert!(!Axis::new(Scale::Log10, std::iter::empty(), 0.0, 1.0).ticks().is_empty());
        assert_eq!(powers(10.0, 1e-9, 1e6, 7).len(), 6);
    }

    #[test]
    fn numbers_on_axes_are_short() {
        let shown: Vec<String> = [0.0, 512.0, 16384.0, 20000.0, 0.25, 1e-3, 1048576.0].map(short).into();
        assert_eq!(shown, ["0", "512", "16k", "20k", "0.25", "1e-3", "1M"]);
    }

    #[test]
    fn bars_are_as_long_as_their_values_and_keep_their_text_inside() {
        let group = vec![(0, "a".into(), 2.0, "2".into()), (1, "b".into(), 1.0, "1".into())];
        let bars = Bars::new("t".into(), vec![("g".into(), group)], vec![(4.0, "peak".into())]);
        let [long, short] = &bars.groups[0].bars[..] else { panic!("two bars") };
        assert!((long.width / short.width - 2.0).abs() < 0.01 && !long.is_inside);
        assert!(bars.marks[0].at > long.width && bars.height > short.y + bars.bar_height);
        let full = vec![(0, "a".into(), 1.0, "1".into())];
        assert!(Bars::new("t".into(), vec![("g".into(), full)], Vec::new()).groups[0].bars[0].is_inside);
    }
}
