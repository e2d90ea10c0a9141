//! A tap's queues as a successor of the process gets them: inherited, so that the interface stays, with its addresses, routes
//! and bridge port.
//!
//! The descriptors come from the predecessor, by way of the VMM, so what they are is found out first, in a way that cannot
//! wait for anybody. Until the predecessor is gone, nothing of the tap is changed.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::PoisonError;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{Tap, TapError, check_name, configure, ioctls, request, set_header_size};
use crate::inherited::character_device;

/// The device node of taps (Linux, `Documentation/admin-guide/devices.txt`: `/dev/net/tun`).
const TUN_DEVICE: (u32, u32) = (10, 200);

/// A queue's interface, as the kernel says.
struct Interface {
    name: Vec<u8>,
    flags: libc::c_int,
}

impl Interface {
    /// Of a tap's queue. None: it is something else.
    fn of(file: &File) -> Option<Self> {
        if character_device(file) != Some(TUN_DEVICE) {
            return None;
        }
        let mut answer = request("", 0);
        // SAFETY: writes an `ifreq`.
        unsafe { ioctls::get_interface(file.as_raw_fd(), &raw mut answer) }.ok()?;
        let name: Vec<u8> = answer.ifr_name.iter().map(|byte| byte.cast_unsigned()).collect();
        // SAFETY: the kernel has just set this member.
        let flags = unsafe { answer.ifr_ifru.ifru_flags };
        let name = CStr::from_bytes_until_nul(&name).ok()?.to_bytes().to_vec();
        Some(Self { name, flags: libc::c_int::from(flags.cast_unsigned()) })
    }

    fn has(&self, flag: libc::c_int) -> bool {
        self.flags & flag != 0
    }
}

impl Tap {
    /// The tap `name`, whose queues a predecessor had open. It is used from [`Tap::take_over`] on.
    pub fn adopt(name: &str, kept: Vec<OwnedFd>, queues: u16) -> Result<Self, TapError> {
        check_name(name)?;
        if kept.len() != usize::from(queues) {
            return Err(TapError::KeptCount { found: kept.len(), queues });
        }
        let files: Vec<File> = kept.into_iter().map(File::from).collect();
        for (number, file) in (1..).zip(&files) {
            let other = |what| Err(TapError::Kept { number, what });
            let Some(interface) = Interface::of(file) else { return other("not a tap's") };
            if interface.name != name.as_bytes() {
                return other("another interface's");
            }
            if ![libc::IFF_TAP, libc::IFF_NO_PI, libc::IFF_VNET_HDR].iter().all(|&flag| interface.has(flag)) {
                return other("of another kind");
            }
        }
        Self::with(name, files, None, configure(name, None, false)?)
    }

    /// The predecessor is gone, if there was one.
    pub fn take_over(&self) -> io::Result<()> {
        let mut attached = 0;
        for file in &self.queues {
            // The predecessor may have changed it until now.
            fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let is_attached = Interface::of(file).is_some_and(|interface| !interface.has(libc::IFF_DETACH_QUEUE));
            attached += u16::from(is_attached);
        }
        set_header_size(&self.queues[0])?;
        // The first so many, unless the predecessor was somebody's puppet: then the kernel refuses to attach one.
        *self.attached.lock().unwrap_or_else(PoisonError::into_inner) = attached;
        Ok(())
    }

    /// For a successor.
    pub fn kept(&self) -> io::Result<Vec<OwnedFd>> {
        self.queues.iter().map(|queue| queue.try_clone().map(OwnedFd::from)).collect()
    }
}
