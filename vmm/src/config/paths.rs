//! `--paths PATH,…`: which ways from a guest access to a device may be used.

use std::fmt;

use outrigger_process::options::OptionError;

use super::Problem;

/// A way from a guest access to a device, by its name on the command line and in what `--show-devices` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathName {
    /// The guest accesses the device process's memory; there is no exit.
    Mapped,
    /// KVM signals the device process.
    Ioeventfd,
    /// KVM asks the device process.
    Ioregionfd,
    /// The VMM does what KVM would, on the same socket.
    StandIn,
    /// The VMM asks the device process.
    Message,
}

impl PathName {
    /// All of them, best first.
    pub const ALL: [Self; 5] = [Self::Mapped, Self::Ioeventfd, Self::Ioregionfd, Self::StandIn, Self::Message];

    /// As the user writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mapped => "mapped",
            Self::Ioeventfd => "ioeventfd",
            Self::Ioregionfd => "ioregionfd",
            Self::StandIn => "stand-in",
            Self::Message => "message",
        }
    }
}

impl fmt::Display for PathName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The paths that may be used; [`PathName::Message`] always is, for nothing else takes every access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedPaths([bool; PathName::ALL.len()]);

impl Default for AllowedPaths {
    /// All.
    fn default() -> Self {
        Self([true; PathName::ALL.len()])
    }
}

impl AllowedPaths {
    /// These, and messages.
    #[must_use]
    pub fn only(paths: &[PathName]) -> Self {
        Self(PathName::ALL.map(|path| path == PathName::Message || paths.contains(&path)))
    }

    /// Whether a path may be used.
    #[must_use]
    pub const fn allow(self, path: PathName) -> bool {
        self.0[path as usize]
    }

    /// Reads the option's value. The order of the words means nothing.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        if text.is_empty() {
            return Err(OptionError::Empty.into());
        }
        let find = |word: &str| PathName::ALL.into_iter().find(|path| path.as_str() == word);
        let paths = text.split(',').map(|word| find(word).ok_or_else(|| Problem::NotPath { text: word.to_owned() }));
        let paths: Vec<_> = paths.collect::<Result<_, _>>()?;
        if !paths.contains(&PathName::Message) {
            return Err(Problem::WithoutMessages { paths: text.to_owned() });
        }
        Ok(Self::only(&paths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_forbidden() {
        let allowed = AllowedPaths::parse("message,ioeventfd").unwrap();
        let names: Vec<_> = PathName::ALL.into_iter().filter(|path| allowed.allow(*path)).collect();
        assert_eq!(names, [PathName::Ioeventfd, PathName::Message]);
        assert_eq!(AllowedPaths::parse("mapped,ioeventfd,ioregionfd,stand-in,message"), Ok(AllowedPaths::default()));
    }
}
