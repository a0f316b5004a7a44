// SPDX-License-Identifier: MIT OR Apache-2.0
//! Draws plots: panels with axes, lines or columns with their spread, and the bars as dashed lines.
//!
//! A plot must be readable without the text around it, on light and dark pages, printed without
//! colours, and by readers with colour blindness: each listener also has its own shape, and the
//! last value of each line stands at its end.

use std::io;

use accf_bench::Listener;
use anyhow::{Context, Result};
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::types::RangedCoordf64;
use plotters::coord::{cartesian::Cartesian2d, Shift};
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{
    Circle, DashedPathElement, PathElement, Polygon, Rectangle, Text, TriangleMarker,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontFamily, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle,
};

use super::figures::{title, Statistics};
use super::scale::{Scale, Tick};
use crate::report::LICENCE;

/// Width of a picture, about that of a page on GitHub.
const WIDTH: u32 = 960;
/// Height of the title, the note and the legend.
const HEAD: u32 = 92;
/// Height of a panel with its titles and axes.
const PANEL: u32 = 306;
/// Margin of the picture.
const EDGE: i32 = 22;
/// Room left of a panel's plot, for the numbers and the name of the axis.
const LEFT: i32 = 74;
/// Room below a panel's plot, for the same.
const BELOW: i32 = 64;
/// Room above a panel's plot, for its title.
const ABOVE: i32 = 34;
/// Room right of a panel's plot, for the last values of the lines.
const NAMES: i32 = 58;
/// Distance of lines of text.
const LINE: i32 = 15;
/// Approximate width of a character of small text.
const CHARACTER: f64 = 6.9;
/// Approximate width of a capital.
const CAPITAL: f64 = 9.4;
/// Height of a row of crosses, as a fraction of the panel's.
const CROSSES: f64 = 0.06;
/// Width of a group of columns, as a fraction of its room.
const GROUP: f64 = 0.8;

/// The colours of text, lines and the background, as in the demo's picture.
const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const SOFT: RGBColor = RGBColor(0x59, 0x63, 0x6e);
const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
/// Colour of what a bar allows.
const ALLOWED: RGBColor = RGBColor(0xda, 0xfb, 0xe1);

/// Fonts of web pages.
const FONTS: &str = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif";

/// A drawing area.
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A panel's plot.
type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The result of drawing.
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

/// A picture of one benchmark.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picture {
    /// The title.
    pub(crate) title: String,
    /// A remark below the title.
    pub(crate) note: String,
    /// The meaning of a dashed line.
    pub(crate) limit: Option<&'static str>,
    /// The panels, row by row.
    pub(crate) panels: Vec<Panel>,
    /// The number of panels in a row; 0 means 1.
    pub(crate) columns: usize,
    /// All panels have the same y axis.
    pub(crate) same_heights: bool,
}

/// One plot of a picture.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// The title.
    pub(crate) title: String,
    /// The x axis.
    pub(crate) x: Axis,
    /// The y axis.
    pub(crate) y: Axis,
    /// The figures of each listener.
    pub(crate) series: Vec<Series>,
    /// Draws columns instead of lines.
    pub(crate) as_columns: bool,
    /// The bars.
    pub(crate) limits: Vec<Limit>,
}

/// An axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// The quantity and its unit.
    pub(crate) label: String,
    /// The scale.
    pub(crate) scale: Scale,
    /// Writes a value.
    pub(crate) words: fn(f64) -> String,
    /// The names of a [`Scale::Things`], which may have several lines.
    pub(crate) names: Vec<String>,
}

/// The figures of one listener.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// The listener.
    pub(crate) listener: Listener,
    /// The figures, by their places.
    pub(crate) points: Vec<(f64, Statistics)>,
    /// The places that could not be measured.
    pub(crate) missing: Vec<f64>,
}

/// A bar in a panel.
#[derive(Clone, Debug)]
pub(crate) enum Limit {
    /// This value, at all places.
    Level(f64),
    /// This value, for the column of one listener at one place.
    Column(f64, Listener, f64),
    /// A range of values for each place.
    Between(Vec<(f64, f64, f64)>),
}

/// Returns a listener's colour. The colours differ for readers with colour blindness, too.
fn colour(listener: Listener) -> RGBColor {
    match listener {
        Listener::Plain => RGBColor(0x6e, 0x77, 0x81),
        Listener::DeferAccept => RGBColor(0xc9, 0x69, 0x1c),
        Listener::Dataready => RGBColor(0x09, 0x69, 0xda),
    }
}

