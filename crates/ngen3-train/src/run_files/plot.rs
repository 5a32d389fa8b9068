//! `loss.svg`: a plot of training and validation loss over the steps. The validation loss in bits per byte is written above it.

use std::fmt::Write;

use crate::run_files::metrics::MetricsLine;

/// Size of the image and the margins of the plot, in pixels.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 112.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 56.0;

/// Maximum number of points per curve; longer ones are averaged, as more would not be visible.
const MAX_POINTS: usize = 800;

/// Blue and vermilion of Okabe & Ito's palette, which is safe for colour-blind readers.
const TRAIN_COLOUR: &str = "#0072b2";
const VAL_COLOUR: &str = "#d55e00";

/// (step, loss), or (x, y) in pixels.
type Point = (f64, f64);

/// Plots the losses of a run as SVG.
pub fn loss_svg(title: &str, lines: &[MetricsLine]) -> String {
    let points = |loss: fn(&MetricsLine) -> Option<f32>| {
        let losses = lines.iter().filter_map(|line| Some((line.step as f64, f64::from(loss(line)?))));
        thin_out(&losses.filter(|(_, loss)| loss.is_finite()).collect::<Vec<_>>())
    };
    let train = points(|line| line.train.as_ref().map(|train| train.train_loss));
    let val = points(|line| line.val_loss);
    let axes = Axes::around(train.iter().chain(&val));

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    text(&mut svg, LEFT, 30.0, "start", &format!("Loss of {title}"), " font-size=\"17\" font-weight=\"600\"");
    if let Some(bits) = bits_per_byte(lines) {
        text(&mut svg, LEFT, 48.0, "start", &bits, &format!(" style=\"fill:{VAL_COLOUR}\""));
    }
    axes.draw(&mut svg);
    curve(&mut svg, &axes, &train, TRAIN_COLOUR, 1.2);
    curve(&mut svg, &axes, &val, VAL_COLOUR, 2.2);
    for &point in if val.len() <= 60 { val.as_slice() } else { &[] } {
        let (x, y) = axes.place(point);
        line(&mut svg, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{VAL_COLOUR}\"/>"));
    }
    label_ends(&mut svg, &axes, &[("train", &train, TRAIN_COLOUR), ("val", &val, VAL_COLOUR)]);
    svg.push_str("</svg>\n");
    svg
}

/// Formats the last and the lowest validation loss in bits per byte; `None` without any.
fn bits_per_byte(lines: &[MetricsLine]) -> Option<String> {
    let mut bits = lines.iter().filter_map(|line| Some((line.step, line.val_bpb.filter(|bits| bits.is_finite())?)));
    let first = bits.next()?;
    let (mut lowest, mut last) = (first, first);
    for next in bits {
        (lowest, last) = (if next.1 < lowest.1 { next } else { lowest }, next);
    }
    let mut text = format!("val {:.3} bits per byte", last.1);
    if lowest.1 < last.1 {
        text += &format!(", lowest {:.3} at step {}", lowest.1, thousands(lowest.0 as f64));
    }
    Some(text)
}

/// Axes of the plot: ranges of steps and losses.
struct Axes {
    steps: (f64, f64),
    losses: (f64, f64),
    /// Distance between ticks.
    step_tick: f64,
    loss_tick: f64,
}

