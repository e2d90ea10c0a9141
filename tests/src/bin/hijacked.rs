//! A stand-in for a device process that was taken over: `hijacked blk|net OPTIONS PARENT [WORD]` opens the device as the program of that
//! name does, seals itself by the same code, and makes every attempt of [`outrigger_tests::hijack`]. The environment says how, as it does to
//! a device program. WORD is one of
//!
//! | word | |
//! |---|---|
//! | `unfiltered` | the filter of system calls is left out |
//! | `told` | a call that the filter refuses is answered as in the product |
//! | `contained` | all this is in a container that permits no namespaces |
//!
//! Prints a line for each layer that the host does not permit, and for each attempt ([`outrigger_tests::hijack::stand_in`]).

use std::ffi::{c_int, c_void};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork};
use outrigger_devices::blk::Blk;
use outrigger_devices::net::Net;
use outrigger_devices::sandbox::{self, Kind};
use outrigger_devices::transport::VirtioDevice;
use outrigger_process::seal::{self, Sandbox};
use outrigger_process::{inherited, launch};
use outrigger_tests::hijack::stand_in::{ATTEMPT, FILTERED, MISSING, SUCCEEDED};
use outrigger_tests::hijack::{ATTEMPTS, Held, container};

/// The last attempt met the filter.
static REFUSED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kind, options, parent, word @ ..] = &words[..] else {
        eprintln!("usage: hijacked blk|net OPTIONS PARENT [unfiltered|told|contained]");
        return ExitCode::from(2);
    };
    let refusals = match word.first().map(String::as_str) {
        Some("unfiltered") => Refusals::None,
        Some("told") => Refusals::Told,
        _ => Refusals::Answered,
    };
    let contained = word.first().is_some_and(|word| word == "contained");
    let inside = if contained { container::enter() } else { Ok(()) };
    let run = || run(kind, options, parent.parse().unwrap_or(0), refusals);
    let launched = || if launch::sandbox() == Ok(Some(Sandbox::Off)) { run() } else { as_launched(run) };
    match inside.and_then(|()| launched()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hijacked: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The fate of a system call that the filter refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusals {
    /// EPERM, so that one process can make all attempts.
    Answered,
    /// The end of the process, as in the product.
    Told,
    /// There is no filter.
    None,
}

/// Does `work` where the launcher has a device process start: in a PID namespace, for a user without privileges by way of a user namespace;
/// and here where the host permits none.
fn as_launched(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if !seal::is_privileged() {
        let (user, group) = (Uid::effective(), Gid::effective());
        if unshare(CloneFlags::CLONE_NEWUSER).is_err() {
            return work();
        }
        seal::map_user(user, group)?;
    }
    if unshare(CloneFlags::CLONE_NEWPID).is_err() {
        return work();
    }
    // SAFETY: there is no other thread.
    match unsafe { fork() }? {
        ForkResult::Child => work(),
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, status) => std::process::exit(status),
            status => Err(io::Error::other(format!("{status:?}"))),
        },
    }
}

fn run(kind: &str, options: &str, parent: i32, refusals: Refusals) -> io::Result<()> {
    inherited::normalize()?;
    // It stays open, as in the program that is taken over.
    let (device, size): (Box<dyn Send>, i64) = match kind {
        "blk" => {
            let blk = Blk::open(options).map_err(|error| io::Error::other(error.to_string()))?;
            let size = blk.profile().map_or(0, |profile| profile.file_size.cast_signed());
            (Box::new(blk), size)
        }
        _ => (Box::new(Net::open(options).map_err(|error| io::Error::other(error.to_string()))?), 0),
    };
    let found = (3..64).find(|&number| is_device(number));
    let sandbox = launch::sandbox().map_err(io::Error::other)?;
    if sandbox != Some(Sandbox::Off) {
        let missing = seal::confine(size.cast_unsigned())?;
        if !missing.is_empty() && sandbox == Some(Sandbox::Require) {
            return Err(io::Error::other(seal::line(&missing)));
        }
        for lack in &missing {
            say(format_args!("{MISSING}{}\n", lack.layer().name()))?;
        }
        match refusals {
            Refusals::Answered => answer_refusals()?,
            Refusals::Told => seal::filter::name_refused_calls()?,
            Refusals::None => {}
        }
        if refusals != Refusals::None {
            let kind = if kind == "blk" { Kind::Disk } else { Kind::Card };
            sandbox::everything(kind)?.install()?;
        }
    }
    let held = Held { parent, device: found, size };
    for attempt in ATTEMPTS {
        REFUSED.store(false, Ordering::Relaxed);
        let result = (attempt.run)(&held);
        let outcome = match result {
            _ if REFUSED.load(Ordering::Relaxed) => FILTERED.to_owned(),
            Ok(()) => SUCCEEDED.to_owned(),
            Err(error) => format!("refused: {error}"),
        };
        say(format_args!("{ATTEMPT}{outcome}\t{}\n", attempt.name))?;
    }
    drop(device);
    Ok(())
}

/// A line at once, by one system call.
fn say(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    io::stderr().write_all(line.to_string().as_bytes())
}

/// Whether this is an image or a tap: what the standard library and this program open are sockets and pipes.
fn is_device(number: RawFd) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
    name.starts_with("/dev/net/tun") || name.is_file()
}

/// Has a call that the filter refuses answer EPERM.
fn answer_refusals() -> io::Result<()> {
    extern "C" fn answer(_: c_int, _: *const c_void, context: *mut libc::ucontext_t) {
        REFUSED.store(true, Ordering::Relaxed);
        // SAFETY: the kernel passes the context that this handler returns to.
        unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = -i64::from(libc::EPERM) };
    }
    // SAFETY: zero is a value of each member, and the handler touches nothing but the context and an atomic.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = answer as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}