/// Returns the style of text of this size in pixels.
fn text(size: f64, colour: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    // The library divides the size by 1.24.
    let font = (FontFamily::Name(FONTS), size * 1.24).into_font();
    TextStyle {
        font,
        color: colour.to_backend_color(),
        pos: Pos::new(horizontal, vertical),
    }
}

/// Makes a style bold.
fn bold(style: TextStyle<'static>) -> TextStyle<'static> {
    TextStyle {
        font: style.font.style(FontStyle::Bold),
        ..style
    }
}

/// Returns the approximate width of small text.
fn width(words: &str) -> i32 {
    let of = |letter: char| match letter.is_uppercase() {
        true => CAPITAL,
        false => CHARACTER,
    };
    words.chars().map(of).sum::<f64>() as i32
}

impl Picture {
    /// Returns the listeners that the picture shows, in their usual order.
    fn listeners(&self) -> Vec<Listener> {
        let series = || self.panels.iter().flat_map(|panel| &panel.series);
        let shown = |listener: &Listener| series().any(|series| series.listener == *listener);
        Listener::ALL.into_iter().filter(shown).collect()
    }

    /// Draws the picture as an SVG.
    pub(crate) fn render(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg)
            .with_context(|| format!("cannot draw `{}`", self.title))?;
        // For screen readers.
        let title = format!("<title>{}</title>\n", escaped(&self.title));
        let begin = svg.find(">\n").map_or(0, |at| at + 2);
        svg.insert_str(begin, &title);
        Ok(format!("{LICENCE}{svg}"))
    }

    /// Draws the picture into `svg`.
    fn draw(&self, svg: &mut String) -> Drawn {
        let columns = self.columns.max(1);
        let rows = self.panels.len().div_ceil(columns);
        let height = HEAD + PANEL * u32::try_from(rows).unwrap_or(1) + 12;
        let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
        root.fill(&PAPER)?;
        let (top, left) = (VPos::Top, HPos::Left);
        let style = bold(text(18.0, INK, left, top));
        root.draw(&Text::new(self.title.as_str(), (EDGE, 16), style))?;
        let style = text(12.5, SOFT, left, top);
        root.draw(&Text::new(self.note.as_str(), (EDGE, 43), style))?;
        self.legend(&root)?;
        let (_, body) = root.split_vertically(HEAD);
        let areas = body
            .margin(0, 12, EDGE / 2, EDGE / 2)
            .split_evenly((rows, columns));
        for (panel, area) in self.panels.iter().zip(&areas) {
            let like: Vec<&Panel> = if self.same_heights {
                self.panels.iter().collect()
            } else {
                vec![panel]
            };
            panel.draw(&root, area, &like)?;
        }
        root.present()
    }

    /// Draws the legend.
    fn legend(&self, root: &Area<'_>) -> Drawn {
        let y = 75;
        let mut x = EDGE + 6;
        let style = text(12.5, INK, HPos::Left, VPos::Center);
        let as_columns = self.panels.iter().all(|panel| panel.as_columns);
        for listener in self.listeners() {
            if as_columns {
                let corners = [(x - 6, y - 6), (x + 6, y + 6)];
                root.draw(&Rectangle::new(corners, colour(listener).filled()))?;
            } else {
                let ends = vec![(x - 8, y), (x + 8, y)];
                root.draw(&PathElement::new(ends, colour(listener).stroke_width(2)))?;
                mark(root, listener, (x, y))?;
            }
            root.draw(&Text::new(title(listener), (x + 14, y), style.clone()))?;
            x += 14 + width(title(listener)) + 34;
        }
        let entry = |x: &mut i32, words: &str| {
            root.draw(&Text::new(words.to_owned(), (*x + 14, y), style.clone()))?;
            *x += 14 + width(words) + 34;
            Ok::<_, DrawingAreaErrorKind<io::Error>>(())
        };
        if let Some(limit) = self.limit {
            dashed(root, [(x - 10, y), (x + 10, y)])?;
            entry(&mut x, limit)?;
        }
        let missing = self.panels.iter().flat_map(|panel| &panel.series);
        if missing.into_iter().any(|series| !series.missing.is_empty()) {
            cross(root, SOFT, (x, y))?;
            entry(&mut x, "not measured")?;
        }
        Ok(())
    }
}

