//! `KEY=VALUE,KEY=VALUE`: the text of every structured option, of the VMM and of its device programs.
//!
//! Keys come in any order, each at most once. A comma inside a value is written twice (`path=a,,b` is the path `a,b`),
//! as QEMU's options have it, so any path can be given.

use std::fmt;
use std::ops::RangeInclusive;

/// Longest text that is repeated in an error.
const LONGEST_SHOWN: usize = 200;

/// The problem with the text of an option, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nothing at all.
    #[error("is empty")]
    Empty,
    /// A part between two commas that isn't KEY=VALUE.
    #[error("'{part}' is not KEY=VALUE; it takes {known} (a comma inside a value is written twice)")]
    NotKeyValue {
        /// The part.
        part: String,
        /// The keys there are.
        known: String,
    },
    /// A key that the option doesn't have.
    #[error("unknown key '{key}'; it takes {known}")]
    UnknownKey {
        /// The key given.
        key: String,
        /// The keys there are.
        known: String,
    },
    /// The same key twice.
    #[error("key '{key}' is given twice")]
    RepeatedKey {
        /// The key.
        key: &'static str,
    },
    /// A key that the option cannot do without.
    #[error("needs {key}={value}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// Its value's name in the help.
        value: &'static str,
    },
    /// A value that its key cannot have.
    #[error("{key}: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// The problem with its value.
        problem: String,
    },
}

impl OptionError {
    /// `problem` as one of `key`'s value.
    pub fn value(key: &'static str, problem: impl fmt::Display) -> Self {
        Self::Value { key, problem: problem.to_string() }
    }
}

/// A switch that is neither on nor off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be on or off, not '{text}'")]
pub struct NotSwitch {
    /// The value given.
    pub text: String,
}

/// A number that isn't one, or is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be between {min} and {max}")]
pub struct NotBetween {
    /// Least value.
    pub min: u64,
    /// Greatest value.
    pub max: u64,
}

/// The pairs of one option, each of a key that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pairs: Vec<(&'static str, String)>,
}

impl Options {
    /// Splits `text`; `known` are the keys the option takes. With `bare`, the first part may be the value of that key
    /// alone (`512M,hugepages=on`).
    ///
    /// # Errors
    /// For the first part that cannot be used.
    pub fn parse(text: &str, known: &'static [&'static str], bare: Option<&'static str>) -> Result<Self, OptionError> {
        if text.is_empty() {
            return Err(OptionError::Empty);
        }
        let mut options = Self::default();
        for (index, raw) in split(text).into_iter().enumerate() {
            let part = unescape(raw);
            let (key, value) = match (part.split_once('='), bare) {
                (Some((key, value)), _) => (key, value),
                (None, Some(key)) if index == 0 => (key, part.as_str()),
                (None, _) => return Err(OptionError::NotKeyValue { part, known: list(known) }),
            };
            let Some(key) = find(key, known) else {
                return Err(OptionError::UnknownKey { key: key.to_owned(), known: list(known) });
            };
            options.add(key, value)?;
        }
        Ok(options)
    }

    /// Takes the keys `own` out of `text`. The rest is returned as it was written, for another program to read.
    ///
    /// # Errors
    /// If one of `own` is given twice, or without a value.
    pub fn take_out(text: &str, own: &'static [&'static str]) -> Result<(Self, String), OptionError> {
        let mut options = Self::default();
        let mut rest = Vec::new();
        for raw in split(text) {
            let part = unescape(raw);
            match part.split_once('=').and_then(|(key, value)| Some((find(key, own)?, value))) {
                Some((key, value)) => options.add(key, value)?,
                None => rest.push(raw),
            }
        }
        Ok((options, rest.join(",")))
    }

    fn add(&mut self, key: &'static str, value: &str) -> Result<(), OptionError> {
        if self.get(key).is_some() {
            return Err(OptionError::RepeatedKey { key });
        }
        if value.is_empty() {
            return Err(OptionError::value(key, OptionError::Empty));
        }
        self.pairs.push((key, value.to_owned()));
        Ok(())
    }

    /// The value of `key`, where given.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key`, which must be given; `value` is its name in the help.
    ///
    /// # Errors
    /// If it isn't given.
    pub fn required(&self, key: &'static str, value: &'static str) -> Result<&str, OptionError> {
        self.get(key).ok_or(OptionError::MissingKey { key, value })
    }

    /// The value of `key` read by `parse`, where given.
    ///
    /// # Errors
    /// That of `parse`, reported as one of that key.
    pub fn parsed<T, E: fmt::Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, OptionError> {
        self.get(key).map(|value| parse(value).map_err(|problem| OptionError::value(key, problem))).transpose()
    }

    /// Whether the switch `key` is on; off where not given.
    ///
    /// # Errors
    /// If it is neither on nor off.
    pub fn switch(&self, key: &'static str) -> Result<bool, OptionError> {
        Ok(self.parsed(key, switch)?.unwrap_or(false))
    }

    /// The number `key`, where given.
    ///
    /// # Errors
    /// If it is no number, or out of `range`.
    pub fn number(&self, key: &'static str, range: RangeInclusive<u16>) -> Result<Option<u16>, OptionError> {
        let (min, max) = range.into_inner();
        self.parsed(key, |text| number(text, min.into(), max.into()).map(|number| u16::try_from(number).unwrap_or(max)))
    }
}

/// The value of a switch.
///
/// # Errors
/// If it is neither on nor off.
pub fn switch(text: &str) -> Result<bool, NotSwitch> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(NotSwitch { text: text.to_owned() }),
    }
}

