//! Client memory that goes away under the device.
//!
//! A mapping of the client's file is only as long as the client leaves the file: to touch a page behind its new end is
//! SIGBUS. That is the client's doing, so it costs the client its connection and the device nothing: the mapping is
//! replaced by zeros of our own, the access goes on there, and the connection is shut down. What the kernel does with
//! such a page for a device (io_uring, `readv`) fails with EFAULT, like any other bad address.
//!
//! The handler takes no lock and allocates nothing: it walks a list that only ever grows, whose entries are used again.
//! Any other SIGBUS goes to whoever handled it before.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::libc;

/// One mapping that may fault.
#[derive(Debug)]
struct Entry {
    /// Host addresses; `start` is zero while the entry is unused.
    start: AtomicUsize,
    end: AtomicUsize,
    protection: AtomicI32,
    /// The socket to shut down; -1: none any more.
    socket: AtomicI32,
    lost: AtomicBool,
    /// Set before the entry is in the list, and never again.
    next: AtomicPtr<Entry>,
}

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());
static UNUSED: Mutex<Vec<&'static Entry>> = Mutex::new(Vec::new());
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping of client memory whose faults are survived, while this is there. Dropped before the mapping is unmapped.
#[derive(Debug)]
pub(super) struct Guard {
    entry: &'static Entry,
}

impl Guard {
    /// For `length` bytes at `start`, mapped with `protection` (`PROT_*`), from the client behind `socket`.
    ///
    /// # Safety
    /// Nobody unmaps the range while this is there, nor while anybody touches it.
    pub(super) unsafe fn new(start: *mut u8, length: usize, protection: i32, socket: RawFd) -> io::Result<Self> {
        install()?;
        let unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let entry = unused.unwrap_or_else(|| {
            let entry: &'static Entry = Box::leak(Box::new(Entry {
                start: AtomicUsize::new(0),
                end: AtomicUsize::new(0),
                protection: AtomicI32::new(0),
                socket: AtomicI32::new(-1),
                lost: AtomicBool::new(false),
                next: AtomicPtr::new(std::ptr::null_mut()),
            }));
            let mut head = ENTRIES.load(Ordering::Acquire);
            loop {
                entry.next.store(head, Ordering::Relaxed);
                let own = std::ptr::from_ref(entry).cast_mut();
                match ENTRIES.compare_exchange(head, own, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break entry,
                    Err(now) => head = now,
                }
            }
        });
        entry.lost.store(false, Ordering::Relaxed);
        entry.protection.store(protection, Ordering::Relaxed);
        entry.socket.store(socket, Ordering::Relaxed);
        entry.end.store(start as usize + length, Ordering::Relaxed);
        entry.start.store(start as usize, Ordering::Release);
        Ok(Self { entry })
    }

    /// Whether memory was lost.
    pub(super) fn is_lost(&self) -> bool {
        self.entry.lost.load(Ordering::Relaxed)
    }

    /// The connection has ended: nothing is shut down any more.
    pub(super) fn detach(&self) {
        self.entry.socket.store(-1, Ordering::SeqCst);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.entry.start.store(0, Ordering::Release);
        self.entry.socket.store(-1, Ordering::SeqCst);
        UNUSED.lock().unwrap_or_else(PoisonError::into_inner).push(self.entry);
    }
}

fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with no new action this only fills in the present one.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in by the successful call.
    let _ = BEFORE.set(unsafe { before.assume_init() });
    // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what is safe in one.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure, in which SIGBUS has an address.
    let (address, from_kernel) = unsafe { ((*info).si_addr() as usize, (*info).si_code > 0) };
    // SAFETY: the thread's own errno.
    let errno = unsafe { *libc::__errno_location() };
    let survived = from_kernel && replace(address);
    // SAFETY: as above. What was interrupted may be about to look at it.
    unsafe { *libc::__errno_location() = errno };
    if !survived {
        pass_on(signal, info, context);
    }
}

/// Puts zeros where the mapping was that this address is in; false: it is in none.
fn replace(address: usize) -> bool {
    let mut next = ENTRIES.load(Ordering::Acquire);
    // SAFETY: entries are never freed.
    while let Some(entry) = unsafe { next.as_ref() } {
        let (start, end) = (entry.start.load(Ordering::Acquire), entry.end.load(Ordering::Relaxed));
        if start != 0 && (start..end).contains(&address) {
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let protection = entry.protection.load(Ordering::Relaxed);
            // SAFETY: the range is a mapping of the client's, which stays while somebody touches it, as this thread
            // does; nobody has references into it. All of it at once, for a mapping that is replaced page by page would
            // need as many of the kernel's structures as it has pages.
            let mapped = unsafe { libc::mmap(start as *mut libc::c_void, end - start, protection, flags, -1, 0) };
            if mapped == libc::MAP_FAILED {
                return false;
            }
            entry.lost.store(true, Ordering::Relaxed);
            let socket = entry.socket.load(Ordering::SeqCst);
            if socket >= 0 {
                // SAFETY: a system call on a number.
                unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
            }
            return true;
        }
        next = entry.next.load(Ordering::Relaxed);
    }
    false
}

/// The signal's effect without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    match BEFORE.get() {
        Some(before) if before.sa_sigaction == libc::SIG_IGN => {}
        Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: a handler that was installed with SA_SIGINFO has this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(before.sa_sigaction) };
            handler(signal, info, context);
        }
        _ => {
            // SAFETY: the default action needs no handler. The access is tried again, and ends the process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}
