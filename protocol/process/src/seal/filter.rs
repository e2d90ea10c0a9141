//! The system calls that a thread may make (seccomp(2), `SECCOMP_SET_MODE_FILTER`). Each other one ends the process, after one line
//! that names it and the thread.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::io::{self, Write};
use std::mem::MaybeUninit;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use syscalls::Sysno;

use crate::output;

/// Exit status of a process that was ended for a system call: 128 and the number of SIGSYS, as shells have it.
pub const EXIT_REFUSED: u8 = 128 + 31;

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Its number.
    pub call: Sysno,
    /// With which arguments.
    pub when: When,
    /// The reason.
    pub why: &'static str,
}

/// With which arguments a system call is allowed.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Any.
    Always,
    /// The argument of this number, from 0, is one of these; 32 bits are looked at.
    Is(u8, &'static [u64]),
    /// The first argument is one of the first list, and the second one of the second.
    FirstAndSecond(&'static [u64], &'static [u64]),
    /// The argument of this number has none of these bits.
    Lacks(u8, u64),
    /// The argument of this number is this process.
    ThisProcess(u8),
}

/// `call`, with any arguments.
#[must_use]
pub const fn allow(call: Sysno, why: &'static str) -> Allowed {
    Allowed { call, when: When::Always, why }
}

/// `call`, with these arguments only.
#[must_use]
pub const fn allow_when(call: Sysno, when: When, why: &'static str) -> Allowed {
    Allowed { call, when, why }
}

/// Memory that a client takes away, calls that a client holds, and the end of a process that has crashed.
const SIGNALS: &[u64] = &[libc::SIGBUS as u64, libc::SIGURG as u64, libc::SIGSEGV as u64, libc::SIGABRT as u64];

/// The calls of every thread: to wait, to have memory, to return from a signal, to end.
pub const EVERY_THREAD: &[Allowed] = &[
    allow(Sysno::futex, "locks, and waits for another thread"),
    allow_when(Sysno::mmap, When::Lacks(2, libc::PROT_EXEC as u64), "memory, none of it executable"),
    allow_when(Sysno::mprotect, When::Lacks(2, libc::PROT_EXEC as u64), "memory, none of it executable"),
    allow(Sysno::munmap, "memory"),
    allow(Sysno::mremap, "memory"),
    allow(Sysno::brk, "memory"),
    allow(Sysno::madvise, "memory that is given back"),
    allow(Sysno::rt_sigreturn, "the end of a signal's handler"),
    allow(Sysno::getpid, "a signal to a thread of its own"),
    allow_when(Sysno::tgkill, When::ThisProcess(0), "calls in which a client that has left holds a thread; abort"),
    allow_when(Sysno::rt_sigaction, When::Is(0, SIGNALS), "handlers that are set when they are first needed"),
    allow(Sysno::rt_sigprocmask, "signals that a thread takes, and around a handler"),
    allow(Sysno::sigaltstack, "the end of a thread"),
    allow(Sysno::gettid, "a panic's message"),
    allow_when(Sysno::fcntl, When::Is(1, &[libc::F_GETFD as u64]), "debug builds look before they close"),
    allow_when(Sysno::prctl, When::Is(0, &[libc::PR_SET_NAME as u64]), "the name of the work that a thread has"),
    allow(Sysno::clock_gettime, "the time, where the kernel's page for it is switched off"),
    allow(Sysno::clock_nanosleep, "a pause"),
    allow(Sysno::sched_yield, "a lock that is about to be free"),
    allow(Sysno::getrandom, "the first table of a thread"),
    allow(Sysno::restart_syscall, "a wait that a stop has interrupted"),
    allow_when(Sysno::write, When::Is(0, &[2]), "the line of a refused call, or of a panic"),
    allow(Sysno::exit, "the end of the thread"),
    allow(Sysno::exit_group, "the end of the process"),
];

/// The filter of one kind of thread, ready to be installed.
#[derive(Debug)]
pub struct Filter {
    thread: &'static str,
    program: BpfProgram,
}

