//! Sizes in bytes with binary units, as `512M` or `2G`.

use std::fmt;

use outrigger_process::options;

use super::Problem;

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// A number of bytes, displayed with the greatest unit that divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(
    /// Bytes.
    pub u64,
);

impl Size {
    /// Reads digits followed by an optional unit: K, M, G or T, in either case, each 1024 times the one before.
    ///
    /// # Errors
    /// [`Problem::NotSize`] for anything else, and for 2^64 bytes or more.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let unit = text.chars().last().and_then(|last| {
            let last = last.to_ascii_uppercase();
            UNITS.iter().find(|(unit, _)| *unit == last)
        });
        let (digits, shift) = match unit {
            Some((_, shift)) => (&text[..text.len() - 1], *shift),
            None => (text, 0),
        };
        let number = options::number(digits, 0, u64::MAX).ok();
        let bytes = number.and_then(|number| number.checked_mul(1 << shift));
        bytes.map(Size).ok_or_else(|| Problem::NotSize { text: text.to_owned() })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |shift: u32| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match UNITS.iter().rev().find(|(_, shift)| divides(*shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_displayed_size_reads_back(bytes: u64) {
            prop_assert_eq!(Size::parse(&Size(bytes).to_string()), Ok(Size(bytes)));
        }

        #[test]
        fn no_text_panics(text in ".{0,8}") {
            let _ = Size::parse(&text);
        }
    }

    #[test]
    fn units_are_binary_and_in_either_case() {
        let table = [("0", 0), ("7", 7), ("1K", 1024), ("512M", 512 << 20), ("2g", 2 << 30), ("3T", 3 << 40)];
        for (text, bytes) in table {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1M", "1.5G", "1 G", "1MB", "1MiB", "16777216T", "18446744073709551616", "1é"] {
            assert_eq!(Size::parse(text), Err(Problem::NotSize { text: text.to_owned() }), "{text:?}");
        }
    }

    #[test]
    fn sizes_display_with_the_greatest_unit_that_divides_them() {
        for (bytes, text) in [(0, "0"), (1000, "1000"), (32 << 20, "32M"), (1536 << 20, "1536M"), (1 << 40, "1T")] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
