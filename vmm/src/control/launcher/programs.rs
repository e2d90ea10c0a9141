//! The programs that may be started: those that the command line names, and those below `--programs DIR`.
//!
//! A path that the command line does not have is resolved, symbolic links and all, before it is looked at. What is executed is the
//! path of the command line if both lead to the same program, and the resolved one below DIR. Whoever may write to a directory on that path chooses what is started, as with every program.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::order::{Failure, Kind};
use crate::config::{Config, Source};

/// The programs that may be started.
#[derive(Debug)]
pub(super) struct Programs {
    /// As the command line has them.
    pub(super) named: Vec<PathBuf>,
    /// Resolved.
    pub(super) below: Option<PathBuf>,
}

impl Programs {
    pub(super) fn of(config: &Config) -> Self {
        let named = config.pci_devices.iter().filter_map(|device| match &device.source {
            Source::Program { program, .. } => Some(program.clone()),
            Source::Socket { .. } => None,
        });
        // One that is none is told of when the files are checked.
        let below = config.programs.as_ref().and_then(|directory| directory.canonicalize().ok());
        Self { named: named.collect(), below }
    }

    /// Where a program is that an order names.
    ///
    /// # Errors
    /// It may not be started, or there is none.
    pub(super) fn find(&self, program: &Path) -> Result<PathBuf, Failure> {
        let path = path(program).map_err(|error| Failure::new(Kind::Place, program, &error))?;
        if self.named.iter().any(|named| named == program) {
            return Ok(path);
        }
        let resolved = path.canonicalize().map_err(|error| Failure::new(Kind::Start, &path, &error))?;
        let mut named = self.named.iter().filter_map(|named| self::path(named).ok());
        // By its own name: what a program does may depend on it.
        if let Some(named) = named.find(|named| named.canonicalize().is_ok_and(|named| named == resolved)) {
            return Ok(named);
        }
        match &self.below {
            Some(below) if resolved.starts_with(below) => Ok(resolved),
            _ => Err(Failure::new(Kind::NotPermitted, &path, &Errno::EPERM.into())),
        }
    }
}

/// Whether a program is looked for beside outrigger itself.
pub(super) fn is_beside(program: &Path) -> bool {
    !program.as_os_str().as_encoded_bytes().contains(&b'/')
}

/// Where a program is said to be.
fn path(program: &Path) -> io::Result<PathBuf> {
    match is_beside(program) {
        true => Ok(std::env::current_exe()?.with_file_name(program)),
        false => Ok(program.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn programs_that_are_named_or_below_the_directory_may_be_started_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        for folder in ["builds", "builds/new", "builds-too", "elsewhere"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        for file in ["named", "builds/new/blk", "builds-too/blk", "elsewhere/blk", "builds/blk"] {
            std::fs::write(at(file), "").unwrap();
        }
        symlink(at("elsewhere/blk"), at("builds/leads-out")).unwrap();
        symlink(at("builds/blk"), at("elsewhere/leads-in")).unwrap();
        symlink(at("named"), at("elsewhere/leads-to-named")).unwrap();
        symlink(at("elsewhere"), at("builds/folder")).unwrap();
        let find = |below: Option<&str>, name: &str| {
            let programs = Programs { named: vec![at("named"), "outrigger-blk".into()], below: below.map(at) };
            programs.find(&at(name)).map_err(|failure| failure.kind)
        };
        let permitted = [
            ("named", "named"),
            ("elsewhere/leads-to-named", "named"),
            ("builds/blk", "builds/blk"),
            ("builds/new/blk", "builds/new/blk"),
            ("builds/new/../blk", "builds/blk"),
            ("elsewhere/leads-in", "builds/blk"),
        ];
        for (name, resolved) in permitted {
            assert_eq!(find(Some("builds"), name), Ok(at(resolved)));
        }
        let refused = [
            "builds-too/blk",
            "elsewhere/blk",
            "builds/leads-out",
            "builds/folder/blk",
            "builds/../elsewhere/blk",
            "builds/..",
        ];
        for name in refused {
            assert_eq!(find(Some("builds"), name), Err(Kind::NotPermitted), "{name}");
        }
        assert_eq!(find(None, "builds/blk"), Err(Kind::NotPermitted));
        assert_eq!(find(None, "builds/missing"), Err(Kind::Start));
        let programs = Programs { named: vec!["outrigger-blk".into()], below: None };
        // As written, whether it is there or not.
        assert!(programs.find(Path::new("outrigger-blk")).unwrap().ends_with("outrigger-blk"));
        assert!(programs.find(Path::new("outrigger-net")).is_err());
    }
}
