//! The report's two tables: ours against the best peer and the aims; then all subjects. Of series, see [`series`].

use super::grid::{Content, Grid};
use super::kind::Kind;
use super::number::four_digits;
use super::results::{OURS, Results};
use super::series;
use crate::figure::Figure;

/// Of subjects side by side; with more there are more tables.
const MAX_SUBJECTS: usize = 8;
/// Where there is no value.
pub(super) const NONE: &str = "–";

/// For a terminal of 130 columns.
pub fn text(results: &Results) -> String {
    joined(results, Grid::text)
}

/// For docs/PERFORMANCE.md.
pub fn markdown(results: &Results) -> String {
    joined(results, Grid::markdown)
}

fn joined(results: &Results, form: fn(&Grid) -> String) -> String {
    let grids: Vec<_> = match Kind::of(results) {
        Kind::Comparison => std::iter::once(against_best_peer(results)).chain(all_subjects(results)).collect(),
        Kind::Series => series::grids(results),
        Kind::Paths | Kind::Restarts => all_subjects(results).collect(),
    };
    grids.iter().map(form).collect::<Vec<_>>().join("\n")
}

fn against_best_peer(results: &Results) -> Grid {
    use Content::{Numbers, Words};
    let columns = [
        ("figure", Words),
        ("unit", Words),
        (OURS, Numbers),
        ("best peer", Numbers),
        ("which", Words),
        ("ratio", Numbers),
        ("aim", Numbers),
        ("met", Words),
    ];
    Grid {
        caption: "Outrigger against the best peer; less is better.".into(),
        columns: columns.map(|(heading, content)| (heading.into(), content)).into(),
        rows: results.figures().map(|figure| against_best_peer_row(results, figure)).collect(),
    }
}

fn against_best_peer_row(results: &Results, figure: &Figure) -> Vec<String> {
    let ours = results.value(figure, OURS);
    let peer = results.best_peer(figure);
    let ratio = ours.zip(peer).map(|(ours, (_, peer))| format!("{:.3}", ours / peer));
    let met = ours.zip(figure.aim).map(|(ours, aim)| if ours <= aim { "yes" } else { "no" });
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.into());
    vec![
        figure.title.into(),
        figure.unit.symbol().into(),
        or_none(ours.map(four_digits)),
        or_none(peer.map(|(_, value)| four_digits(value))),
        or_none(peer.map(|(subject, _)| subject.into())),
        or_none(ratio),
        or_none(figure.aim.map(|aim| format!("≤ {aim}"))),
        or_none(met.map(Into::into)),
    ]
}

fn all_subjects(results: &Results) -> impl Iterator<Item = Grid> {
    let parts = results.subjects().chunks(MAX_SUBJECTS);
    let count = parts.len();
    parts.zip(1..).map(move |(subjects, part)| {
        let part = if count > 1 { format!(" ({part} of {count})") } else { String::new() };
        let heads = [("figure".into(), Content::Words), ("unit".into(), Content::Words)];
        Grid {
            caption: format!("All subjects{part}."),
            columns: heads.into_iter().chain(subjects.iter().map(|name| (name.clone(), Content::Numbers))).collect(),
            rows: results.figures().map(|figure| all_subjects_row(results, figure, subjects)).collect(),
        }
    })
}

