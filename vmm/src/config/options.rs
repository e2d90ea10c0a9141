//! `KEY=VALUE,KEY=VALUE`: the form of every structured option's value.
//!
//! Keys come in any order, each at most once. A comma inside a value is written twice (`path=a,,b` is the path `a,b`),
//! as QEMU's options have it, so any path can be given.

use super::Problem;

/// The pairs of one option, checked against the keys it has.
#[derive(Debug)]
pub(super) struct Options {
    pairs: Vec<(&'static str, String)>,
}

impl Options {
    /// Splits `text`; `known` are the keys the option takes. With `bare`, the first part may be the value of that key
    /// alone (`512M,hugepages=on`).
    pub(super) fn parse(
        text: &str,
        known: &'static [&'static str],
        bare: Option<&'static str>,
    ) -> Result<Self, Problem> {
        if text.is_empty() {
            return Err(Problem::Empty);
        }
        let mut pairs: Vec<(&'static str, String)> = Vec::new();
        for (index, part) in split(text).into_iter().enumerate() {
            let (key, value) = match (part.split_once('='), bare) {
                (Some((key, value)), _) => (find(key, known)?, value.to_owned()),
                (None, Some(key)) if index == 0 => (key, part),
                (None, _) => return Err(Problem::NotKeyValue { part, known: list(known) }),
            };
            if pairs.iter().any(|(earlier, _)| *earlier == key) {
                return Err(Problem::RepeatedKey { key });
            }
            if value.is_empty() {
                return Err(Problem::Empty.of(key));
            }
            pairs.push((key, value));
        }
        Ok(Options { pairs })
    }

    /// The value of `key`, where given.
    pub(super) fn get(&self, key: &'static str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key`, which must be given; `value` is its name in the help.
    pub(super) fn required(&self, key: &'static str, value: &'static str) -> Result<&str, Problem> {
        self.get(key).ok_or(Problem::MissingKey { key, value })
    }

    /// The value of `key` read by `parse`; its problem is reported as one of that key.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Result<Option<T>, Problem> {
        self.get(key).map(|value| parse(value).map_err(|problem| problem.of(key))).transpose()
    }

    /// Whether the switch `key` is on; off where not given.
    pub(super) fn switch(&self, key: &'static str) -> Result<bool, Problem> {
        let on = self.parsed(key, |text| match text {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(Problem::NotSwitch { text: text.to_owned() }),
        })?;
        Ok(on.unwrap_or(false))
    }
}

/// A decimal number from `min` to `max`, digits only.
pub(super) fn number(text: &str, min: u64, max: u64) -> Result<u64, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = if digits { text.parse::<u64>().ok() } else { None };
    value.filter(|value| (min..=max).contains(value)).ok_or(Problem::NotBetween { min, max })
}

/// `value` as it is written in an option, its commas doubled.
pub(super) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// The parts between single commas, with double commas made single.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != ',' {
            part.push(character);
        } else if characters.next_if_eq(&',').is_some() {
            part.push(',');
        } else {
            parts.push(std::mem::take(&mut part));
        }
    }
    parts.push(part);
    parts
}

fn find(key: &str, known: &'static [&'static str]) -> Result<&'static str, Problem> {
    let found = known.iter().find(|name| **name == key).copied();
    found.ok_or_else(|| Problem::UnknownKey { key: key.to_owned(), known: list(known) })
}

/// `a`, `a and b`, `a, b and c`.
fn list(known: &[&str]) -> String {
    match known {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEYS: &[&str] = &["path", "serial", "readonly"];

    proptest! {
        #[test]
        fn any_values_survive_with_their_commas_doubled(path in ".+", serial in ".+", swap: bool) {
            let mut parts = [format!("path={}", escape(&path)), format!("serial={}", escape(&serial))];
            if swap {
                parts.reverse();
            }
            // A value may end in a comma: three in a row are that one and the separator.
            let options = Options::parse(&parts.join(","), KEYS, None).unwrap();
            prop_assert_eq!(options.get("path"), Some(path.as_str()));
            prop_assert_eq!(options.get("serial"), Some(serial.as_str()));
            prop_assert_eq!(options.get("readonly"), None);
        }

        #[test]
        fn no_text_panics(text in "[a-z=,]{0,40}") {
            let _ = Options::parse(&text, KEYS, None);
            let _ = Options::parse(&text, KEYS, Some("path"));
        }

        #[test]
        fn numbers_are_taken_within_their_range_only(value: u64) {
            let taken = number(&value.to_string(), 1, 64).ok();
            prop_assert_eq!(taken, Some(value).filter(|value| (1..=64).contains(value)));
        }
    }

    #[test]
    fn signs_spaces_and_other_bases_are_no_numbers() {
        for text in ["", "+1", "-1", " 1", "1 ", "0x1", "1.0", "one", "99999999999999999999"] {
            assert_eq!(number(text, 0, u64::MAX), Err(Problem::NotBetween { min: 0, max: u64::MAX }), "{text:?}");
        }
    }

    #[test]
    fn a_bare_value_may_come_first_only() {
        let options = Options::parse("512M,readonly=on", KEYS, Some("path")).unwrap();
        assert_eq!((options.get("path"), options.switch("readonly")), (Some("512M"), Ok(true)));
        assert!(Options::parse("readonly=on,512M", KEYS, Some("path")).is_err());
        assert_eq!(
            Options::parse("512M,path=1", KEYS, Some("path")).unwrap_err(),
            Problem::RepeatedKey { key: "path" }
        );
    }
}
