//! `key=value,key=value` arguments; a comma within a value is written twice, as in the VMM's own options.

/// The pairs of one argument.
#[derive(Debug)]
pub struct Pairs<'a> {
    flag: &'static str,
    text: &'a str,
    pairs: Vec<(String, String)>,
}

/// An argument that cannot be meant; its text is one line for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {text}: {problem}")]
pub struct OptionError {
    flag: &'static str,
    text: String,
    problem: String,
}

impl<'a> Pairs<'a> {
    /// Splits the argument of `flag`, every key of which must be in `known` and occur once.
    pub fn parse(flag: &'static str, text: &'a str, known: &[&str]) -> Result<Self, OptionError> {
        let mut pairs = Self { flag, text, pairs: Vec::new() };
        for part in split(text) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(pairs.error(format!("{part:?} is not KEY=VALUE")));
            };
            if !known.contains(&key) {
                return Err(pairs.error(format!("unknown key {key:?}; known are {}", known.join(", "))));
            }
            if pairs.get(key).is_some() {
                return Err(pairs.error(format!("{key} is given twice")));
            }
            if value.is_empty() {
                return Err(pairs.error(format!("{key} is empty")));
            }
            pairs.pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(pairs)
    }

    /// An error about this argument.
    pub fn error(&self, problem: impl Into<String>) -> OptionError {
        OptionError { flag: self.flag, text: self.text.into(), problem: problem.into() }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|pair| pair.0 == key).map(|pair| pair.1.as_str())
    }

    /// The value of a key that must be there.
    pub fn required(&self, key: &str) -> Result<&str, OptionError> {
        self.get(key).ok_or_else(|| self.error(format!("{key}= is missing")))
    }

    /// `on` or `off`; absent is off.
    pub fn on_off(&self, key: &str) -> Result<bool, OptionError> {
        match self.get(key) {
            Some("on") => Ok(true),
            Some("off") | None => Ok(false),
            Some(value) => Err(self.error(format!("{key}={value}: neither on nor off"))),
        }
    }

    /// A decimal number within a range.
    pub fn number(&self, key: &str, range: std::ops::RangeInclusive<u16>) -> Result<Option<u16>, OptionError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match text.parse::<u16>() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(self.error(format!("{key}={text}: not a number from {} to {}", range.start(), range.end()))),
        }
    }
}

/// The parts between single commas, with double commas made single.
fn split(text: &str) -> Vec<String> {
    // No argument can contain a NUL, so it can stand for a comma meanwhile.
    text.replace(",,", "\0").split(',').map(|part| part.replace('\0', ",")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["path", "readonly", "queues"];

    fn problem(text: &str) -> String {
        Pairs::parse("--disk", text, KNOWN).unwrap_err().to_string()
    }

    #[test]
    fn malformed_arguments_are_named() {
        assert_eq!(problem("path"), "--disk path: \"path\" is not KEY=VALUE");
        assert_eq!(problem("size=1"), "--disk size=1: unknown key \"size\"; known are path, readonly, queues");
        assert_eq!(problem("path=a,path=b"), "--disk path=a,path=b: path is given twice");
        assert_eq!(problem("path="), "--disk path=: path is empty");
        assert!(problem("").contains("not KEY=VALUE"));
    }

    #[test]
    fn values_are_typed() {
        let pairs = Pairs::parse("--disk", "path=a,,b", KNOWN).unwrap();
        assert_eq!(pairs.get("path"), Some("a,b"));
        let pairs = Pairs::parse("--disk", "path=a=b,readonly=on,queues=4", KNOWN).unwrap();
        assert_eq!(pairs.required("path").unwrap(), "a=b");
        assert!(pairs.on_off("readonly").unwrap());
        assert_eq!(pairs.number("queues", 1..=64).unwrap(), Some(4));
        assert!(pairs.number("queues", 1..=3).is_err());
        let pairs = Pairs::parse("--disk", "readonly=yes", KNOWN).unwrap();
        assert!(pairs.on_off("readonly").is_err() && pairs.required("path").is_err());
        assert_eq!(pairs.number("queues", 1..=3).unwrap(), None);
    }
}
