//! The thread that starts device processes, at the beginning and when one is to succeed another.
//!
//! A child is killed when the thread that has started it ends, so one thread starts them all and lives as long as this
//! process. A child's socket is its standard input, so there is no path on disk. How they end:
//! [`crate::control::processes`].

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use outrigger_process::inherited::is_callers;
use outrigger_process::seal::Sandbox;
use outrigger_process::{child, launch};
use outrigger_protocol::foreign::ForeignFd;

use crate::control::processes::DeviceProcess;

/// Starting a process is shallow; the standard library keeps paths on the stack.
const STACK: usize = 128 << 10;

/// A device process that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Outrigger's own place is unknown.
    #[error("cannot tell where outrigger itself is installed")]
    Place(#[source] io::Error),
    /// The program is missing, or cannot be executed.
    #[error("cannot start {}{}", program.display(), if *.beside { " (a bare name is looked for beside outrigger itself)" } else { "" })]
    Start {
        /// Whether it was looked for beside Outrigger's own binary.
        beside: bool,
        /// The program.
        program: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No socket.
    #[error("cannot make a socket for {program}")]
    Socket {
        /// The program.
        program: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No descriptor left.
    #[error("cannot watch the process that was started")]
    Watch(#[source] io::Error),
    /// No thread that could start it.
    #[error("cannot start a thread that starts device processes")]
    Thread(#[source] io::Error),
}

/// A program to be started, by the contract of docs/DEVICE-PROGRAMS.md.
#[derive(Clone, Debug)]
pub struct Launch {
    /// A bare name is that of a program beside outrigger itself; anything with a slash is a path.
    pub program: PathBuf,
    /// The text after `--options`.
    pub options: String,
    /// Descriptors of this process's caller that it gets under the same numbers.
    pub inherited: Vec<RawFd>,
    /// Whether it gives up all that it does not need.
    pub sandbox: Sandbox,
    /// How many vCPUs the guest has.
    pub cpus: u8,
    /// It is to go on where another has been: with the descriptors that that one asked to be kept.
    pub successor: Option<Arc<Vec<ForeignFd>>>,
}

type Answer = Result<(DeviceProcess, UnixStream), SpawnError>;

/// A launch, and whom to answer.
type Order = (Launch, Sender<Answer>);

/// A way to the thread, which starts with the first process.
#[derive(Clone, Default)]
pub struct Launcher(Arc<Mutex<Option<Sender<Order>>>>);

impl Launcher {
    /// Starts a process; returns it, and our end of its socket.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub fn start(&self, launch: Launch) -> Answer {
        let (answer, answered) = channel();
        let mut thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = match &*thread {
            Some(orders) => orders,
            None => thread.insert(start_thread().map_err(SpawnError::Thread)?),
        };
        let lost = |_| SpawnError::Thread(Errno::ESRCH.into());
        orders.send((launch, answer)).map_err(|error| lost(error.to_string()))?;
        drop(thread);
        answered.recv().map_err(|error| lost(error.to_string()))?
    }
}

fn start_thread() -> io::Result<Sender<Order>> {
    let (orders, ordered) = channel::<Order>();
    let thread = thread::Builder::new().name("launcher".into()).stack_size(STACK);
    thread.spawn(move || {
        for (launch, answer) in ordered {
            // The caller may have given up.
            let _ = answer.send(start(&launch));
        }
    })?;
    Ok(orders)
}

fn start(launch: &Launch) -> Answer {
    let Launch { program, options, inherited, sandbox, cpus, successor } = launch;
    let beside = !program.as_os_str().as_encoded_bytes().contains(&b'/');
    let path = match beside {
        true => std::env::current_exe().map_err(SpawnError::Place)?.with_file_name(program),
        false => program.clone(),
    };
    let program = name(program);
    let (ours, theirs) =
        UnixStream::pair().map_err(|source| SpawnError::Socket { program: program.clone(), source })?;
    let mut command = Command::new(&path);
    child::prepare(&mut command).env(launch::VCPUS, cpus.to_string()).env(launch::SANDBOX, sandbox.name());
    command.args([launch::OPTIONS, options, launch::FD, "0"]);
    // This process's own descriptors, which have other numbers, are not given away by mistake.
    let mut numbers: Vec<RawFd> = inherited.iter().copied().filter(|&number| is_callers(number)).collect();
    if let Some(kept) = successor {
        let kept: Vec<RawFd> = kept.iter().map(|fd| fd.lend().as_raw_fd()).collect();
        let list: Vec<String> = kept.iter().map(ToString::to_string).collect();
        command.env(launch::SUCCESSOR, "1");
        if !list.is_empty() {
            command.env(launch::KEPT, list.join(","));
        }
        numbers.extend(kept);
    }
    // SAFETY: between fork and exec the closure makes system calls on plain values only.
    unsafe { command.pre_exec(move || numbers.iter().try_for_each(|&number| inherit(number))) };
    // Standard output is the guest's console and none of theirs.
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
    let child = match sandbox {
        Sandbox::Off => command.spawn(),
        Sandbox::On | Sandbox::Require => child::in_own_pid_namespace(|| command.spawn()),
    };
    let child = child.map_err(|source| SpawnError::Start { program: path, beside, source })?;
    let process = DeviceProcess::new(program, child).map_err(SpawnError::Watch)?;
    Ok((process, ours))
}

/// Lets a descriptor stay open in the program that is about to be executed, under the same number.
fn inherit(number: RawFd) -> io::Result<()> {
    // SAFETY: a system call on plain values.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })?;
    Ok(())
}

/// A program's name in messages.
#[must_use]
pub fn name(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    fn launch(program: PathBuf, successor: Option<Arc<Vec<ForeignFd>>>) -> Launch {
        Launch {
            program,
            options: "color=red".into(),
            inherited: Vec::new(),
            sandbox: Sandbox::Require,
            cpus: 3,
            successor,
        }
    }

    /// A program that writes what it was given to its socket.
    fn program(directory: &tempfile::TempDir) -> PathBuf {
        let path = directory.path().join("device");
        let script = "#!/bin/sh\necho \"$2 $OUTRIGGER_VCPUS $OUTRIGGER_SANDBOX $OUTRIGGER_SUCCESSOR\" >&0\n\
                      for fd in $(echo $OUTRIGGER_KEPT | tr , ' '); do cat /dev/fd/$fd >&0; done\n";
        std::fs::write(&path, script).unwrap();
        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&path, permissions).unwrap();
        path
    }

    fn answer(launch: Launch) -> String {
        // It lives as long as its children.
        let launcher = Launcher::default();
        let (process, mut stream) = launcher.start(launch).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(process.wait(Duration::from_secs(10)).unwrap().success());
        text
    }

    #[test]
    fn a_successor_inherits_what_was_kept_in_its_order_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("{name}\n")).unwrap();
            ForeignFd::from(OwnedFd::from(File::open(path).unwrap()))
        };
        let kept = Arc::new(vec![file("one"), file("two")]);
        let program = program(&directory);
        assert_eq!(answer(launch(program.clone(), None)), "color=red 3 require \n");
        assert_eq!(answer(launch(program, Some(kept))), "color=red 3 require 1\none\ntwo\n");
    }

    #[test]
    fn a_program_gets_the_callers_descriptors_that_are_named_for_it_and_none_of_this_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("given");
        std::fs::write(&path, "given\n").unwrap();
        let (given, own) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        // As a caller leaves it open.
        inherit(given.as_raw_fd()).unwrap();
        let program = program(&directory);
        let script = format!(
            "#!/bin/sh\ncat /proc/self/fd/{} >&0\n[ -e /proc/self/fd/{} ] || echo none >&0\n",
            given.as_raw_fd(),
            own.as_raw_fd()
        );
        std::fs::write(&program, script).unwrap();
        let inherited = vec![given.as_raw_fd(), own.as_raw_fd(), 999_999];
        assert_eq!(answer(Launch { inherited, ..launch(program, None) }), "given\nnone\n");
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let error = Launcher::default().start(launch("/nowhere/device".into(), None)).unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nowhere/device");
    }
}
