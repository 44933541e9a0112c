//! Drawing: a panel with two axes, into which plots put their marks.
//!
//! Colours are classes of the page's style sheet, so that one picture serves a light and a dark page.

use std::fmt::Write as _;

/// Text that may stand in HTML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            character => escaped.push(character),
        }
    }
    escaped
}

/// How values become places along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    Linear {
        max: f64,
    },
    /// Decades; what is below `min` is drawn at it.
    Logarithmic {
        min: f64,
        max: f64,
    },
}

impl Scale {
    /// 0 to 1, or beyond if the value is beyond the axis.
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear { max } => value / max,
            Scale::Logarithmic { min, max } => (value.max(min) / min).log10() / (max / min).log10(),
        }
    }

    /// Where lines are drawn and labelled.
    fn ticks(self) -> Vec<f64> {
        match self {
            Scale::Linear { max } => {
                let step = round_step(max / 6.0);
                (0..).map(|index| f64::from(index) * step).take_while(|tick| *tick <= max * 1.0001).collect()
            }
            Scale::Logarithmic { min, max } => {
                let (first, last) = (min.log10().ceil() as i32, max.log10().floor() as i32);
                (first..=last).map(|exponent| 10f64.powi(exponent)).collect()
            }
        }
    }
}

/// The next of 1, 2, 5, 10, … that is not below the step.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.max(f64::MIN_POSITIVE).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * decade >= step * 0.9999);
    factor.unwrap_or(10.0) * decade
}

/// A number as short as it can be said.
pub fn short(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        value if value == value.trunc() => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 34.0;

/// A picture with a time axis below and, if `y` is given, an axis on the left.
pub struct Panel {
    width: f64,
    height: f64,
    x: Scale,
    y: Scale,
    body: String,
}

impl Panel {
    pub fn new(width: f64, height: f64, x: Scale, y: Scale) -> Panel {
        assert!(width > LEFT + RIGHT && height > TOP + BOTTOM, "the panel has no room for its axes");
        Panel { width, height, x, y, body: String::new() }
    }

    pub fn x(&self, value: f64) -> f64 {
        LEFT + self.x.place(value).clamp(0.0, 1.0) * (self.width - LEFT - RIGHT)
    }

    pub fn y(&self, value: f64) -> f64 {
        self.height - BOTTOM - self.y.place(value).clamp(0.0, 1.0) * (self.height - TOP - BOTTOM)
    }

    /// Draws the lines and labels of both axes; before the marks, which then lie above them.
    pub fn axes(&mut self, x_label: &str, y_label: &str, y_tick: impl Fn(f64) -> String) {
        for tick in self.y.ticks() {
            let y = self.y(tick);
            let (right, label) = (self.width - RIGHT, escape(&y_tick(tick)));
            self.add(format_args!("<line class=grid x1={LEFT} x2={right} y1={y:.1} y2={y:.1} />"));
            self.add(format_args!("<text x={} y={:.1} text-anchor=end>{label}</text>", LEFT - 6.0, y + 4.0));
        }
        for tick in self.x.ticks() {
            let (x, bottom) = (self.x(tick), self.height - BOTTOM);
            self.add(format_args!("<line class=axis x1={x:.1} x2={x:.1} y1={bottom} y2={} />", bottom + 4.0));
            let label = escape(&short(tick));
            self.add(format_args!("<text x={x:.1} y={} text-anchor=middle>{label}</text>", bottom + 16.0));
        }
        let bottom = self.height - BOTTOM;
        let (right, middle) = (self.width - RIGHT, (self.width + LEFT - RIGHT) / 2.0);
        self.add(format_args!("<line class=axis x1={LEFT} x2={right} y1={bottom} y2={bottom} />"));
        let label = escape(x_label);
        self.add(format_args!("<text x={middle} y={} text-anchor=middle>{label}</text>", self.height - 4.0));
        let (across, label) = ((TOP + bottom) / 2.0, escape(y_label));
        self.add(format_args!(
            "<text transform='translate(12 {across}) rotate(-90)' text-anchor=middle>{label}</text>"
        ));
    }

    /// A band over the panel's whole height, with a text shown when it is pointed at.
    pub fn band(&mut self, class: &str, from: f64, to: f64, title: &str) {
        let (left, right) = (self.x(from), self.x(to));
        let (width, height) = ((right - left).max(1.5), self.height - TOP - BOTTOM);
        let title = escape(title);
        self.add(format_args!(
            "<rect class={class} x={left:.1} y={TOP} width={width:.1} height={height}><title>{title}</title></rect>"
        ));
    }

    /// A line through the points.
    pub fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        if points.is_empty() {
            return;
        }
        let mut path = String::new();
        for (index, (x, y)) in points.iter().enumerate() {
            let command = if index == 0 { 'M' } else { 'L' };
            write!(path, "{command}{:.1} {:.1}", self.x(*x), self.y(*y)).expect("a string takes all that is written");
        }
        self.add(format_args!("<path class='{class}' d='{path}' />"));
    }

    /// A dot of the picture's own measure.
    pub fn dot(&mut self, class: &str, x: f64, y: f64) {
        let (x, y) = (self.x(x) - 1.25, self.y(y) - 1.25);
        self.add(format_args!("<rect class={class} x={x:.1} y={y:.1} width=2.5 height=2.5 />"));
    }

    /// Something drawn by the caller.
    pub fn add(&mut self, shape: std::fmt::Arguments<'_>) {
        self.body.write_fmt(shape).expect("a string takes all that is written");
        self.body.push('\n');
    }

    pub fn finish(self) -> String {
        let Panel { width, height, body, .. } = self;
        format!("<svg viewBox='0 0 {width} {height}' role=img>\n{body}</svg>\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        assert_eq!(Scale::Linear { max: 60.0 }.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(Scale::Linear { max: 1.0 }.ticks().len(), 6);
        assert_eq!(Scale::Logarithmic { min: 0.5, max: 2000.0 }.ticks(), [1.0, 10.0, 100.0, 1000.0]);
    }

    #[test]
    fn places_stay_on_the_panel() {
        let panel = Panel::new(400.0, 200.0, Scale::Linear { max: 10.0 }, Scale::Logarithmic { min: 1.0, max: 100.0 });
        assert_eq!((panel.x(0.0), panel.x(10.0), panel.x(99.0)), (64.0, 388.0, 388.0));
        assert_eq!((panel.y(1.0), panel.y(0.0), panel.y(100.0)), (166.0, 166.0, 8.0));
    }

    #[test]
    fn text_of_a_history_cannot_become_markup() {
        assert_eq!(escape("<script>\"&"), "&lt;script&gt;&quot;&amp;");
        let mut panel = Panel::new(400.0, 200.0, Scale::Linear { max: 1.0 }, Scale::Linear { max: 1.0 });
        panel.band("fault", 0.0, 1.0, "</title><script>");
        assert!(!panel.finish().contains("<script>"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.25, 3.0, 3.25, 12_000.0].map(short), ["0.25", "3", "3.2", "12k"]);
    }
}