impl Panel {
    /// Draws the panel into `area` of `root`, with the y axis of all panels in `like`.
    fn draw(&self, root: &Area<'_>, area: &Area<'_>, like: &[&Self]) -> Drawn {
        let x_values = self.series.iter().flat_map(|series| {
            let points = series.points.iter().map(|(x, _)| *x);
            points.chain(series.missing.iter().copied())
        });
        let x_range = self.x.scale.range(x_values);
        let heights = like.iter().flat_map(|panel| panel.heights());
        let (lowest, highest) = self.y.scale.range(heights);
        // Crosses stand above everything that was measured.
        let rows = like.iter().map(|panel| panel.missing_rows());
        let room = (highest - lowest) * CROSSES * rows.max().unwrap_or(0) as f64;
        let y_range = (lowest, highest + room);
        let right = if self.as_columns { 14 } else { NAMES };
        let plot = ChartBuilder::on(area)
            .margin_left(LEFT)
            .margin_bottom(BELOW)
            .margin_top(ABOVE)
            .margin_right(right)
            .build_cartesian_2d(x_range.0..x_range.1, y_range.0..y_range.1)?;
        let (xs, ys) = plot.plotting_area().get_pixel_range();
        let style = bold(text(13.5, INK, HPos::Left, VPos::Bottom));
        let at = (xs.start, ys.start - 8);
        root.draw(&Text::new(self.title.as_str(), at, style))?;
        for limit in &self.limits {
            self.allowed(root, &plot, limit)?;
        }
        self.axes(root, &plot, (x_range, y_range))?;
        if self.as_columns {
            self.columns(root, &plot)?;
        } else {
            self.lines(root, &plot)?;
        }
        for limit in &self.limits {
            self.limit(root, &plot, limit)?;
        }
        Ok(())
    }

    /// Counts the listeners that could not be measured at all places.
    fn missing_rows(&self) -> usize {
        let missing = |series: &&Series| !series.missing.is_empty() && !self.as_columns;
        self.series.iter().filter(missing).count()
    }

    /// Returns all values that the y axis must include.
    fn heights(&self) -> Vec<f64> {
        let points = self.series.iter().flat_map(|series| &series.points);
        let mut heights: Vec<f64> = points.flat_map(|(_, y)| [y.min, y.max]).collect();
        for limit in &self.limits {
            match limit {
                Limit::Level(y) | Limit::Column(_, _, y) => heights.push(*y),
                Limit::Between(places) => {
                    heights.extend(places.iter().flat_map(|(_, low, high)| [*low, *high]));
                }
            }
        }
        heights
    }

    /// Returns the pixel of a point.
    fn pixel(&self, plot: &Plot<'_, '_>, x: f64, y: f64) -> (i32, i32) {
        plot.backend_coord(&(self.x.scale.place(x), self.y.scale.place(y)))
    }

    /// Draws both axes with their names.
    fn axes(
        &self,
        root: &Area<'_>,
        plot: &Plot<'_, '_>,
        (x_range, y_range): ((f64, f64), (f64, f64)),
    ) -> Drawn {
        let (xs, ys) = plot.plotting_area().get_pixel_range();
        for Tick { place, label } in self.y.ticks(y_range) {
            let (_, y) = plot.backend_coord(&(x_range.0, place));
            if !label.is_empty() {
                let line = vec![(xs.start, y), (xs.end, y)];
                root.draw(&PathElement::new(line, GRID.stroke_width(1)))?;
            }
            let style = text(12.0, SOFT, HPos::Right, VPos::Center);
            root.draw(&Text::new(label, (xs.start - 8, y), style))?;
        }
        let discrete = matches!(self.x.scale, Scale::Things(_));
        for Tick { place, label } in self.x.ticks(x_range) {
            let (x, _) = plot.backend_coord(&(place, y_range.0));
            if !discrete {
                let long = if label.is_empty() { 3 } else { 6 };
                let line = vec![(x, ys.end), (x, ys.end + long)];
                root.draw(&PathElement::new(line, SOFT.stroke_width(1)))?;
            }
            for (row, words) in (0..).zip(label.lines()) {
                let style = text(12.0, SOFT, HPos::Center, VPos::Top);
                let at = (x, ys.end + 9 + row * LINE);
                root.draw(&Text::new(words.to_owned(), at, style))?;
            }
        }
        let line = vec![(xs.start, ys.start), (xs.start, ys.end), (xs.end, ys.end)];
        root.draw(&PathElement::new(line, SOFT.stroke_width(1)))?;
        let style = text(12.5, INK, HPos::Center, VPos::Top);
        let rows = self.x.names.iter().map(|name| name.lines().count());
        let below = if rows.max().unwrap_or(1) > 1 { 44 } else { 32 };
        let below = (xs.start.midpoint(xs.end), ys.end + below);
        root.draw(&Text::new(self.x.label.as_str(), below, style))?;
        let style = text(12.5, INK, HPos::Center, VPos::Center);
        let style = style.transform(FontTransform::Rotate270);
        let beside = (xs.start - LEFT + 10, ys.start.midpoint(ys.end));
        root.draw(&Text::new(self.y.label.as_str(), beside, style))
    }

