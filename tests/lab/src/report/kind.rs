//! The kind of a comparison, by the subjects' names.

use super::results::Results;
use super::series;
use crate::host::{is_path, is_restart};

/// Which tables there are of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// VMMs.
    Comparison,
    /// Outrigger with more and more of something.
    Series,
    /// Paths that a register access takes.
    Paths,
    /// A disk whose process is killed or replaced.
    Restarts,
}

impl Kind {
    /// The kind of these results.
    pub fn of(results: &Results) -> Self {
        match results {
            _ if results.subjects().iter().all(|subject| is_path(subject)) => Self::Paths,
            _ if results.subjects().iter().all(|subject| is_restart(subject)) => Self::Restarts,
            _ if series::are_all(results) => Self::Series,
            _ => Self::Comparison,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::{example, results};
    use super::*;

    #[test]
    fn one_that_is_something_else_makes_it_a_comparison() {
        let read = |subject| (subject, "access-read", 28.0);
        assert_eq!(Kind::of(&results(&[read("message"), read("mapped")])), Kind::Paths);
        assert_eq!(Kind::of(&results(&[read("message"), read("outrigger")])), Kind::Comparison);
        assert_eq!(Kind::of(&results(&[read("queues-1")])), Kind::Series);
        assert_eq!(Kind::of(&results(&[read("killed"), read("replaced")])), Kind::Restarts);
        assert_eq!(Kind::of(&example()), Kind::Comparison);
    }
}
