//! The tap behind a network card: opened or created, configured, and its queues attached as the guest wants them.
//!
//! A tap that is created here is not persistent: the kernel takes it away when the last descriptor closes, however the
//! process ends.

mod kept;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of `struct virtio_net_hdr_v1`, which precedes every packet.
pub const HEADER_SIZE: usize = 12;
/// The most bytes a packet can have, its header included: an IP packet of 64 KiB within Ethernet with a VLAN tag.
pub const MAX_PACKET: usize = HEADER_SIZE + 14 + 4 + 65535;

/// How long a process that is about to end may have the tap at start-up.
const BUSY_PATIENCE: Duration = Duration::from_millis(300);
const RETRY: Duration = Duration::from_millis(2);

const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// Offloads that a driver can take; `TUN_F_*`.
pub mod offload {
    /// Packets without a checksum.
    pub const CSUM: u32 = 0x01;
    /// Large TCP over IPv4.
    pub const TSO4: u32 = 0x02;
    /// Large TCP over IPv6.
    pub const TSO6: u32 = 0x04;
    /// Large TCP with congestion marks.
    pub const ECN: u32 = 0x08;
    /// Large UDP. The kernel knows it only for IPv4 and IPv6 at once.
    pub const USO: u32 = super::TUN_F_USO4 | super::TUN_F_USO6;
}

/// A tap that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// Not a name that an interface can have.
    #[error("not an interface name: 1 to 15 characters of ASCII, no spaces, '/', ':' or '%'")]
    Name,
    /// Another process uses it.
    #[error("in use by another process")]
    Busy,
    /// It is there and is not a tap, or one without the queues asked for.
    #[error("exists and is not a tap with {queues} queue(s)")]
    NotATap {
        /// How many were asked for.
        queues: u16,
    },
    /// Creating or opening a tap takes a privilege.
    #[error("permission denied (creating or opening a tap takes CAP_NET_ADMIN)")]
    Permission,
    /// A descriptor of a predecessor's is no queue of this tap.
    #[error("descriptor {number} of those that were kept for it is {what}")]
    Kept {
        /// Which one, from 1.
        number: usize,
        /// Its kind, in words.
        what: &'static str,
    },
    /// Too few, or too many, were inherited.
    #[error("{found} descriptor(s) were kept for it, for {queues} queue(s)")]
    KeptCount {
        /// How many there are.
        found: usize,
        /// How many there should be.
        queues: u16,
    },
    /// The host refuses.
    #[error("{what}: {source}")]
    Io {
        /// The operation that failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl TapError {
    fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { what, source: source.into() }
    }
}

mod ioctls {
    use libc::{c_int, c_uint, ifreq};
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, ifreq);
    nix::ioctl_read_bad!(get_interface, libc::TUNGETIFF, ifreq);
    nix::ioctl_write_ptr_bad!(set_queue, libc::TUNSETQUEUE, ifreq);
    nix::ioctl_write_ptr_bad!(set_header_size, libc::TUNSETVNETHDRSZ, c_int);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, ifreq);
    nix::ioctl_read_bad!(get_mtu, libc::SIOCGIFMTU, ifreq);
    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, ifreq);
    const _: () = assert!(size_of::<c_uint>() == 4);
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<File>,
    /// How many queues are attached, from the first.
    attached: Mutex<u16>,
    /// Written when a queue was attached, by queue.
    wakes: Vec<EventFd>,
    /// Whether the kernel knows large UDP; none: to find out would change what a predecessor is at.
    pub has_uso: Option<bool>,
    /// Largest packet without headers, in bytes.
    pub mtu: u16,
}

impl Tap {
    /// Opens the tap `name`, or creates it (and then switches it on).
    pub fn open(name: &str, queues: u16, mtu: Option<u16>) -> Result<Self, TapError> {
        check_name(name)?;
        let existed = Path::new("/sys/class/net").join(name).exists();
        let files = attach_queues(name, queues)?;
        let first = &files[0];
        set_header_size(first).map_err(TapError::io("cannot set the header's size"))?;
        let basic = offload::CSUM | offload::TSO4 | offload::TSO6 | offload::ECN;
        let has_uso = set_offload(first, basic | offload::USO).is_ok();
        set_offload(first, 0).map_err(TapError::io("cannot set offloads"))?;
        let mtu = configure(name, mtu, !existed)?;
        let tap = Self::with(name, files, Some(has_uso), mtu)?;
        tap.attach(1).map_err(TapError::io("cannot detach queues"))?;
        Ok(tap)
    }

