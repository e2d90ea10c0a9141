//! The report as a picture: for each figure a group of bars, one for each subject, relative to the best peer.
//!
//! The picture brings its own light background, so that it reads the same on a white page and on a dark one.

use std::io;

use plotters::coord::Shift;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::{
    Color, DrawingArea, IntoDrawingArea, IntoFont, PathElement, Polygon, RGBAColor, RGBColor, Rectangle, SVGBackend,
    ShapeStyle, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::number::four_digits;
use super::results::{OURS, Results, is_peer};
use crate::figure::Figure;

/// Why there is no picture.
pub type PlotError = DrawingAreaErrorKind<io::Error>;

// All in pixels.
const WIDTH: i32 = 960;
const MARGIN: i32 = 20;
const GUTTER: i32 = 32;
const COLUMN: i32 = (WIDTH - 2 * MARGIN - GUTTER) / 2;
const HEAD: i32 = 64;
const TITLE: i32 = 24;
const ROW: i32 = 16;
const BAR: i32 = 12;
const GAP: i32 = 14;
/// For a value and its ratio, at the right of the bars.
const NUMBERS: i32 = 104;
const RATIO: i32 = 50;
/// The widest character in a label is about this wide.
const CHARACTER: i32 = 7;

/// The longest bar, as a ratio; one that would be longer is cut, which shows.
const MAX_RATIO: f64 = 2.5;

const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const FAINT: RGBColor = RGBColor(0x59, 0x63, 0x6e);
const FRAME: RGBColor = RGBColor(0xd1, 0xd9, 0xe0);
const OURS_COLOUR: RGBColor = RGBColor(0x09, 0x69, 0xda);
/// Of our colour, for variants of ours.
const VARIANT: f64 = 0.5;
/// Peers take turns, in the order first seen.
const GREYS: [RGBColor; 4] =
    [RGBColor(0x5f, 0x5f, 0x5f), RGBColor(0x80, 0x80, 0x80), RGBColor(0x9c, 0x9c, 0x9c), RGBColor(0xb5, 0xb5, 0xb5)];

/// A figure's values beside what they are relative to.
struct Group<'a> {
    figure: &'static Figure,
    values: Vec<(&'a str, f64)>,
    /// The best peer's value; ours, or the first, where there is no peer.
    one: f64,
    has_peer: bool,
}

impl<'a> Group<'a> {
    fn of(results: &'a Results, figure: &'static Figure) -> Option<Self> {
        let values: Vec<_> = results.values(figure).collect();
        let peer = results.best_peer(figure).map(|(_, value)| value);
        let one = peer.or(results.value(figure, OURS)).or(values.first().map(|(_, value)| *value))?;
        Some(Self { figure, values, one, has_peer: peer.is_some() })
    }

    fn height(&self) -> i32 {
        TITLE + times(self.values.len(), ROW) + GAP
    }

    fn title(&self) -> String {
        let note = if self.has_peer { "" } else { " (no peer)" };
        format!("{}, {}{note}", self.figure.title, self.figure.unit.symbol())
    }
}

/// Where a group's parts are, from left to right.
struct Columns {
    left: i32,
    /// Where bars begin.
    bars: i32,
    /// Where the longest bar ends.
    end: i32,
    right: i32,
    /// Of the longest bar.
    most: f64,
}

impl Columns {
    fn at(&self, ratio: f64) -> i32 {
        let share = (ratio / self.most).clamp(0.0, 1.0);
        let width = (f64::from(self.end - self.bars) * share).round();
        #[expect(clippy::cast_possible_truncation, reason = "between zero and the width of the picture")]
        let width = width as i32;
        self.bars + width
    }
}

/// The picture as the text of an SVG file.
///
/// # Errors
/// Plotters has some.
pub fn svg(results: &Results) -> Result<String, PlotError> {
    let groups: Vec<_> = results.figures().filter_map(|figure| Group::of(results, figure)).collect();
    let (first, second) = groups.split_at(first_column(&groups));
    let height = HEAD + height(first).max(height(second)) + MARGIN;
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let picture = Picture { area: &area, results, most: most(&groups), labels: label_width(results) };
        picture.head(height)?;
        picture.groups(first, MARGIN)?;
        picture.groups(second, MARGIN + COLUMN + GUTTER)?;
        area.present()?;
    }
    Ok(text)
}

fn height(groups: &[Group]) -> i32 {
    groups.iter().map(Group::height).sum()
}

fn times(count: usize, each: i32) -> i32 {
    i32::try_from(count).map_or(i32::MAX, |count| count.saturating_mul(each))
}

/// How many groups are in the first of two columns, for the columns to be about as high as each other.
fn first_column(groups: &[Group]) -> usize {
    let excess = |count: &usize| (2 * height(&groups[..*count])).abs_diff(height(groups));
    (0..=groups.len()).rev().min_by_key(excess).unwrap_or(0)
}