impl Axes {
    /// Fits the axes to the points: steps from 0, losses rounded outwards to the next grid line.
    fn around<'a>(points: impl Iterator<Item = &'a Point>) -> Self {
        let (mut last, mut low, mut high) = (1.0f64, f64::INFINITY, f64::NEG_INFINITY);
        for &(step, loss) in points {
            (last, low, high) = (last.max(step), low.min(loss), high.max(loss));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let loss_tick = nice((high - low).max(1e-3 * high.abs()).max(1e-6) / 5.0);
        let losses = ((low / loss_tick).floor() * loss_tick, (high / loss_tick).ceil() * loss_tick);
        let losses = if losses.0 < losses.1 { losses } else { (losses.0, losses.0 + loss_tick) };
        Self { steps: (0.0, last), losses, step_tick: nice(last / 6.0).max(1.0), loss_tick }
    }

    /// Converts (step, loss) to pixels.
    fn place(&self, (step, loss): Point) -> Point {
        let right = (step - self.steps.0) / (self.steps.1 - self.steps.0);
        let up = (loss - self.losses.0) / (self.losses.1 - self.losses.0);
        (LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    fn draw(&self, svg: &mut String) {
        let (left, right) = (LEFT, WIDTH - RIGHT);
        let (top, bottom) = (TOP, HEIGHT - BOTTOM);
        let decimals = (-self.loss_tick.log10().floor()).max(0.0) as usize;
        for loss in ticks(self.losses, self.loss_tick) {
            let (_, y) = self.place((0.0, loss));
            let line_to = format_args!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"#e4e4e4\"/>");
            line(svg, line_to);
            text(svg, left - 8.0, y + 4.5, "end", &format!("{loss:.decimals$}"), "");
        }
        for step in ticks(self.steps, self.step_tick) {
            let (x, _) = self.place((step, self.losses.0));
            line(svg, format_args!("<path d=\"M{x:.1} {bottom}v5\" stroke=\"#888\"/>"));
            text(svg, x, bottom + 21.0, "middle", &thousands(step), "");
        }
        line(svg, format_args!("<path d=\"M{left} {top}V{bottom}H{right}\" stroke=\"#888\" fill=\"none\"/>"));
        text(svg, (left + right) / 2.0, HEIGHT - 12.0, "middle", "step", "");
        let y = (top + bottom) / 2.0;
        let turned = format!(" transform=\"rotate(-90 18 {y})\"");
        text(svg, 18.0, y, "middle", "loss (nats per token)", &turned);
    }
}

/// Multiples of `tick` in a range.
fn ticks((low, high): (f64, f64), tick: f64) -> impl Iterator<Item = f64> {
    let (first, last) = ((low / tick - 1e-6).ceil() as i64, (high / tick + 1e-6).floor() as i64);
    (first..=last).map(move |n| n as f64 * tick)
}

/// Rounds up to the next of 1, 2, 5, 10, 20, … (and 0.5, 0.2, …).
fn nice(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|&tick| tick >= x * 0.999).unwrap_or(10.0 * power)
}