impl Filter {
    /// Allows the calls of all `lists`, and no other.
    ///
    /// # Errors
    /// The lists make no filter.
    pub fn new(thread: &'static str, lists: &[&[Allowed]]) -> io::Result<Self> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut any = Vec::new();
        for Allowed { call, when, .. } in lists.iter().copied().flatten() {
            let number = i64::from(call.id());
            let more = when.rules()?;
            if more.is_empty() {
                any.push(number);
            }
            rules.entry(number).or_default().extend(more);
        }
        // Without a condition it is allowed whatever else is said of it.
        for number in any {
            rules.insert(number, Vec::new());
        }
        let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
        let program = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
        Ok(Self { thread, program })
    }

    /// Installs it on the calling thread, for good.
    ///
    /// # Errors
    /// The kernel has no seccomp, or `no_new_privs` is not set.
    pub fn install(&self) -> io::Result<()> {
        THREAD.set(self.thread);
        seccompiler::apply_filter(&self.program).map_err(io::Error::other)?;
        INSTALLED.set(true);
        Ok(())
    }
}

impl When {
    fn rules(self) -> io::Result<Vec<SeccompRule>> {
        let condition = |index, operator, value| {
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value).map_err(io::Error::other)
        };
        let rule = |index, operator, value| {
            SeccompRule::new(vec![condition(index, operator, value)?]).map_err(io::Error::other)
        };
        match self {
            Self::Always => Ok(Vec::new()),
            Self::Is(index, values) => values.iter().map(|&value| rule(index, SeccompCmpOp::Eq, value)).collect(),
            Self::FirstAndSecond(first, second) => {
                let pairs = first.iter().flat_map(|&first| second.iter().map(move |&second| (first, second)));
                let both = |(first, second)| {
                    let conditions =
                        [(0, first), (1, second)].map(|(index, value)| condition(index, SeccompCmpOp::Eq, value));
                    let conditions = conditions.into_iter().collect::<io::Result<Vec<_>>>()?;
                    SeccompRule::new(conditions).map_err(io::Error::other)
                };
                pairs.map(both).collect()
            }
            Self::Lacks(index, bits) => Ok(vec![rule(index, SeccompCmpOp::MaskedEq(bits), 0)?]),
            Self::ThisProcess(index) => Ok(vec![rule(index, SeccompCmpOp::Eq, std::process::id().into())?]),
        }
    }
}

/// Whether the calling thread has a filter.
#[must_use]
pub fn is_installed() -> bool {
    INSTALLED.get()
}

thread_local! {
    static INSTALLED: Cell<bool> = const { Cell::new(false) };
    /// The kind of the thread, for the line.
    static THREAD: Cell<&'static str> = const { Cell::new("a thread") };
}

/// Has a system call that is refused end the process with one line, from now on.
///
/// # Errors
/// The system does not take the handler, which is not expected.
pub fn name_refused_calls() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zero is a value of each of its members, and those that matter are set below.
    let action = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = refused as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        action
    };
    // SAFETY: the handler is async-signal-safe: it writes from its stack, and ends the process.
    nix::errno::Errno::result(unsafe { libc::sigaction(libc::SIGSYS, action, std::ptr::null_mut()) })?;
    Ok(())
}

/// The members of `siginfo_t` for SIGSYS (`<signal.h>`, `_sigsys`), for which the C library's crate has no name.
#[repr(C)]
struct RefusedCall {
    signo: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    address: *const c_void,
    call: c_int,
    architecture: u32,
}

extern "C" fn refused(_: c_int, info: *const RefusedCall, _: *const c_void) {
    // SAFETY: the kernel passes a `siginfo_t` of this signal.
    let number = unsafe { (*info).call };
    let name = usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
    let mut line = [0; 160];
    let mut left = &mut line[..];
    // It fits. Standard error may be a pipe that nobody reads: one line does not fill it.
    let _ =
        writeln!(left, "{}: the sandbox refuses system call {number} ({name}) to {}", output::program(), THREAD.get());
    let length = 160 - left.len();
    // SAFETY: writes from the array, then ends the process.
    unsafe {
        libc::write(2, line.as_ptr().cast(), length);
        libc::_exit(EXIT_REFUSED.into());
    }
}
