//! The system calls of each kind of thread of a device process once it is sealed, each with what it is for.
//!
//! A thread that is taken over can write the stack of another, so what the process can do is the sum of all lists. Apart they
//! are short, and the lists of the threads that move data say what moving data takes.

use std::io;

use outrigger_process::crew::Role;
use outrigger_process::seal::filter::{Allowed, EVERY_THREAD, Filter, When, allow, allow_when};
use syscalls::Sysno;

/// The device that a process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An image or a block device.
    Disk,
    /// A tap.
    Card,
}

/// The clients of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// The one that it was started for.
    One,
    /// One after the other, by a socket on which it listens.
    Many,
}

/// Everything that a process keeps which is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The device that it serves.
    pub kind: Kind,
    /// Bytes of the file behind it, which it cannot make longer.
    pub file_size: u64,
}

/// The filters of a process, made before its threads: a thread that does nothing but install one touches little memory.
#[derive(Debug)]
pub struct Filters {
    first: Filter,
    serving: Filter,
    crew: [Filter; Role::ALL.len()],
}

impl Filters {
    /// Those of a process that serves `kind` to these `clients`.
    ///
    /// # Errors
    /// The lists make no filter.
    pub fn new(kind: Kind, clients: Clients) -> io::Result<Self> {
        let accepting = if clients == Clients::Many { ACCEPTING } else { &[] };
        let serving = [EVERY_THREAD, MESSAGES, SERVING, kind.serving(), accepting];
        let [queue, registers, hang_up, closing, output, signals] = Role::ALL.map(|role| thread(kind, role));
        Ok(Self {
            first: Filter::new("a thread that is being made", &[&everybodys(kind)[..], &[MAKING]].concat())?,
            serving: Filter::new("the thread that serves the client", &serving)?,
            crew: [queue?, registers?, hang_up?, closing?, output?, signals?],
        })
    }

    /// For the thread that makes the others, which inherit it. The kernel tries a new filter on each of its calls to know those that need not be
    /// looked at any more (Linux, kernel/seccomp.c, `seccomp_cache_prepare`), but for those that an earlier filter refuses: where this
    /// one has refused most, each thread's own is installed in a tenth of the time.
    pub fn first(&self) -> &Filter {
        &self.first
    }

    /// Of the thread that serves the client.
    pub fn serving(&self) -> &Filter {
        &self.serving
    }

    /// Of a thread of the crew.
    pub fn of(&self, role: Role) -> &Filter {
        &self.crew[role as usize]
    }
}

fn thread(kind: Kind, role: Role) -> io::Result<Filter> {
    match role {
        Role::Queue => Filter::new("a queue's thread", &[EVERY_THREAD, MESSAGES, QUEUE, kind.queue()]),
        Role::Registers => Filter::new("the registers' thread", &[EVERY_THREAD, MESSAGES, SERVING, kind.serving()]),
        Role::HangUp => Filter::new("the thread that waits for a hang-up", &[EVERY_THREAD, HANG_UP]),
        Role::Closing => Filter::new("a thread that closes descriptors", &[EVERY_THREAD, CLOSING]),
        Role::Output => Filter::new("the thread that writes the log", &[EVERY_THREAD, OUTPUT]),
        Role::Signals => Filter::new("the thread that waits for signals", &[EVERY_THREAD, SIGNALS]),
    }
}

/// All that any thread of the process may do: what it can do when it is taken over.
pub fn everything(kind: Kind) -> io::Result<Filter> {
    Filter::new("the process", &everybodys(kind))
}

fn everybodys(kind: Kind) -> Vec<&'static [Allowed]> {
    let serving = [EVERY_THREAD, MESSAGES, SERVING, kind.serving(), ACCEPTING];
    [&serving[..], &[QUEUE, kind.queue(), HANG_UP, CLOSING, OUTPUT, SIGNALS]].concat()
}

impl Kind {
    fn serving(self) -> &'static [Allowed] {
        match self {
            Self::Disk => &[],
            Self::Card => CARD_SERVING,
        }
    }

    fn queue(self) -> &'static [Allowed] {
        match self {
            Self::Disk => DISK_QUEUE,
            Self::Card => CARD_QUEUE,
        }
    }
}