/// A decimal number from `min` to `max`, digits only.
///
/// # Errors
/// If it is anything else.
pub fn number(text: &str, min: u64, max: u64) -> Result<u64, NotBetween> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = if digits { text.parse::<u64>().ok() } else { None };
    value.filter(|value| (min..=max).contains(value)).ok_or(NotBetween { min, max })
}

/// A flag and its text, to name them in an error: `--disk path=root.img`. A text of thousands of bytes is left out, since it
/// would hide what is wrong with it.
#[must_use]
pub fn named(flag: &str, text: &str) -> String {
    if text.len() > LONGEST_SHOWN { flag.to_owned() } else { one_line(&format!("{flag} {text}")) }
}

/// `text` with control characters shown rather than obeyed: a path may hold line breaks and terminal escapes, but a
/// message stays one line.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// The parts between single commas, as they are written.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut commas = text.match_indices(',').map(|(at, _)| at).peekable();
    while let Some(comma) = commas.next() {
        if commas.next_if_eq(&(comma + 1)).is_none() {
            parts.push(&text[start..comma]);
            start = comma + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(part: &str) -> String {
    part.replace(",,", ",")
}

fn find(key: &str, known: &'static [&'static str]) -> Option<&'static str> {
    known.iter().find(|name| **name == key).copied()
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

    /// `value` as it is written in an option, its commas doubled.
    fn escape(value: &str) -> String {
        value.replace(',', ",,")
    }

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
        fn no_text_panics(text in "[a-z=,é]{0,40}") {
            let _ = Options::parse(&text, KEYS, None);
            let _ = Options::parse(&text, KEYS, Some("path"));
            let _ = Options::take_out(&text, KEYS);
        }

        #[test]
        fn what_is_not_taken_out_reads_as_before(values in prop::collection::vec("[,=a]+", 3), position in 0..3_usize) {
            let mut parts: Vec<String> =
                KEYS.iter().zip(&values).map(|(key, value)| format!("{key}={}", escape(value))).collect();
            parts.insert(position, "dma=messages".into());
            let (own, rest) = Options::take_out(&parts.join(","), &["dma"]).unwrap();
            prop_assert_eq!(own.get("dma"), Some("messages"));
            let options = Options::parse(&rest, KEYS, None).unwrap();
            for (key, value) in KEYS.iter().zip(&values) {
                prop_assert_eq!(options.get(key), Some(value.as_str()));
            }
        }

        #[test]
        fn numbers_are_taken_within_their_range_only(value: u64) {
            let taken = number(&value.to_string(), 1, 64).ok();
            prop_assert_eq!(taken, Some(value).filter(|value| (1..=64).contains(value)));
        }
    }

    #[test]
    fn mistakes_are_named() {
        let problem = |text| Options::parse(text, KEYS, None).unwrap_err().to_string();
        let known = "it takes path, serial and readonly";
        assert_eq!(problem(""), "is empty");
        assert_eq!(
            problem("path"),
            format!("'path' is not KEY=VALUE; {known} (a comma inside a value is written twice)")
        );
        assert_eq!(problem("size=1"), format!("unknown key 'size'; {known}"));
        assert_eq!(problem("path=a,path=b"), "key 'path' is given twice");
        assert_eq!(problem("path="), "path: is empty");
        let options = Options::parse("readonly=true,serial=65", KEYS, None).unwrap();
        assert_eq!(options.switch("readonly").unwrap_err().to_string(), "readonly: must be on or off, not 'true'");
        assert_eq!(options.number("serial", 1..=64).unwrap_err().to_string(), "serial: must be between 1 and 64");
        assert_eq!(options.required("path", "FILE").unwrap_err().to_string(), "needs path=FILE");
        assert_eq!((options.number("serial", 1..=65), options.number("path", 1..=3)), (Ok(Some(65)), Ok(None)));
    }

    #[test]
    fn signs_spaces_and_other_bases_are_no_numbers() {
        for text in ["", "+1", "-1", " 1", "1 ", "0x1", "1.0", "one", "99999999999999999999"] {
            assert_eq!(number(text, 0, u64::MAX), Err(NotBetween { min: 0, max: u64::MAX }), "{text:?}");
        }
    }

    #[test]
    fn a_bare_value_may_come_first_only() {
        let options = Options::parse("512M,readonly=on", KEYS, Some("path")).unwrap();
        assert_eq!((options.get("path"), options.switch("readonly")), (Some("512M"), Ok(true)));
        assert!(Options::parse("readonly=on,512M", KEYS, Some("path")).is_err());
        assert_eq!(
            Options::parse("512M,path=1", KEYS, Some("path")).unwrap_err(),
            OptionError::RepeatedKey { key: "path" }
        );
    }

    #[test]
    fn what_is_taken_out_is_given_once_and_the_rest_is_not_read() {
        let (own, rest) = Options::take_out("x,dma=a,,b,path=,,c,path=", &["dma"]).unwrap();
        assert_eq!((own.get("dma"), rest.as_str()), (Some("a,b"), "x,path=,,c,path="));
        let error = Options::take_out("dma=a,dma=b", &["dma"]).unwrap_err();
        assert_eq!(error, OptionError::RepeatedKey { key: "dma" });
        assert_eq!(Options::take_out("dma=", &["dma"]).unwrap_err().to_string(), "dma: is empty");
    }

    #[test]
    fn a_message_stays_one_short_line() {
        assert_eq!(named("--cpus", "1\n2\x1b[31m"), r"--cpus 1\n2\u{1b}[31m");
        assert_eq!(named("--cmdline", &"x".repeat(201)), "--cmdline");
    }
}
