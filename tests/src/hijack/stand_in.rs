//! The stand-in for a device process that was taken over (`src/bin/hijacked.rs`), started as a device process is, and its report.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use outrigger_process::seal::Sandbox;
use outrigger_process::{child, launch};
use tempfile::TempDir;

use super::ATTEMPTS;

/// The beginning of a line that has the outcome of an attempt: that, the name of the attempt, and why it may succeed.
pub const ATTEMPT: &str = "attempt\t";
/// The beginning of a line that names a layer which the host does not permit.
pub const MISSING: &str = "missing\t";
/// The outcome of an attempt that has succeeded.
pub const SUCCEEDED: &str = "succeeded";
/// The outcome of one that has met the filter of system calls.
pub const FILTERED: &str = "refused by the filter";

/// The way in which the stand-in is started.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Whether it seals itself.
    pub sandbox: Sandbox,
    /// The user that starts it; none: root.
    pub user: Option<u32>,
    /// Anything else that it is told, see `src/bin/hijacked.rs`.
    pub word: Option<&'static str>,
}

impl How {
    /// By root, sealed as `sandbox` says.
    #[must_use]
    pub fn by_root(sandbox: Sandbox) -> Self {
        Self { sandbox, user: None, word: None }
    }

    /// By another user, as far as the host permits.
    #[must_use]
    pub fn by(user: u32) -> Self {
        Self { sandbox: Sandbox::On, user: Some(user), word: None }
    }

    /// The same, told this.
    #[must_use]
    pub fn told(self, word: &'static str) -> Self {
        Self { word: Some(word), ..self }
    }
}

/// Everything that the stand-in has to say.
#[derive(Debug)]
pub struct Report {
    /// The outcome of each attempt, in their order.
    pub outcomes: Vec<Outcome>,
    /// The layers that it did without, by name.
    pub missing: Vec<String>,
}

/// One attempt's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The attempt's name.
    pub name: String,
    /// [`SUCCEEDED`], or by what it was refused.
    pub result: String,
}

impl Outcome {
    /// Whether it has succeeded.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.result == SUCCEEDED
    }

    /// Why it may, if it may.
    #[must_use]
    pub fn by_design(&self) -> Option<&'static str> {
        ATTEMPTS.iter().find(|attempt| attempt.name == self.name)?.by_design
    }
}

impl Report {
    /// Attempts that have succeeded and should not, or the other way round.
    #[must_use]
    pub fn surprises(&self) -> Vec<&Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.succeeded() != outcome.by_design().is_some()).collect()
    }
}

/// Runs `program`, the stand-in for the device program of this kind (`blk` or `net`), until it has ended.
///
/// # Panics
/// It does not start.
#[must_use]
pub fn run(program: &Path, kind: &str, options: &str, how: How) -> Output {
    let directory = TempDir::new().expect("there is room for temporary files");
    // Where any user can execute it. By a process of its own: one that another thread starts meanwhile would inherit a descriptor of
    // this one's by which the copy is written, and it could not be executed (ETXTBSY).
    let copy = directory.path().join("hijacked");
    let copied = Command::new("cp").args([program, &copy]).status().expect("cp is there");
    assert!(copied.success(), "the stand-in cannot be copied");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
    let mut command = Command::new(copy);
    child::prepare(&mut command).args([kind, options, &std::process::id().to_string()]).args(how.word);
    command.env(launch::SANDBOX, how.sandbox.name()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(user) = how.user {
        command.uid(user).gid(user);
    }
    command.output().expect("the stand-in starts")
}

/// The report of [`run`].
///
/// # Panics
/// It fails, or has not made every attempt.
#[must_use]
pub fn report(program: &Path, kind: &str, options: &str, how: How) -> Report {
    let output = run(program, kind, options, how);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", output.status);
    let outcomes = text.lines().filter_map(|line| line.strip_prefix(ATTEMPT)?.split_once('\t'));
    let outcomes: Vec<Outcome> =
        outcomes.map(|(result, name)| Outcome { name: name.to_owned(), result: result.to_owned() }).collect();
    assert_eq!(outcomes.len(), ATTEMPTS.len(), "{text}");
    Report {
        outcomes,
        missing: text.lines().filter_map(|line| line.strip_prefix(MISSING)).map(str::to_owned).collect(),
    }
}