    /// Draws lines with a mark and the spread at each point, and the last value at the end of each.
    fn lines(&self, root: &Area<'_>, plot: &Plot<'_, '_>) -> Drawn {
        let (xs, ys) = plot.plotting_area().get_pixel_range();
        let mut names = Vec::new();
        let mut ends = Vec::new();
        let mut marks = Vec::new();
        let mut crosses = ys.start + 8;
        for series in &self.series {
            let colour = colour(series.listener);
            let points = series.points.iter();
            let line = points.map(|(x, y)| self.pixel(plot, *x, y.median));
            let line: Vec<(i32, i32)> = line.collect();
            root.draw(&PathElement::new(line.clone(), colour.stroke_width(2)))?;
            for ((x, y), at) in series.points.iter().zip(&line) {
                let (_, low) = self.pixel(plot, *x, y.min);
                let (_, high) = self.pixel(plot, *x, y.max);
                whisker(root, colour, at.0, (high, low))?;
                mark(root, series.listener, *at)?;
            }
            for x in &series.missing {
                let (x, _) = self.pixel(plot, *x, 1.0);
                cross(root, colour, (x, crosses))?;
            }
            // Each listener has its own row of crosses.
            crosses += if series.missing.is_empty() { 0 } else { LINE };
            if let (Some((_, y)), Some(at)) = (series.points.last(), line.last()) {
                let words = (self.y.words)(y.median);
                if series.missing.is_empty() {
                    names.push((at.1, words, colour));
                } else {
                    ends.push((*at, words, colour));
                }
            }
            marks.extend(line);
        }
        // A line that ends before the others has its last value there, if there is room.
        for ((x, y), words, colour) in ends {
            let near = |mark: &&(i32, i32)| mark.0 == x && (mark.1 - y).abs() < LINE;
            if marks.iter().filter(near).count() == 1 {
                let style = text(12.0, colour, HPos::Left, VPos::Center);
                root.draw(&Text::new(words, (x + 10, y), style))?;
            }
        }
        names.sort_by_key(|(y, ..)| *y);
        let mut lowest = i32::MIN;
        for (y, words, colour) in names {
            let y = y.max(lowest);
            lowest = y.saturating_add(LINE);
            let style = text(12.0, colour, HPos::Left, VPos::Center);
            root.draw(&Text::new(words, (xs.end + 6, y), style))?;
        }
        Ok(())
    }

    /// Returns the left and the right end of a listener's column.
    fn column(&self, plot: &Plot<'_, '_>, x: f64, listener: Listener) -> (i32, i32) {
        let count = self.series.len().max(1) as f64;
        let before = self.series.iter().take_while(|it| it.listener != listener);
        let index = before.count() as f64;
        let wide = GROUP / count;
        let left = self.x.scale.place(x) - GROUP / 2.0 + wide * index;
        let pixel = |place: f64| plot.backend_coord(&(place, 0.0)).0;
        (pixel(left) + 2, pixel(left + wide) - 2)
    }

    /// Draws columns with the spread, and the value above each.
    fn columns(&self, root: &Area<'_>, plot: &Plot<'_, '_>) -> Drawn {
        for series in &self.series {
            let colour = colour(series.listener);
            for (x, y) in &series.points {
                let (left, right) = self.column(plot, *x, series.listener);
                let (_, top) = self.pixel(plot, *x, y.median);
                let (_, foot) = self.pixel(plot, *x, 0.0);
                let corners = [(left, top), (right, foot)];
                root.draw(&Rectangle::new(corners, colour.filled()))?;
                let (_, low) = self.pixel(plot, *x, y.min);
                let (_, high) = self.pixel(plot, *x, y.max);
                let middle = left.midpoint(right);
                whisker(root, INK, middle, (high, low))?;
                let style = text(12.0, INK, HPos::Center, VPos::Bottom);
                let words = (self.y.words)(y.median);
                root.draw(&Text::new(words, (middle, high - 3), style))?;
            }
            for x in &series.missing {
                let (left, right) = self.column(plot, *x, series.listener);
                let (_, foot) = self.pixel(plot, *x, 0.0);
                cross(root, colour, (left.midpoint(right), foot - 9))?;
            }
        }
        Ok(())
    }

