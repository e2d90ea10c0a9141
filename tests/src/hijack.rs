//! The attempts of somebody who has taken over a device process: each is something that the process has no business doing, and says by
//! success that it could.

pub mod container;
pub mod stand_in;

use std::ffi::{CStr, c_int, c_long, c_void};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::ptr::null;

use nix::errno::Errno;
use nix::libc;

/// The things that the process has, or knows, when it is taken over.
#[derive(Debug)]
pub struct Held {
    /// The process that has started it, by the number that it has outside.
    pub parent: i32,
    /// The image, or the first queue of the tap.
    pub device: Option<RawFd>,
    /// Bytes of the image.
    pub size: i64,
}

/// One attempt.
#[derive(Clone, Copy)]
pub struct Attempt {
    /// The thing that is tried.
    pub name: &'static str,
    /// Why it may succeed; none: it must not.
    pub by_design: Option<&'static str>,
    /// The attempt itself.
    pub run: fn(&Held) -> io::Result<()>,
}

const fn refused(name: &'static str, run: fn(&Held) -> io::Result<()>) -> Attempt {
    Attempt { name, by_design: None, run }
}

const fn by_design(name: &'static str, why: &'static str, run: fn(&Held) -> io::Result<()>) -> Attempt {
    Attempt { name, by_design: Some(why), run }
}

/// A system call with up to six arguments.
fn call<const N: usize>(number: c_long, arguments: [c_long; N]) -> io::Result<c_long> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: each use passes what the call expects, or something that it refuses; none writes memory of this process that matters.
    Ok(Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })?)
}

/// A descriptor that a call has made, closed again.
fn made(result: io::Result<c_long>) -> io::Result<()> {
    let number = RawFd::try_from(result?).map_err(io::Error::other)?;
    // SAFETY: the call has just made it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(())
}

fn pointer<T>(to: *const T) -> c_long {
    to as usize as c_long
}

fn text(text: &CStr) -> c_long {
    pointer(text.as_ptr())
}

/// An error that says that nothing is there to do something to: the attempt came as far as if there were.
fn came_there(result: io::Result<c_long>, answers: &[c_int]) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|errno| answers.contains(&errno)) => Ok(()),
        other => other.map(drop),
    }
}

fn device(held: &Held) -> io::Result<c_long> {
    held.device.map(c_long::from).ok_or_else(|| io::Error::from(ErrorKind::Unsupported))
}

