//! A child process with a deadline: its output is collected while it runs, and when it takes too long it is killed and the test
//! fails with what it had said.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

const POLL: Duration = Duration::from_millis(10);

/// A process that runs.
pub struct Process {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collector,
    stderr: Collector,
    deadline: Instant,
}

/// A process that ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit status as a shell gives it: 128 and the signal's number for a process that a signal ended.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().or_else(|| self.status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    }

    /// Fails the test, with all output, unless the exit status is `wanted`.
    #[track_caller]
    pub fn expect_code(&self, wanted: i32) -> &Self {
        assert_eq!(self.code(), wanted, "the exit status is wrong; output:\n{self}");
        self
    }

    /// Fails the test, with all output, unless standard output has `words` in it.
    #[track_caller]
    pub fn expect_stdout(&self, words: &str) -> &Self {
        assert!(self.stdout.contains(words), "standard output lacks {words:?}; output:\n{self}");
        self
    }

    /// Fails the test, with all output, unless standard error has `words` in it.
    #[track_caller]
    pub fn expect_stderr(&self, words: &str) -> &Self {
        assert!(self.stderr.contains(words), "standard error lacks {words:?}; output:\n{self}");
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n--- stdout\n{}\n--- stderr\n{}\n---", self.status, self.stdout, self.stderr)
    }
}

impl Process {
    /// Starts `command`, which has `limit` from now to end. Its standard input is /dev/null.
    #[track_caller]
    pub fn start(command: &mut Command, limit: Duration) -> Self {
        Self::spawn(command.stdin(Stdio::null()), limit)
    }

    /// The same with a pipe as standard input, for [`send`](Self::send).
    #[track_caller]
    pub fn start_with_input(command: &mut Command, limit: Duration) -> Self {
        Self::spawn(command.stdin(Stdio::piped()), limit)
    }

    /// The same with `stdin` as standard input.
    #[track_caller]
    pub fn start_on(command: &mut Command, stdin: OwnedFd, limit: Duration) -> Self {
        Self::spawn(command.stdin(stdin), limit)
    }

    #[track_caller]
    fn spawn(command: &mut Command, limit: Duration) -> Self {
        let what = format!("{command:?}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec the closure makes system calls only, and no disposition runs a handler.
        unsafe { command.pre_exec(notice_signals) };
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        let stdout = Collector::new(child.stdout.take().expect("it was asked for"));
        let stderr = Collector::new(child.stderr.take().expect("it was asked for"));
        let stdin = child.stdin.take();
        Self { what, child, stdin, stdout, stderr, deadline: Instant::now() + limit }
    }

    /// Process number.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process numbers fit"))
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a child that was not waited for can be signalled");
    }

    /// Writes to its standard input.
    #[track_caller]
    pub fn send(&mut self, words: &str) {
        let stdin = self.stdin.as_mut().expect("started with input");
        if let Err(error) = stdin.write_all(words.as_bytes()).and_then(|()| stdin.flush()) {
            panic!("does not read its input: {error}{}", self.give_up());
        }
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Waits until `words` are on standard output.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str) {
        let wanted = format!("printed {words:?}");
        self.wait_until(&wanted, |process| process.stdout().contains(words));
    }

    /// Waits until `words` are on standard error.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, words: &str) {
        let wanted = format!("wrote {words:?} to standard error");
        self.wait_until(&wanted, |process| process.stderr.text().contains(words));
    }

    #[track_caller]
    fn wait_until(&mut self, wanted: &str, done: impl Fn(&Self) -> bool) {
        loop {
            let ended = self.child.try_wait().expect("it is our child").is_some();
            if ended {
                self.stdout.finish();
                self.stderr.finish();
            }
            if done(self) {
                return;
            }
            assert!(!ended && Instant::now() < self.deadline, "never {wanted}{}", self.give_up());
            thread::sleep(POLL);
        }
    }

    /// Whether it has ended. Whoever holds its output open does not matter.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Ended {
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            assert!(Instant::now() < self.deadline, "took too long{}", self.give_up());
            thread::sleep(POLL);
        };
        self.stdout.finish();
        self.stderr.finish();
        Ended { status, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }

    fn give_up(&mut self) -> String {
        // A process that already ended cannot be killed, which is as well.
        let _ = self.child.kill();
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
        format!(": {}\nended with {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---", self.what)
    }
}

/// Kills what a failed test leaves behind.
impl Drop for Process {
    fn drop(&mut self) {
        // Errors say that it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tests that run in the background of a script have SIGINT and SIGQUIT ignored, which every program that they start would
/// inherit and keep so.
fn notice_signals() -> std::io::Result<()> {
    for ends in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGTERM] {
        // SAFETY: the default disposition runs no handler.
        unsafe { signal(ends, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Runs `command` to its end.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Ended {
    Process::start(command, limit).finish()
}

/// Polls until `done`, for `limit` at most; whether it was done.
pub fn eventually(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
}

/// Collects what comes out of a pipe.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn new(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut chunk) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..length]);
            }
        });
        Self { bytes, thread: Some(thread) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits for the pipe's end, a few seconds at most: a grandchild that lives on may hold it open.
    fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            eventually(Duration::from_secs(3), || thread.is_finished());
        }
    }
}