    /// Draws what a limit allows.
    fn allowed(&self, root: &Area<'_>, plot: &Plot<'_, '_>, limit: &Limit) -> Drawn {
        let Limit::Between(places) = limit else {
            return Ok(());
        };
        let [low, high] = self.edges(plot, places);
        let around: Vec<(i32, i32)> = low.into_iter().chain(high.into_iter().rev()).collect();
        root.draw(&Polygon::new(around, ALLOWED.filled()))
    }

    /// Returns the lower and the upper edge of what is allowed at these places.
    fn edges(&self, plot: &Plot<'_, '_>, places: &[(f64, f64, f64)]) -> [Vec<(i32, i32)>; 2] {
        let low = places.iter().map(|(x, low, _)| self.pixel(plot, *x, *low));
        let high = places
            .iter()
            .map(|(x, _, high)| self.pixel(plot, *x, *high));
        [low.collect(), high.collect()]
    }

    /// Draws a limit.
    fn limit(&self, root: &Area<'_>, plot: &Plot<'_, '_>, limit: &Limit) -> Drawn {
        let (xs, _) = plot.plotting_area().get_pixel_range();
        match limit {
            Limit::Level(y) => {
                let (_, y) = plot.backend_coord(&(0.0, self.y.scale.place(*y)));
                dashed(root, [(xs.start, y), (xs.end, y)])
            }
            Limit::Column(x, listener, y) => {
                let (left, right) = self.column(plot, *x, *listener);
                let (_, y) = self.pixel(plot, *x, *y);
                dashed(root, [(left - 4, y), (right + 4, y)])
            }
            Limit::Between(places) => {
                let [low, high] = self.edges(plot, places);
                dashed(root, low)?;
                dashed(root, high)
            }
        }
    }
}

impl Axis {
    /// Returns an axis of values.
    pub(crate) fn new(label: impl Into<String>, scale: Scale, words: fn(f64) -> String) -> Self {
        Self {
            label: label.into(),
            scale,
            words,
            names: Vec::new(),
        }
    }

    /// Returns an axis of things with names.
    pub(crate) fn of_things(label: impl Into<String>, names: Vec<String>) -> Self {
        Self {
            label: label.into(),
            scale: Scale::Things(names.len()),
            words: super::scale::short,
            names,
        }
    }

    /// Returns the marks between two places.
    fn ticks(&self, range: (f64, f64)) -> Vec<Tick> {
        self.scale.ticks(range, |value| {
            let name = self.names.get(value as usize);
            name.cloned().unwrap_or_else(|| (self.words)(value))
        })
    }
}

/// Draws a listener's mark, for readers with colour blindness. Marks that are drawn later are
/// smaller, so that none is hidden.
fn mark(root: &Area<'_>, listener: Listener, (x, y): (i32, i32)) -> Drawn {
    let style: ShapeStyle = colour(listener).filled();
    match listener {
        Listener::Plain => root.draw(&Circle::new((x, y), 6, style)),
        Listener::DeferAccept => root.draw(&TriangleMarker::new((x, y), 7, style)),
        Listener::Dataready => root.draw(&Rectangle::new([(x - 3, y - 3), (x + 3, y + 3)], style)),
    }
}

/// Draws a small cross.
fn cross(root: &Area<'_>, colour: RGBColor, (x, y): (i32, i32)) -> Drawn {
    for (from, to) in [
        ((x - 4, y - 4), (x + 4, y + 4)),
        ((x - 4, y + 4), (x + 4, y - 4)),
    ] {
        root.draw(&PathElement::new(vec![from, to], colour.stroke_width(2)))?;
    }
    Ok(())
}

/// Draws the range from the least to the greatest value, if it is large enough to be seen.
fn whisker(root: &Area<'_>, colour: RGBColor, x: i32, (high, low): (i32, i32)) -> Drawn {
    if low - high < 2 {
        return Ok(());
    }
    let style = colour.stroke_width(1);
    root.draw(&PathElement::new(vec![(x, high), (x, low)], style))?;
    for y in [high, low] {
        root.draw(&PathElement::new(vec![(x - 4, y), (x + 4, y)], style))?;
    }
    Ok(())
}

/// Draws a bar as a dashed line.
fn dashed(root: &Area<'_>, points: impl Into<Vec<(i32, i32)>>) -> Drawn {
    let line = DashedPathElement::new(points.into(), 6, 4, INK.stroke_width(2));
    root.draw(&line)
}

/// Escapes `words` for XML.
fn escaped(words: &str) -> String {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    words.replace('>', "&gt;")
}
