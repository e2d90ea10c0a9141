//! The user's terminal: in raw mode while the guest has it, and as it was before on every way out.
//!
//! A process in the background must leave the terminal alone: its settings belong to the process in the foreground.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// Signals that end a process that met a bug, while the terminal is still raw.
const FATAL: [Signal; 5] = [Signal::SIGABRT, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGSEGV];

/// Settings for a signal handler to restore the terminal of this process; null while there is nothing to restore.
static EMERGENCY: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

struct Saved {
    fd: RawFd,
    settings: libc::termios,
}

/// A terminal and its settings from before. Dropping it restores them.
#[derive(Debug)]
pub struct Terminal {
    fd: OwnedFd,
    original: libc::termios,
    raw: AtomicBool,
}

impl Terminal {
    /// The terminal behind `fd`, untouched yet; `None` where `fd` isn't one.
    ///
    /// # Errors
    /// The host's, where it is out of descriptors.
    pub fn open(fd: impl AsFd) -> io::Result<Option<Self>> {
        match tcgetattr(&fd) {
            Ok(original) => {
                let fd = fd.as_fd().try_clone_to_owned()?;
                Ok(Some(Terminal { fd, original: original.into(), raw: AtomicBool::new(false) }))
            }
            Err(_) => Ok(None),
        }
    }

    /// Whether this process may use the terminal now. Any process may if the terminal isn't the controlling one.
    pub fn is_foreground(&self) -> bool {
        tcgetpgrp(&self.fd).map_or(true, |group| group == getpgrp())
    }

    /// Hands every key to us as it is pressed, unless we are in the background. The output stays processed, so that
    /// messages of ours still begin at the left edge. Settings that cannot be changed are left: typing still works,
    /// line by line.
    pub fn set_raw(&self) {
        if !self.is_foreground() {
            return;
        }
        let mut raw = Termios::from(self.original);
        cfmakeraw(&mut raw);
        raw.output_flags |= OutputFlags::OPOST | OutputFlags::ONLCR;
        self.arm();
        match tcsetattr(&self.fd, SetArg::TCSANOW, &raw) {
            Ok(()) => self.raw.store(true, Ordering::SeqCst),
            Err(errno) => log::warn!("cannot put the terminal into raw mode: {}", errno.desc()),
        }
    }

    /// Gives the terminal back as it was. Does nothing where it isn't raw.
    pub fn restore(&self) {
        if self.raw.swap(false, Ordering::SeqCst) && self.is_foreground() {
            // A terminal that is gone needs no settings.
            let _ = tcsetattr(&self.fd, SetArg::TCSANOW, &Termios::from(self.original));
        }
    }

    /// Prepares for an end of the process that runs no destructor.
    fn arm(&self) {
        static ONCE: Once = Once::new();
        if EMERGENCY.load(Ordering::SeqCst).is_null() {
            let saved = Box::new(Saved { fd: self.fd.as_raw_fd(), settings: self.original });
            // Never freed, since a handler may be looking at it: a few bytes for each terminal of a process, so once.
            EMERGENCY.store(Box::into_raw(saved), Ordering::SeqCst);
        }
        ONCE.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore_in_emergency();
                report(panic);
            }));
            for signal in FATAL {
                let flags = SaFlags::SA_RESETHAND | SaFlags::SA_NODEFER | SaFlags::SA_ONSTACK;
                let action = SigAction::new(SigHandler::Handler(on_fatal_signal), flags, SigSet::empty());
                // SAFETY: the handler calls only functions that are async-signal-safe: tcsetattr and raise, and loads an atomic.
                if let Err(errno) = unsafe { sigaction(signal, &action) } {
                    log::debug!("no handler for {signal}: {}", errno.desc());
                }
            }
        });
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
        // From here on the number of the descriptor may come to mean something else.
        EMERGENCY.store(ptr::null_mut(), Ordering::SeqCst);
    }
}

/// Restores the terminal without destructors. Async-signal-safe.
fn restore_in_emergency() {
    let saved = EMERGENCY.load(Ordering::SeqCst);
    // SAFETY: the pointer is null or comes from a Box that is never freed.
    if let Some(saved) = unsafe { saved.as_ref() } {
        let errno = Errno::last_raw();
        // SAFETY: tcsetattr reads the termios behind a valid reference; a closed descriptor is an error it returns.
        unsafe { libc::tcsetattr(saved.fd, libc::TCSANOW, &raw const saved.settings) };
        Errno::set_raw(errno);
    }
}

/// Restores the terminal, then lets the signal do what it does by default (the handler is reset on entry).
extern "C" fn on_fatal_signal(signal: libc::c_int) {
    restore_in_emergency();
    // SAFETY: raise is async-signal-safe and takes any number.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;

    use super::*;

    /// The emergency is one per process, so these tests take turns.
    fn turn() -> MutexGuard<'static, ()> {
        static TURN: Mutex<()> = Mutex::new(());
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_raw(fd: impl AsFd) -> bool {
        let settings = tcgetattr(fd).unwrap();
        assert!(settings.output_flags.contains(OutputFlags::OPOST));
        !settings.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    #[test]
    fn a_file_is_no_terminal() {
        assert!(Terminal::open(std::fs::File::open("/dev/null").unwrap()).unwrap().is_none());
    }

    #[test]
    fn raw_mode_is_left_by_restore_by_drop_and_can_be_entered_again() {
        let _turn = turn();
        let pty = openpty(None, None).unwrap();
        let terminal = Terminal::open(&pty.slave).unwrap().unwrap();
        assert!(!is_raw(&pty.slave), "opening changes nothing");
        terminal.set_raw();
        assert!(is_raw(&pty.slave));
        terminal.restore();
        assert!(!is_raw(&pty.slave));
        terminal.set_raw();
        drop(terminal);
        assert!(!is_raw(&pty.slave));
    }

    #[test]
    fn a_panic_restores_the_terminal_before_its_message() {
        let _turn = turn();
        let pty = openpty(None, None).unwrap();
        let terminal = Terminal::open(&pty.slave).unwrap().unwrap();
        terminal.set_raw();
        assert!(is_raw(&pty.slave));
        // The release build does not survive a panic; the terminal is not dropped.
        let caught = catch_unwind(|| panic!("on purpose"));
        assert!(caught.is_err() && !is_raw(&pty.slave));
    }
}