/// The ratio of the longest bar drawn: all groups have one scale.
fn most(groups: &[Group]) -> f64 {
    let ratios = groups.iter().flat_map(|group| group.values.iter().map(|(_, value)| value / group.one));
    ratios.fold(1.0, f64::max).min(MAX_RATIO)
}

fn label_width(results: &Results) -> i32 {
    results.subjects().iter().map(|name| times(name.len(), CHARACTER)).max().unwrap_or(0)
}

struct Picture<'a, 'b> {
    area: &'a DrawingArea<SVGBackend<'b>, Shift>,
    results: &'a Results,
    most: f64,
    labels: i32,
}

impl Picture<'_, '_> {
    fn head(&self, height: i32) -> Result<(), PlotError> {
        self.area.fill(&WHITE)?;
        self.area.draw(&Rectangle::new([(0, 0), (WIDTH - 1, height - 1)], FRAME))?;
        self.text(
            "Outrigger and its peers, relative to the best peer; less is better",
            (MARGIN, 22),
            16,
            INK,
            HPos::Left,
        )?;
        let mut x = MARGIN;
        let ours = [(OURS, colour(self.results, OURS)), ("variants of it", OURS_COLOUR.mix(VARIANT))];
        for (what, colour) in ours {
            x = self.swatch(what, x, colour)?;
        }
        let peers = GREYS.map(|grey| grey.to_rgba());
        for grey in &peers[1..] {
            self.area.draw(&bar(x, x + BAR, 46, *grey))?;
            x += BAR + 2;
        }
        x = self.swatch("peers", x, peers[0])?;
        self.line(x, 39, 53)?;
        self.text("the best peer", (x + 8, 46), 12, INK, HPos::Left)
    }

    /// Returns where the next one can begin.
    fn swatch(&self, what: &str, x: i32, colour: RGBAColor) -> Result<i32, PlotError> {
        self.area.draw(&bar(x, x + BAR, 46, colour))?;
        self.text(what, (x + BAR + 6, 46), 12, INK, HPos::Left)?;
        Ok(x + BAR + 6 + times(what.len(), CHARACTER) + 14)
    }

    fn groups(&self, groups: &[Group], left: i32) -> Result<(), PlotError> {
        let right = left + COLUMN;
        let columns = Columns { left, bars: left + self.labels + 4, end: right - NUMBERS, right, most: self.most };
        let mut top = HEAD;
        for group in groups {
            self.group(group, &columns, top)?;
            top += group.height();
        }
        Ok(())
    }

    fn group(&self, group: &Group, columns: &Columns, top: i32) -> Result<(), PlotError> {
        self.text(&group.title(), (columns.left, top + TITLE / 2), 13, INK, HPos::Left)?;
        let mut middle = top + TITLE + ROW / 2;
        for &(subject, value) in &group.values {
            self.row(subject, value, value / group.one, columns, middle)?;
            middle += ROW;
        }
        if group.has_peer {
            self.line(columns.at(1.0), top + TITLE - 2, middle - ROW / 2 + 2)?;
        }
        Ok(())
    }

    fn row(&self, subject: &str, value: f64, ratio: f64, columns: &Columns, middle: i32) -> Result<(), PlotError> {
        let ink = if subject == OURS { INK } else { FAINT };
        self.text(subject, (columns.left, middle), 12, ink, HPos::Left)?;
        let end = columns.at(ratio);
        self.area.draw(&bar(columns.bars, end, middle, colour(self.results, subject)))?;
        if ratio > self.most {
            // A slanted cut says that the bar goes on.
            let (top, bottom) = (middle - BAR / 2 - 1, middle + BAR / 2 + 1);
            let corners = [(end - 14, bottom), (end - 10, bottom), (end - 6, top), (end - 10, top)];
            self.area.draw(&Polygon::new(corners, ShapeStyle::from(&WHITE).filled()))?;
        }
        self.text(&four_digits(value), (columns.right - RATIO, middle), 12, ink, HPos::Right)?;
        self.text(&format!("{ratio:.2}×"), (columns.right, middle), 12, ink, HPos::Right)
    }

    /// From `top` to `bottom`, where the best peer's bar ends.
    fn line(&self, x: i32, top: i32, bottom: i32) -> Result<(), PlotError> {
        self.area.draw(&PathElement::new([(x, top), (x, bottom)], INK))
    }

    /// Beside or around a point, at half its height.
    fn text(&self, text: &str, at: (i32, i32), size: i32, colour: RGBColor, side: HPos) -> Result<(), PlotError> {
        // Plotters divides by this before it writes a size in pixels.
        let size = f64::from(size) * 1.24;
        let style = ("sans-serif", size).into_font().color(&colour).pos(Pos::new(side, VPos::Center));
        self.area.draw(&Text::new(text, at, style))
    }
}

fn bar(from: i32, to: i32, middle: i32, colour: RGBAColor) -> Rectangle<(i32, i32)> {
    Rectangle::new([(from, middle - BAR / 2), (to, middle + BAR / 2)], ShapeStyle::from(&colour).filled())
}