    /// With all queues attached.
    fn with(name: &str, queues: Vec<File>, has_uso: Option<bool>, mtu: u16) -> Result<Self, TapError> {
        let wakes = queues.iter().map(|_| EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK));
        let wakes = wakes.collect::<io::Result<_>>().map_err(TapError::io("cannot have an eventfd"))?;
        let attached = Mutex::new(u16::try_from(queues.len()).unwrap_or(u16::MAX));
        Ok(Self { name: name.into(), queues, attached, wakes, has_uso, mtu })
    }

    /// Interface name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A queue's descriptor: one packet per read or write, non-blocking.
    pub fn queue(&self, index: u16) -> BorrowedFd<'_> {
        self.queues[usize::from(index)].as_fd()
    }

    /// Becomes readable when a queue was attached.
    pub fn wake(&self, index: u16) -> &EventFd {
        &self.wakes[usize::from(index)]
    }

    /// Attaches the first `pairs` queues and detaches the others: the kernel spreads packets over those attached.
    pub fn attach(&self, pairs: u16) -> nix::Result<()> {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        while *attached < pairs {
            self.set_queue(*attached, libc::IFF_ATTACH_QUEUE)?;
            // Fails only when it is readable anyway.
            let _ = self.wake(*attached).write(1);
            *attached += 1;
        }
        while *attached > pairs {
            self.set_queue(*attached - 1, libc::IFF_DETACH_QUEUE)?;
            *attached -= 1;
        }
        Ok(())
    }

    fn set_queue(&self, index: u16, flag: libc::c_int) -> nix::Result<()> {
        let request = request("", flag);
        // SAFETY: reads an `ifreq`.
        unsafe { ioctls::set_queue(self.queue(index).as_raw_fd(), &raw const request) }.map(drop)
    }

    /// Tells the kernel what the driver can take (`offload`).
    pub fn set_offload(&self, flags: u32) -> nix::Result<()> {
        set_offload(&self.queues[0], flags)
    }

    /// Throws away what has come in for a driver with other abilities.
    pub fn discard_input(&self) {
        const LIMIT: usize = 4096;
        let mut byte = [0; HEADER_SIZE];
        for file in &self.queues {
            let discard = || nix::unistd::read(file, &mut byte).is_ok();
            std::iter::repeat_with(discard).take(LIMIT).take_while(|&more| more).count();
        }
    }
}

fn check_name(name: &str) -> Result<(), TapError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len()) && !matches!(name, "." | "..");
    let is_bad = |byte| byte == b'/' || byte == b':' || byte <= b' ' || byte >= 0x7f || byte == b'%';
    if !valid || name.bytes().any(is_bad) { Err(TapError::Name) } else { Ok(()) }
}

/// Waits for a process that is about to end, and has the tap until then.
fn attach_queues(name: &str, queues: u16) -> Result<Vec<File>, TapError> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        match try_to_attach(name, queues) {
            Err(TapError::Busy) if Instant::now() < deadline => sleep(RETRY),
            result => return result,
        }
    }
}

fn try_to_attach(name: &str, queues: u16) -> Result<Vec<File>, TapError> {
    let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    match (0..queues).map(|_| attach_queue(name, multi)).collect() {
        // A tap made for many queues cannot be opened as one with a single queue.
        Err(TapError::NotATap { .. }) if queues == 1 => Ok(vec![attach_queue(name, libc::IFF_MULTI_QUEUE)?]),
        Err(TapError::NotATap { .. }) => Err(TapError::NotATap { queues }),
        other => other,
    }
}

fn attach_queue(name: &str, multi: libc::c_int) -> Result<File, TapError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = options.open("/dev/net/tun").map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => TapError::Permission,
        _ => TapError::Io { what: "cannot open /dev/net/tun", source: error },
    })?;
    let request = request(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi);
    // SAFETY: reads an `ifreq`.
    match unsafe { ioctls::set_interface(file.as_raw_fd(), &raw const request) } {
        Ok(_) => Ok(file),
        Err(Errno::EBUSY) => Err(TapError::Busy),
        Err(Errno::EPERM | Errno::EACCES) => Err(TapError::Permission),
        Err(Errno::EINVAL) => Err(TapError::NotATap { queues: 1 }),
        Err(errno) => Err(TapError::Io { what: "cannot attach to it", source: errno.into() }),
    }
}

fn set_header_size(file: &File) -> nix::Result<()> {
    let header_size = libc::c_int::try_from(HEADER_SIZE).unwrap_or(0);
    // SAFETY: reads an integer.
    unsafe { ioctls::set_header_size(file.as_raw_fd(), &raw const header_size) }.map(drop)
}

fn set_offload(file: &File, flags: u32) -> nix::Result<()> {
    // SAFETY: takes an integer.
    unsafe { ioctls::set_offload(file.as_raw_fd(), flags.cast_signed()) }.map(drop)
}

/// Sets the MTU if one is wanted, and switches the interface on if it is ours; returns the MTU.
fn configure(name: &str, mtu: Option<u16>, up: bool) -> Result<u16, TapError> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    let socket = socket.map_err(TapError::io("cannot have a socket"))?;
    let socket = socket.as_raw_fd();
    let mut request = request(name, 0);
    if let Some(mtu) = mtu {
        request.ifr_ifru.ifru_mtu = mtu.into();
        // SAFETY: reads an `ifreq`.
        unsafe { ioctls::set_mtu(socket, &raw const request) }.map_err(TapError::io("cannot set its MTU"))?;
    }
    // SAFETY: writes an `ifreq`.
    unsafe { ioctls::get_mtu(socket, &raw mut request) }.map_err(TapError::io("cannot read its MTU"))?;
    // SAFETY: the kernel has just set this member.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    if up {
        // SAFETY: writes an `ifreq`.
        unsafe { ioctls::get_flags(socket, &raw mut request) }.map_err(TapError::io("cannot read its flags"))?;
        // SAFETY: the kernel has just set this member.
        unsafe { request.ifr_ifru.ifru_flags |= short(libc::IFF_UP) };
        // SAFETY: reads an `ifreq`.
        unsafe { ioctls::set_flags(socket, &raw const request) }.map_err(TapError::io("cannot switch it on"))?;
    }
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// Interface flags as the kernel passes them: sixteen bits, whatever the sign C gives them.
fn short(flags: libc::c_int) -> libc::c_short {
    let [a, b, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([a, b])
}

fn request(name: &str, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: an `ifreq` is integers and arrays of them, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = short(flags);
    request
}
