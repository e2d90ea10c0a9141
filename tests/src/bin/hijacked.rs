//! A stand-in for a device process that was taken over: `hijacked blk|net OPTIONS PARENT [unfiltered|told]` opens the device as the program of that name does,
//! seals itself by the same code, and makes every attempt of [`outrigger_tests::hijack`]. The environment says how, as it does to a device
//! program; `unfiltered` leaves out the filter of system calls, `told`
//! leaves its answers to the product. Prints a line for each attempt: what came of it, a tab, its name, and why it may succeed.

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
use outrigger_tests::hijack::{ATTEMPTS, Held};

/// The last attempt met the filter.
static REFUSED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (kind, options, parent, refusals) = match &words[..] {
        [kind, options, parent] => (kind, options, parent, Refusals::Answered),
        [kind, options, parent, word] if word == "unfiltered" => (kind, options, parent, Refusals::None),
        [kind, options, parent, word] if word == "told" => (kind, options, parent, Refusals::Told),
        _ => {
            eprintln!("usage: hijacked blk|net OPTIONS PARENT [unfiltered|told]");
            return ExitCode::from(2);
        }
    };
    let run = || run(kind, options, parent.parse().unwrap_or(0), refusals);
    match if launch::sandbox() == Ok(Some(Sandbox::Off)) { run() } else { contained(run) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hijacked: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What comes of a system call that the filter refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusals {
    /// EPERM, so that one process can make all attempts.
    Answered,
    /// The end of the process, as in the product.
    Told,
    /// There is no filter.
    None,
}

/// Does `work` where the launcher has a device process start: in a PID namespace, and for a user without privileges in a user namespace.
fn contained(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if !seal::is_privileged() {
        let (user, group) = (Uid::effective(), Gid::effective());
        unshare(CloneFlags::CLONE_NEWUSER)?;
        seal::map_user(user, group)?;
    }
    unshare(CloneFlags::CLONE_NEWPID)?;
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
            _ if REFUSED.load(Ordering::Relaxed) => "refused by the filter".to_owned(),
            Ok(()) => "succeeded".to_owned(),
            Err(error) => format!("refused: {error}"),
        };
        let line = format!("{outcome}\t{}\t{}\n", attempt.name, attempt.by_design.unwrap_or_default());
        io::stderr().write_all(line.as_bytes())?;
    }
    drop(device);
    Ok(())
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
