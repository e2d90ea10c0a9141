//! Series: subjects such as `queues-1` and `queues-4`, one table for each series of them.

use super::grid::{Content, Grid};
use super::number::four_digits;
use super::results::Results;
use super::table::NONE;
use crate::figure::{Figure, Unit};
use crate::host::SERIES;

/// Whether these are the results of series, and nothing else.
pub fn are_all(results: &Results) -> bool {
    results.subjects().iter().all(|subject| SERIES.iter().any(|(series, _)| number(series, subject).is_some()))
}

/// A table for each series of which there is any subject.
pub fn grids(results: &Results) -> Vec<Grid> {
    let grid = |(series, caption): &(&str, &str)| {
        let subjects =
            results.subjects().iter().filter_map(|subject| Some((number(series, subject)?, subject.as_str())));
        let subjects: Vec<_> = subjects.collect();
        let heads = [("figure".into(), Content::Words), ("unit".into(), Content::Words)];
        let heading = |number| if number == 1 { series.trim_end_matches('s') } else { *series };
        let numbers = subjects.iter().map(|&(number, _)| (format!("{number} {}", heading(number)), Content::Numbers));
        let figures =
            results.figures().filter(|figure| subjects.iter().any(|(_, name)| results.value(figure, name).is_some()));
        Grid {
            caption: format!("{caption} In brackets: compared with the first."),
            columns: heads.into_iter().chain(numbers).collect(),
            rows: figures.map(|figure| row(results, figure, &subjects)).collect(),
        }
    };
    SERIES.iter().map(grid).filter(|grid| !grid.rows.is_empty()).collect()
}

fn row(results: &Results, figure: &Figure, subjects: &[(usize, &str)]) -> Vec<String> {
    let mut values = subjects.iter().map(|(_, subject)| results.value(figure, subject));
    let first = values.clone().flatten().next();
    let mut has_first = false;
    let cell = |value: Option<f64>| {
        let Some(value) = value else { return NONE.into() };
        let text = if figure.unit == Unit::Count { value.to_string() } else { four_digits(value) };
        match first {
            Some(first) if std::mem::replace(&mut has_first, true) => format!("{text} ({:.2})", value / first),
            _ => text,
        }
    };
    [figure.title.into(), figure.unit.symbol().into()].into_iter().chain(values.by_ref().map(cell)).collect()
}

/// Of how many of what the series counts.
fn number(series: &str, subject: &str) -> Option<usize> {
    subject.strip_prefix(series)?.strip_prefix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{example, results};
    use super::*;

    #[test]
    fn a_table_for_each_series_compares_with_the_first_value() {
        let results = results(&[
            ("queues-1", "boot", 1500.0),
            ("queues-2", "boot", 1530.0),
            ("devices-1", "threads", 4.0),
            ("devices-2", "threads", 8.0),
            ("devices-2", "memory-net", 1.25),
            ("devices-4", "memory-net", 1.0),
        ]);
        assert!(are_all(&results));
        let grids = grids(&results);
        assert_eq!(grids.len(), 2);
        assert_eq!([&grids[0].columns[2].0, &grids[0].columns[3].0], ["1 queue", "2 queues"]);
        assert_eq!(grids[0].rows, [["boot, fork of the VMM to /init", "ms", "1500", "1530 (1.02)"]]);
        assert_eq!(grids[1].rows[0][2..], [NONE, "1.250", "1.000 (0.80)"]);
        assert_eq!(grids[1].rows[1][2..], ["4", "8 (2.00)", NONE]);
    }

    #[test]
    fn vmms_are_no_series() {
        assert!(!are_all(&example()));
        assert_eq!(number("queues", "queues-2q"), None);
        assert_eq!(number("queues", "queues16"), None);
    }
}