fn all_subjects_row(results: &Results, figure: &Figure, subjects: &[String]) -> Vec<String> {
    let values = subjects.iter().map(|subject| results.value(figure, subject).map_or(NONE.into(), four_digits));
    [figure.name.into(), figure.unit.symbol().into()].into_iter().chain(values).collect()
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{example, results};
    use super::*;
    use crate::figure::FIGURES;

    #[test]
    fn an_aim_is_met_up_to_and_including_it() {
        let row = |value| against_best_peer_row(&results(&[(OURS, "boot", value)]), Figure::named("boot").unwrap());
        assert_eq!(row(1300.0)[6..], ["≤ 1300", "yes"]);
        assert_eq!(row(1300.001)[6..], ["≤ 1300", "no"]);
    }

    #[test]
    fn what_is_missing_is_shown_as_such() {
        let results = results(&[("qemu", "boot", 1500.0), (OURS, "udp-to-host", 2.0)]);
        let rows = against_best_peer(&results).rows;
        assert_eq!(rows[0][1..], ["ms", NONE, "1500", "qemu", NONE, "≤ 1300", NONE]);
        assert_eq!(rows[1][1..], ["µs", "2.000", NONE, NONE, NONE, NONE, NONE]);
    }

    #[test]
    fn the_layout_for_a_terminal() {
        let expected = "\
Outrigger against the best peer; less is better.
───────────────────────────────────────────────────────────────────────────────────────────────────────────
 figure                                 unit   outrigger   best peer   which          ratio      aim   met
───────────────────────────────────────────────────────────────────────────────────────────────────────────
 boot, fork of the VMM to /init         ms          1300        1736   qemu-q35       0.749   ≤ 1300   yes
 4 KiB random read, depth 1             µs         39.25       50.00   qemu-microvm   0.785     ≤ 38   no
 private memory of the disk's process   MiB        1.250           –   –                  –    ≤ 1.5   yes
───────────────────────────────────────────────────────────────────────────────────────────────────────────

All subjects.
──────────────────────────────────────────────────────────────────
 figure        unit   qemu-q35   outrigger   outrigger-     qemu-
                                               messages   microvm
──────────────────────────────────────────────────────────────────
 boot          ms         1736        1300            –         –
 read-4k-qd1   µs        52.20       39.25        61.50     50.00
 memory-blk    MiB           –       1.250            –         –
──────────────────────────────────────────────────────────────────
";
        assert_eq!(text(&example()), expected);
    }

    #[test]
    fn the_layout_as_markdown() {
        let expected = "\
Outrigger against the best peer; less is better.

| figure | unit | outrigger | best peer | which | ratio | aim | met |
| --- | --- | ---: | ---: | --- | ---: | ---: | --- |
| boot, fork of the VMM to /init | ms | 1300 | 1736 | qemu-q35 | 0.749 | ≤ 1300 | yes |
| 4 KiB random read, depth 1 | µs | 39.25 | 50.00 | qemu-microvm | 0.785 | ≤ 38 | no |
| private memory of the disk's process | MiB | 1.250 | – | – | – | ≤ 1.5 | yes |

All subjects.

| figure | unit | qemu-q35 | outrigger | outrigger-messages | qemu-microvm |
| --- | --- | ---: | ---: | ---: | ---: |
| boot | ms | 1736 | 1300 | – | – |
| read-4k-qd1 | µs | 52.20 | 39.25 | 61.50 | 50.00 |
| memory-blk | MiB | – | 1.250 | – | – |
";
        assert_eq!(markdown(&example()), expected);
    }

    #[test]
    fn eight_subjects_with_all_figures_fit_130_columns() {
        let names = ["", "-messages", "-dma-messages", "-2q"].map(|variant| format!("{OURS}{variant}"));
        let peers = ["qemu-q35", "qemu-microvm", "qemu-vhost-user-blk", "cloud-hypervisor+qsd"];
        let mut all = Vec::new();
        for subject in names.iter().map(String::as_str).chain(peers) {
            all.extend(FIGURES.iter().map(|figure| (subject, figure.name, 123_456.7)));
        }
        let text = text(&results(&all));
        assert_eq!(text.matches("All subjects").count(), 1);
        for line in text.lines() {
            assert!(line.chars().count() <= 130, "{line}");
        }
    }

    #[test]
    fn more_subjects_make_more_tables() {
        let names: Vec<_> = (0..=MAX_SUBJECTS).map(|number| format!("peer{number}")).collect();
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), "boot", 1.0)).collect();
        let grids: Vec<_> = all_subjects(&results(&all)).collect();
        assert_eq!(grids.iter().map(|grid| grid.columns.len()).collect::<Vec<_>>(), [10, 3]);
        assert_eq!(grids[1].caption, "All subjects (2 of 2).");
    }
}