const AF_UNIX: u64 = libc::AF_UNIX as u64;
/// Of `socketpair`: sockets that reach nobody but their pair.
const CONNECTED: &[u64] =
    &[(libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64, (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64];
const SCHED_OTHER: u64 = libc::SCHED_OTHER as u64;
const SCHED_BATCH: u64 = libc::SCHED_BATCH as u64;
/// Of `fcntl`.
const FCNTL: &[u64] = &[
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_SETFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GET_SEALS as u64,
    libc::F_OFD_SETLK as u64,
];
/// Of `ioctl`, on a tap (Linux, `include/uapi/linux/if_tun.h`).
const TAP: &[u64] = &[libc::TUNSETQUEUE, libc::TUNSETOFFLOAD, libc::TUNGETIFF, libc::TUNSETVNETHDRSZ];

/// Messages of the client, on the thread that serves it, and on any that reaches memory by messages.
const MESSAGES: &[Allowed] = &[
    allow(Sysno::recvmsg, "messages"),
    allow(Sysno::sendmsg, "answers, and requests for memory"),
    allow(Sysno::sendto, "the same without descriptors"),
    allow(Sysno::poll, "a message, and no longer than its deadline"),
    allow(Sysno::setsockopt, "deadlines of messages"),
    allow(Sysno::shutdown, "the end of a connection"),
    allow(Sysno::close, "descriptors that nobody asked for"),
];

/// The thread that serves the client, and that of its registers: each can start and stop queues.
const SERVING: &[Allowed] = &[
    allow(Sysno::read, "eventfds"),
    allow(Sysno::write, "eventfds: interrupts and doorbells"),
    allow(Sysno::getpeername, "whether a descriptor that came is a connected socket"),
    allow(Sysno::getsockopt, "the kind of a descriptor that came"),
    allow_when(
        Sysno::socketpair,
        When::FirstAndSecond(&[AF_UNIX], CONNECTED),
        "the twin socket, and the ioregionfd of each client",
    ),
    allow(Sysno::eventfd2, "doorbells of each client"),
    allow(Sysno::fstat, "the size of memory that came (glibc 2.39)"),
    allow_when(Sysno::newfstatat, When::Is(3, &[libc::AT_EMPTY_PATH as u64]), "the size of memory that came"),
    allow(Sysno::statx, "the kind of a descriptor that came"),
    allow(Sysno::readlinkat, "whether a descriptor that came is an eventfd"),
    allow_when(
        Sysno::fcntl,
        When::Is(1, FCNTL),
        "flags of descriptors that came, copies of them, and the lock on the image",
    ),
];

/// The thread that serves one client after the other.
const ACCEPTING: &[Allowed] = &[allow(Sysno::accept4, "the next client")];

/// The thread of a disk's queue.
const DISK_QUEUE: &[Allowed] = &[
    allow(Sysno::io_uring_enter, "I/O on the image, by a ring that is restricted to it"),
    allow(Sysno::io_uring_register, "this client's doorbell, as one of the ring's files"),
    allow(Sysno::pread64, "an image in memory"),
    allow(Sysno::pwrite64, "an image in memory"),
    allow(Sysno::preadv, "an image in memory"),
    allow(Sysno::pwritev2, "an image in memory"),
    allow(Sysno::fdatasync, "an image in memory"),
];

/// The threads of a card's queues.
const CARD_QUEUE: &[Allowed] = &[
    allow(Sysno::readv, "packets from the tap"),
    allow(Sysno::writev, "packets to the tap"),
    allow_when(Sysno::ioctl, When::Is(1, TAP), "queues that the driver switches on and off"),
    // Of itself, and to no real-time policy.
    allow_when(
        Sysno::sched_setscheduler,
        When::FirstAndSecond(&[0], &[SCHED_OTHER, SCHED_BATCH]),
        "to let those go first who make its work",
    ),
];

/// The threads of any queue.
const QUEUE: &[Allowed] =
    &[allow(Sysno::read, "its doorbell"), allow(Sysno::write, "interrupts, and packets to the tap")];

/// Requests to the tap when the driver starts and stops the card.
const CARD_SERVING: &[Allowed] = &[allow_when(Sysno::ioctl, When::Is(1, TAP), "the tap's queues and offloads")];

/// The thread that waits for a client to hang up.
const HANG_UP: &[Allowed] = &[
    allow(Sysno::poll, "the end of the connection"),
    allow(Sysno::close, "the connection"),
    allow(Sysno::shutdown, "the connection"),
];

/// The threads that close what a peer has sent.
const CLOSING: &[Allowed] = &[
    allow(Sysno::close, "descriptors"),
    allow(Sysno::shutdown, "connections"),
    allow(Sysno::setsockopt, "that closing does not linger"),
];

/// The thread that writes the log.
const OUTPUT: &[Allowed] = &[];

/// The thread that waits for signals to end the process.
const SIGNALS: &[Allowed] = &[allow(Sysno::rt_sigtimedwait, "a signal")];

/// Calls that make threads, with their stacks and rings, and to restrict them. No thread may do so that has its own filter.
const MAKING: &[Allowed] = &[
    allow(Sysno::clone3, "a thread"),
    allow(Sysno::clone, "a thread, where the C library takes this"),
    allow(Sysno::rt_sigaction, "the C library's own signals, before the first thread"),
    allow(Sysno::set_robust_list, "the beginning of a thread"),
    allow(Sysno::rseq, "the beginning of a thread"),
    allow(Sysno::sched_getaffinity, "the place of a thread's stack"),
    allow(Sysno::prlimit64, "the size of a thread's stack"),
    allow(Sysno::membarrier, "the beginning of a thread, in other C libraries"),
    allow(Sysno::prctl, "the name of a thread, and its filter"),
    allow(Sysno::seccomp, "its filter"),
    allow(Sysno::io_uring_setup, "its ring"),
    allow(Sysno::io_uring_register, "its ring, and what that may do"),
    allow(Sysno::fcntl, "the lock on the image"),
    allow(Sysno::close, "what was needed to make its ring"),
    allow(Sysno::eventfd2, "what its ring waits for"),
];
