//! The guest's reports to the host: lines on the console, among other output.

use crate::figure::Figure;

/// One line.
#[derive(Clone, Debug)]
pub enum Line {
    /// The first process runs.
    Init,
    /// A load begins.
    Begin(&'static Figure),
    /// The result of a load, in the figure's unit.
    Figure(&'static Figure, f64),
    /// All loads are done; the host may look at the processes' memory for a tenth of a second.
    Idle,
    /// A load could not be run.
    Problem(String),
}

/// The host's line when there is no more work.
pub const END: &str = "end";

const INIT: &str = "@init";
const BEGIN: &str = "@begin ";
const FIGURE: &str = "@figure ";
const IDLE: &str = "@idle";
const PROBLEM: &str = "@problem ";

impl Line {
    /// To standard output, which is the console.
    pub fn print(&self) {
        match self {
            Self::Init => println!("{INIT}"),
            Self::Begin(figure) => println!("{BEGIN}{}", figure.name),
            Self::Figure(figure, value) => println!("{FIGURE}{} {value}", figure.name),
            Self::Idle => println!("{IDLE}"),
            Self::Problem(what) => println!("{PROBLEM}{what}"),
        }
    }

    /// From a console's line; none if it is other output.
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end();
        match line {
            INIT => return Some(Self::Init),
            IDLE => return Some(Self::Idle),
            _ => {}
        }
        if let Some(what) = line.strip_prefix(PROBLEM) {
            return Some(Self::Problem(what.into()));
        }
        if let Some(name) = line.strip_prefix(BEGIN) {
            return Figure::named(name).map(Self::Begin);
        }
        let (name, value) = line.strip_prefix(FIGURE)?.split_once(' ')?;
        Some(Self::Figure(Figure::named(name)?, value.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_peoples_lines_are_not_ours() {
        for line in ["", "[    0.0] Linux", "@figure", "@figure boot", "@figure boot x", "@figure nothing 1", "init"] {
            assert!(Line::parse(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_figure_keeps_its_value_and_loses_the_carriage_return() {
        let Some(Line::Figure(figure, value)) = Line::parse("@figure boot 1300.5\r\n") else { panic!("not a figure") };
        assert_eq!((figure.name, value), ("boot", 1300.5));
    }
}