fn in_parent(held: &Held, name: &str) -> String {
    format!("/proc/{}/{name}", held.parent)
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<()> {
    made(call(libc::SYS_socket, [family.into(), kind.into(), protocol.into()]))
}

/// Executes `flags`, and ends whatever came of it.
fn new_process(number: c_long, flags: c_int) -> io::Result<()> {
    let child = call(number, [c_long::from(flags) | c_long::from(libc::SIGCHLD)])?;
    if child == 0 {
        // SAFETY: ends the new process, which has done nothing.
        unsafe { libc::_exit(0) };
    }
    call(libc::SYS_wait4, [child, 0, 0, 0]).map(drop)
}

fn vector_of(address: usize) -> libc::iovec {
    libc::iovec { iov_base: address as *mut c_void, iov_len: 1 }
}

/// All of them.
pub const ATTEMPTS: &[Attempt] = &[
    refused("read /etc/shadow", |_| File::open("/etc/shadow").map(drop)),
    refused("list /", |_| match fs::read_dir("/")?.next() {
        Some(_) => Ok(()),
        None => Err(ErrorKind::NotFound.into()),
    }),
    refused("list the own /proc/self/fd", |_| fs::read_dir("/proc/self/fd").map(drop)),
    refused("open /dev/kvm", |_| File::open("/dev/kvm").map(drop)),
    refused("open the VMM's memory (/proc/PID/mem)", |held| File::open(in_parent(held, "mem")).map(drop)),
    refused("list the VMM's descriptors", |held| fs::read_dir(in_parent(held, "fd")).map(drop)),
    refused("write a file to /tmp", |_| {
        fs::write("/tmp/outrigger-hijacked", "x").and_then(|()| fs::remove_file("/tmp/outrigger-hijacked"))
    }),
    refused("make a directory in /", |_| {
        fs::create_dir("/outrigger-hijacked").and_then(|()| fs::remove_dir("/outrigger-hijacked"))
    }),
    refused("change the mode of its own program", |_| {
        call(libc::SYS_fchmodat, [libc::AT_FDCWD.into(), text(c"/proc/self/exe"), 0o755]).map(drop)
    }),
    refused("connect by TCP", |_| match TcpStream::connect("127.0.0.1:9") {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => other.map(drop),
    }),
    refused("send by UDP", |_| UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:9").map(drop)),
    refused("a raw socket", |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    refused("a netlink socket", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    refused("a packet socket", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    refused("a vsock socket", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    refused("a socket of the kernel's cryptography", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    refused("a Unix socket", |_| UnixDatagram::unbound().map(drop)),
    refused("connect to a Unix socket by its path", |_| match UnixStream::connect("/outrigger-hijacked") {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }),
    refused("signal the VMM", |held| call(libc::SYS_kill, [held.parent.into(), 0]).map(drop)),
    refused("signal every process", |_| call(libc::SYS_kill, [-1, 0]).map(drop)),
    refused("trace the VMM", |held| {
        call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), held.parent.into(), 0, 0])?;
        call(libc::SYS_ptrace, [libc::PTRACE_DETACH.into(), held.parent.into(), 0, 0]).map(drop).or(Ok(()))
    }),
    refused("read the VMM's memory", |held| {
        let mut byte = 0u8;
        let ours = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let theirs = vector_of(0x1000);
        let vectors = [pointer(&raw const ours), 1, pointer(&raw const theirs), 1];
        let arguments = [held.parent.into(), vectors[0], vectors[1], vectors[2], vectors[3], 0];
        // Nothing is mapped there: permission is asked first.
        came_there(call(libc::SYS_process_vm_readv, arguments), &[libc::EFAULT])
    }),
    refused("take a descriptor of the VMM's", |held| {
        let pidfd = call(libc::SYS_pidfd_open, [held.parent.into(), 0])?;
        let taken = call(libc::SYS_pidfd_getfd, [pidfd, 0, 0]);
        made(Ok(pidfd))?;
        made(taken)
    }),
    refused("compare descriptors with the VMM", |held| {
        // KCMP_FILE.
        call(libc::SYS_kcmp, [held.parent.into(), held.parent.into(), 0, 0, 0]).map(drop)
    }),
    refused("change the VMM's limits", |held| {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let arguments = [held.parent.into(), libc::RLIMIT_NOFILE.into(), 0, pointer(&raw mut limit)];
        call(libc::SYS_prlimit64, arguments)?;
        call(libc::SYS_prlimit64, [arguments[0], arguments[1], arguments[3], 0]).map(drop)
    }),
    refused("more descriptors for itself", |_| {
        let limit = libc::rlimit64 { rlim_cur: 4096, rlim_max: 4096 };
        call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE.into(), pointer(&raw const limit), 0]).map(drop)
    }),
    refused("a core dump", |_| {
        let limit = libc::rlimit64 { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        call(libc::SYS_prlimit64, [0, libc::RLIMIT_CORE.into(), pointer(&raw const limit), 0])?;
        call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1]).map(drop)
    }),
    refused("mount a file system", |_| {
        call(libc::SYS_mount, [text(c"none"), text(c"/"), text(c"tmpfs"), 0, 0])?;
        call(libc::SYS_umount2, [text(c"/"), 0]).map(drop)
    }),
    refused("write to the root", |_| {
        let flags = libc::MS_REMOUNT | libc::MS_BIND;
        call(libc::SYS_mount, [0, text(c"/"), 0, flags.cast_signed(), 0]).map(drop)
    }),
    refused("open a mount", |_| made(call(libc::SYS_open_tree, [libc::AT_FDCWD.into(), text(c"/"), 1]))),
    refused("a network namespace", |_| call(libc::SYS_unshare, [libc::CLONE_NEWNET.into()]).map(drop)),
    refused("change its root", |_| call(libc::SYS_chroot, [text(c".")]).map(drop)),
    refused("open a file by its handle", |_| {
        // Eight bytes, of a kind that file systems have.
        let handle = [8u32, 1, 0, 0, 0, 0, 0, 0];
        came_there(
            call(libc::SYS_open_by_handle_at, [libc::AT_FDCWD.into(), pointer(handle.as_ptr()), 0]),
            &[libc::ESTALE],
        )
    }),
    refused("become root", |_| call(libc::SYS_setresuid, [0, 0, 0]).map(drop)),
    refused("be in other groups", |_| call(libc::SYS_setgroups, [0, 0]).map(drop)),
    refused("an io_uring of its own", |_| {
        let parameters = [0u32; 30];
        made(call(libc::SYS_io_uring_setup, [1, pointer(parameters.as_ptr())]))
    }),
    refused("userfaultfd", |_| made(call(libc::SYS_userfaultfd, [1]))),
    refused("load a BPF program", |_| {
        let attributes = [0u64; 16];
        came_there(call(libc::SYS_bpf, [0, pointer(attributes.as_ptr()), 128]), &[libc::EINVAL])
    }),
    refused("count performance events", |_| {
        // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK.
        let mut attributes = [0u32; 32];
        attributes[..2].copy_from_slice(&[1, 128]);
        made(call(libc::SYS_perf_event_open, [pointer(attributes.as_ptr()), 0, -1, -1, 0]))
    }),
    refused("a key of the kernel's", |_| {
        let (kind, name, ring) = (text(c"user"), text(c"outrigger-hijacked"), libc::KEY_SPEC_PROCESS_KEYRING);
        call(libc::SYS_add_key, [kind, name, text(c"x"), 1, ring.into()]).map(drop)
    }),
    refused("ask for a key ring", |_| call(libc::SYS_keyctl, [0, libc::KEY_SPEC_SESSION_KEYRING.into(), 1]).map(drop)),
    refused("execute a shell", |_| {
        let words = [c"sh".as_ptr(), c"-c".as_ptr(), c":".as_ptr(), null()];
        let child = call(libc::SYS_fork, [])?;
        if child == 0 {
            let _ =
                call(libc::SYS_execve, [text(c"/bin/sh"), pointer(words.as_ptr()), pointer([null::<u8>()].as_ptr())]);
            // SAFETY: ends the new process.
            unsafe { libc::_exit(1) };
        }
        let mut status: c_int = 0;
        call(libc::SYS_wait4, [child, pointer(&raw mut status), 0, 0])?;
        if status == 0 { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) }
    }),
    refused("execute memory as a program", |_| {
        let file = call(libc::SYS_memfd_create, [text(c"x"), 0])?;
        // Nothing is in it: permission is asked first.
        let executed = call(libc::SYS_execveat, [file, text(c""), 0, 0, libc::AT_EMPTY_PATH.into()]);
        made(Ok(file))?;
        came_there(executed, &[libc::ENOEXEC, libc::EACCES])
    }),
    refused("fork", |_| new_process(libc::SYS_fork, 0)),
    refused("clone into new namespaces", |_| new_process(libc::SYS_clone, libc::CLONE_NEWNS)),
    refused("fork a hundred times", |_| (0..100).try_for_each(|_| new_process(libc::SYS_clone, 0))),
    refused("a process by clone3, as threads are made", |_| {
        let mut arguments = [0u64; 11];
        arguments[4] = u64::from(libc::SIGCHLD.unsigned_abs());
        let child = call(libc::SYS_clone3, [pointer(arguments.as_ptr()), 88])?;
        if child == 0 {
            // SAFETY: ends the new process, which has done nothing.
            unsafe { libc::_exit(0) };
        }
        call(libc::SYS_wait4, [child, 0, 0, 0]).map(drop)
    }),
    refused("memory to execute", |_| {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let address = call(libc::SYS_mmap, [0, 4096, protection.into(), flags.into(), -1, 0])?;
        call(libc::SYS_munmap, [address, 4096]).map(drop)
    }),
    refused("make memory executable", |_| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let address = call(libc::SYS_mmap, [0, 4096, libc::PROT_READ.into(), flags.into(), -1, 0])?;
        let result = call(libc::SYS_mprotect, [address, 4096, (libc::PROT_READ | libc::PROT_EXEC).into()]);
        call(libc::SYS_munmap, [address, 4096])?;
        result.map(drop)
    }),
    refused("a filter of its own", |_| {
        // SECCOMP_SET_MODE_FILTER of "allow".
        let program = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 }];
        let program = libc::sock_fprog { len: 1, filter: program.as_ptr().cast_mut() };
        call(libc::SYS_seccomp, [1, 0, pointer(&raw const program)]).map(drop)
    }),
    refused("type into the terminal of its caller", |_| {
        came_there(call(libc::SYS_ioctl, [2, libc::TIOCSTI.cast_signed(), pointer(c"x".as_ptr())]), &[libc::ENOTTY])
    }),
    refused("set the clock", |_| {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        call(libc::SYS_clock_gettime, [libc::CLOCK_REALTIME.into(), pointer(&raw mut now)])?;
        call(libc::SYS_clock_settime, [libc::CLOCK_REALTIME.into(), pointer(&raw const now)]).map(drop)
    }),
    refused("name the host", |_| {
        let mut name = [0u8; 65];
        // SAFETY: writes the name to the array.
        Errno::result(unsafe { libc::gethostname(name.as_mut_ptr().cast(), 65) })?;
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(0);
        call(libc::SYS_sethostname, [pointer(name.as_ptr()), length as c_long]).map(drop)
    }),
    refused("load a module", |_| {
        came_there(call(libc::SYS_init_module, [0, 0, pointer(null::<u8>())]), &[libc::ENOEXEC, libc::EFAULT])
    }),
    refused("run at real-time priority", |_| {
        let parameter = libc::sched_param { sched_priority: 1 };
        call(libc::SYS_sched_setscheduler, [0, libc::SCHED_FIFO.into(), pointer(&raw const parameter)])?;
        let parameter = libc::sched_param { sched_priority: 0 };
        call(libc::SYS_sched_setscheduler, [0, libc::SCHED_OTHER.into(), pointer(&raw const parameter)]).map(drop)
    }),
    refused("write beyond the image", |held| {
        let device = device(held)?;
        call(libc::SYS_pwrite64, [device, text(c"x"), 1, held.size])?;
        call(libc::SYS_ftruncate, [device, held.size]).map(drop)
    }),
    refused("make the image longer", |held| {
        let device = device(held)?;
        call(libc::SYS_ftruncate, [device, held.size + 512])?;
        call(libc::SYS_ftruncate, [device, held.size]).map(drop)
    }),
    refused("make the image shorter", |held| call(libc::SYS_ftruncate, [device(held)?, held.size]).map(drop)),
    refused("have the image grow by allocating", |held| {
        let device = device(held)?;
        call(libc::SYS_fallocate, [device, 0, held.size, 4096])?;
        call(libc::SYS_ftruncate, [device, held.size]).map(drop)
    }),
    refused("change the mode of the image", |held| call(libc::SYS_fchmod, [device(held)?, 0o600]).map(drop)),
    refused("find the image's directory", |held| {
        let name = format!("/proc/self/fd/{}", device(held)?);
        fs::read_link(Path::new(&name)).map(drop)
    }),
    // Of root it leaves this one.
    refused("have a capability", |_| {
        // Version 3 (capset(2)), CAP_CHOWN.
        let (header, sets) = ([0x2008_0522u32, 0], [1u32, 1, 0, 0, 0, 0]);
        call(libc::SYS_capset, [pointer(header.as_ptr()), pointer(sets.as_ptr())]).map(drop)
    }),
    // The last, since its owner has no rights outside of it.
    refused("a user namespace", |_| call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into()]).map(drop)),
    by_design("read and write the image", "it is the device's own", |held| {
        let mut byte = [0u8];
        call(libc::SYS_pread64, [device(held)?, pointer(byte.as_mut_ptr()), 1, 0]).map(drop)
    }),
    by_design("write a line to the log", "standard error is the VMM's; a line more is all that it is", |_| {
        call(libc::SYS_write, [2, text(c""), 0]).map(drop)
    }),
    by_design("have more memory", "the host's limits (a cgroup) are the user's to set", |_| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let address = call(libc::SYS_mmap, [0, 1 << 20, protection.into(), flags.into(), -1, 0])?;
        call(libc::SYS_munmap, [address, 1 << 20]).map(drop)
    }),
];

/// The number of a descriptor, for [`Held`].
#[must_use]
pub fn number(file: &impl AsRawFd) -> RawFd {
    file.as_raw_fd()
}