fn colour(results: &Results, subject: &str) -> RGBAColor {
    if subject == OURS {
        return OURS_COLOUR.to_rgba();
    }
    if !is_peer(subject) {
        return OURS_COLOUR.mix(VARIANT);
    }
    let peers = results.subjects().iter().filter(|subject| is_peer(subject));
    let turn = peers.zip(GREYS.iter().cycle()).find(|(peer, _)| *peer == subject);
    turn.map_or(FAINT, |(_, grey)| *grey).to_rgba()
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{example, results};
    use super::*;
    use crate::figure::FIGURES;

    /// An attribute of each element of a kind.
    fn attributes<'a>(svg: &'a str, element: &str, name: &str) -> Vec<&'a str> {
        let (element, name) = (format!("<{element} "), format!("{name}=\""));
        let value = |rest: &'a str| rest.split(&name).nth(1).unwrap().split('"').next().unwrap();
        svg.split(&element).skip(1).map(|rest| value(rest.split('>').next().unwrap())).collect()
    }

    fn numbers(svg: &str, element: &str, name: &str) -> Vec<i32> {
        attributes(svg, element, name).iter().map(|value| value.parse().unwrap()).collect()
    }

    fn all_figures(subjects: &[&str]) -> Results {
        let mut all = Vec::new();
        for subject in subjects {
            all.extend(FIGURES.iter().map(|figure| (*subject, figure.name, 38.0)));
        }
        results(&all)
    }

    #[test]
    fn no_bar_leaves_the_picture() {
        let longest = "a".repeat(32);
        for results in [example(), all_figures(&[OURS, "outrigger-2q", "qemu", &longest]), all_figures(&["qemu"])] {
            let svg = svg(&results).unwrap();
            let height = numbers(&svg, "svg", "height")[0];
            let [x, y] = ["x", "y"].map(|name| numbers(&svg, "rect", name));
            let [w, h] = [" width", " height"].map(|name| numbers(&svg, "rect", name));
            for index in 0..x.len() {
                let inside =
                    x[index] >= 0 && y[index] >= 0 && x[index] + w[index] <= WIDTH && y[index] + h[index] <= height;
                assert!(inside && w[index] > 0 && h[index] > 0, "rectangle {index} of {svg}");
            }
            assert!(numbers(&svg, "text", "y").iter().all(|y| *y + 8 < height));
        }
    }

    #[test]
    fn bars_are_as_long_as_their_ratios() {
        let svg = svg(&results(&[("qemu", "boot", 10.0), (OURS, "boot", 5.0), ("crosvm", "boot", 20.0)])).unwrap();
        let widths = numbers(&svg, "rect", " width");
        let [qemu, ours, crosvm] = widths[widths.len() - 3..] else { panic!("three bars") };
        assert!(ours.abs_diff(qemu / 2) <= 1 && crosvm.abs_diff(qemu * 2) <= 1, "{ours}, {qemu}, {crosvm}");
        assert!(svg.contains("0.50×") && svg.contains("2.00×"), "{svg}");
    }

    #[test]
    fn a_bar_beyond_the_scale_is_cut() {
        let short = svg(&results(&[("qemu", "boot", 10.0), (OURS, "boot", 25.0)])).unwrap();
        let long = svg(&results(&[("qemu", "boot", 10.0), (OURS, "boot", 40.0)])).unwrap();
        assert_eq!(numbers(&short, "rect", " width"), numbers(&long, "rect", " width"));
        assert!(!short.contains("<polygon ") && long.contains("<polygon ") && long.contains("4.00×"));
    }

    #[test]
    fn ours_is_one_colour_and_peers_are_grey() {
        let svg = svg(&results(&[("qemu", "boot", 1.0), (OURS, "boot", 1.0), ("outrigger-2q", "boot", 1.0)])).unwrap();
        let fill = attributes(&svg, "rect", "fill");
        let opacity = attributes(&svg, "rect", "opacity");
        assert_eq!(fill[fill.len() - 3..], ["#5F5F5F", "#0969DA", "#0969DA"]);
        assert_eq!(opacity[opacity.len() - 3..], ["1", "1", "0.5"]);
    }

    #[test]
    fn without_a_peer_ours_is_one() {
        let svg = svg(&results(&[(OURS, "boot", 4.0), ("outrigger-2q", "boot", 2.0)])).unwrap();
        assert!(svg.contains("(no peer)") && svg.contains("1.00×") && svg.contains("0.50×"), "{svg}");
    }

    #[test]
    fn the_columns_are_about_as_high_as_each_other() {
        let results = all_figures(&["qemu", OURS]);
        let groups: Vec<_> = results.figures().filter_map(|figure| Group::of(&results, figure)).collect();
        assert_eq!(first_column(&groups), groups.len().div_ceil(2));
        assert_eq!(first_column(&groups[..1]), 1);
        assert_eq!(first_column(&[]), 0);
    }
}