/// Formats `12000` as `12,000`.
fn thousands(n: f64) -> String {
    let digits = format!("{n:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Averages neighbours down to about [`MAX_POINTS`] points; the last point is unchanged.
fn thin_out(points: &[Point]) -> Vec<Point> {
    let Some((&last, rest)) = points.split_last() else { return Vec::new() };
    let size = points.len().div_ceil(MAX_POINTS);
    let mean = |group: &[Point]| {
        let n = group.len() as f64;
        (group.iter().map(|p| p.0).sum::<f64>() / n, group.iter().map(|p| p.1).sum::<f64>() / n)
    };
    rest.chunks(size).map(mean).chain([last]).collect()
}

fn curve(svg: &mut String, axes: &Axes, points: &[Point], colour: &str, width: f64) {
    let mut path = String::new();
    for (index, &point) in points.iter().enumerate() {
        let (x, y) = axes.place(point);
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    if !path.is_empty() {
        let style =
            format_args!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-linejoin=\"round\"");
        line(svg, format_args!("<path d=\"{path}\" {style}/>"));
    }
}

/// Labels the end of each curve with its name and last loss, moved apart if they would overlap.
fn label_ends(svg: &mut String, axes: &Axes, curves: &[(&str, &[Point], &str)]) {
    let mut labels: Vec<_> = curves
        .iter()
        .filter_map(|&(name, points, colour)| {
            let &last = points.last()?;
            let (x, y) = axes.place(last);
            Some((x, y, format!("{name} {:.3}", last.1), colour))
        })
        .collect();
    labels.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut free = TOP;
    for (x, y, label, colour) in labels {
        let y = (y + 4.5).max(free);
        free = y + 17.0;
        text(svg, x + 8.0, y, "start", &label, &format!(" font-weight=\"600\" style=\"fill:{colour}\""));
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, content: &str, more: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // File names may contain characters that are invalid in XML.
    let content: String = content.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    line(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{more}>{content}</text>"));
}

/// Appends a line; writing to a String cannot fail.
fn line(svg: &mut String, element: std::fmt::Arguments) {
    let _ = writeln!(svg, "{element}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_files::metrics::StepMetrics;

    fn run(losses: impl IntoIterator<Item = f32>) -> Vec<MetricsLine> {
        let line = |(step, loss): (usize, f32)| {
            let train = StepMetrics {
                train_loss: loss,
                parts: Default::default(),
                lr: 0.0,
                grad_norm: 0.0,
                ms_per_step: 0.0,
                tokens_per_s: 0.0,
            };
            MetricsLine {
                step: step as u64,
                train: (step > 0).then_some(train),
                elapsed_s: 0.0,
                val_loss: step.is_multiple_of(10).then_some(loss + 0.1),
                val_bpb: None,
                memory_gib: None,
            }
        };
        losses.into_iter().enumerate().map(line).collect()
    }

    /// All coordinates of the paths.
    fn coordinates(svg: &str) -> Vec<f64> {
        let attributes = svg.split(['"']).filter(|part| part.starts_with('M'));
        attributes
            .flat_map(|path| path.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-')))
            .filter(|number| !number.is_empty())
            .map(|number| number.parse().unwrap_or_else(|_| panic!("{number} in {svg}")))
            .collect()
    }

    #[test]
    fn both_curves_are_drawn_inside_the_picture_with_their_last_losses() {
        let svg = loss_svg("7M_model", &run((0..=100).map(|step| 10.0 - step as f32 * 0.05)));
        assert!(svg.contains("Loss of 7M_model") && svg.contains("train 5.000") && svg.contains("val 5.100"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 11);
        assert!(coordinates(&svg).iter().all(|&c| (0.0..=WIDTH).contains(&c)), "{svg}");
    }

    #[test]
    fn bits_per_byte_are_written_above_the_curves() {
        let mut lines = run((0..=40).map(|step| 10.0 - step as f32 * 0.05));
        assert!(!loss_svg("x", &lines).contains("bits"), "unknown");
        for (index, bits) in [(0, 3.0), (10, 1.5), (1_000, 0.0), (20, 1.25), (30, f32::NAN)] {
            if let Some(line) = lines.get_mut(index) {
                line.val_bpb = Some(bits);
            }
        }
        assert!(loss_svg("x", &lines).contains(">val 1.250 bits per byte</text>"));
        lines[40].val_bpb = Some(1.3125);
        assert!(loss_svg("x", &lines).contains(">val 1.312 bits per byte, lowest 1.250 at step 20</text>"));
    }

    #[test]
    fn runs_of_no_one_or_equal_points_are_drawn_too() {
        for losses in [vec![], vec![3.0], vec![3.0; 30], vec![0.0; 5], vec![f32::MAX, 0.0, f32::INFINITY, f32::NAN]] {
            let svg = loss_svg("x", &run(losses.clone()));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{losses:?}: {svg}");
            assert!(coordinates(&svg).iter().all(|&c| (-1.0..=WIDTH).contains(&c)), "{losses:?}: {svg}");
        }
    }

    #[test]
    fn a_long_run_is_thinned_out_and_a_strange_name_is_escaped() {
        let svg = loss_svg("<a>&\u{1}", &run((0..50_000).map(|step| 1.0 / (1.0 + step as f32))));
        assert!(svg.len() < 60_000, "{} bytes", svg.len());
        assert!(svg.contains("Loss of &lt;a&gt;&amp;\u{fffd}"), "{}", &svg[..600]);
    }

    #[test]
    fn ticks_are_round_numbers() {
        for (x, tick) in [(0.3, 0.5), (1.0, 1.0), (1.2, 2.0), (7.0, 10.0), (333.3, 500.0)] {
            assert!((nice(x) - tick).abs() < 1e-9, "{x}: {}", nice(x));
        }
        assert_eq!(ticks((0.0, 1.0), 0.25).collect::<Vec<_>>(), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(thousands(1_234_567.0), "1,234,567");
        assert_eq!(thousands(100.0), "100");
    }
}
