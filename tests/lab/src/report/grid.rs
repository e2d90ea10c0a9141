//! A table of short texts, for a terminal or as Markdown.

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

/// Of characters in a line of a heading, where it can be broken.
const HEADING: usize = 10;
const RULE: LineStyle = LineStyle::none().fill('─').junction('─');
const STYLE: TableStyle = TableStyle::new().top_border(RULE).header_separator(RULE).bottom_border(RULE);

/// The content of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Begins at the left.
    Words,
    /// Ends at the right.
    Numbers,
}

/// A table with a line that says what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// One line.
    pub caption: String,
    /// Headings.
    pub columns: Vec<(String, Content)>,
    /// Each as long as `columns`.
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    /// For a terminal; ends with a line feed.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(STYLE).set_header(self.columns.iter().map(|(heading, _)| broken(heading)));
        table.add_rows(&self.rows);
        for (column, (_, content)) in table.column_iter_mut().zip(&self.columns) {
            if *content == Content::Numbers {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{}\n{}\n", self.caption, table.trim_fmt())
    }

    /// A paragraph and a table; ends with a line feed. Cells are not padded, so that one that changes changes one line.
    pub fn markdown(&self) -> String {
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let cells: Vec<_> = cells.map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut text = format!("{}\n\n", self.caption);
        text.push_str(&line(&mut self.columns.iter().map(|(heading, _)| heading.as_str())));
        text.push_str(&line(&mut self.columns.iter().map(|(_, content)| match content {
            Content::Words => "---",
            Content::Numbers => "---:",
        })));
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        text
    }
}

/// A subject's name over several lines, so that a column is about as wide as its numbers.
fn broken(heading: &str) -> String {
    let mut lines = vec![String::new()];
    for part in heading.split_inclusive(['-', '+', ',', ' ']) {
        match lines.last_mut() {
            Some(line) if line.is_empty() || line.len() + part.trim_end().len() <= HEADING => line.push_str(part),
            _ => lines.push(part.into()),
        }
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Grid {
        Grid {
            caption: "What is.".into(),
            columns: vec![("figure".into(), Content::Words), ("qemu-q35-vhost".into(), Content::Numbers)],
            rows: vec![vec!["a|b".into(), "1.5".into()], vec!["µ".into(), "–".into()]],
        }
    }

    #[test]
    fn text_aligns_numbers_at_the_right() {
        let expected = "\
What is.
────────────────────
 figure   qemu-q35-
              vhost
────────────────────
 a|b            1.5
 µ                –
────────────────────
";
        assert_eq!(example().text(), expected);
    }

    #[test]
    fn markdown_escapes_what_would_end_a_cell() {
        let expected = "\
What is.

| figure | qemu-q35-vhost |
| --- | ---: |
| a\\|b | 1.5 |
| µ | – |
";
        assert_eq!(example().markdown(), expected);
    }

    #[test]
    fn headings_are_broken_where_words_end() {
        let cases = [
            ("outrigger", "outrigger"),
            ("best peer", "best peer"),
            ("outrigger-messages", "outrigger-\nmessages"),
            ("qemu-q35-iothread", "qemu-q35-\niothread"),
            ("cloud-hypervisor+qsd", "cloud-\nhypervisor+\nqsd"),
            ("unbreakableunbreakable", "unbreakableunbreakable"),
        ];
        for (heading, expected) in cases {
            assert_eq!(broken(heading), expected);
        }
    }
}
