//! The path on which KVM itself asks the device process for a register: a guest access becomes a command on a socket of
//! the server's, and no user space of ours runs. [`Ioregionfd`] gives it to KVM. Where KVM cannot ask, [`Channel`] does as
//! its stand-in, from the vCPU's exit: the same commands on the same socket, so that the process does not know the
//! difference. Where KVM can, an access comes to the channel only if KVM has passed it on.
//!
//! An ioregionfd that breaks (the device has hung up, answered wrongly, or not in time) is the device's death: the [`Link`]
//! fails.
//!
//! Order: an access is over when the device has answered it, so nothing later overtakes it, and it overtakes nothing,
//! since a device with an ioregionfd has its writes by message answered, too. The exception is a sub-region whose server
//! wants its writes unanswered (`KVM_IOREGION_POSTED_WRITES`): as with an ioeventfd, such a write may arrive after later
//! accesses on other paths. On one socket all stays in order.
//!
//! Overlap: KVM takes what no memory slot and no ioeventfd takes before it looks for an ioregionfd, so those may lie
//! within one. The MSI-X table may not, since the VMM answers it after KVM has passed it on ([`super::plan`]).
//!
//! The interface is that of the patches in `protocol/kvm-ioregionfd`, for Linux 6.12; no released kernel has it. Source:
//! "MMIO/PIO dispatch file descriptors (ioregionfd) design discussion", kvm mailing list, 2020-11-25, "KVM_SET_IOREGION".

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_bindings::KVMIO;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::fstat;
use nix::sys::time::{TimeVal, TimeValLike};
use outrigger_protocol::foreign::ForeignFd;
use outrigger_protocol::ioregionfd::{AccessError, Requester, Size, SocketError, SocketType};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::death::Cause;
use super::link::Link;
use super::plan::AskedBy;
use crate::config::{AllowedPaths, PathName};
use crate::machine::vm::Vm;

/// For `KVM_CHECK_EXTENSION`: how many regions a VM can have.
const KVM_CAP_IOREGIONFD: u64 = 10_000;
const KVM_IOREGION_PIO: u32 = 1 << 0;
const KVM_IOREGION_POSTED_WRITES: u32 = 1 << 1;
/// In place of a descriptor: take the region away.
const NO_FD: RawFd = -1;
/// Beyond what any processor addresses (52 bits).
const NOWHERE: u64 = 1 << 62;

/// `struct kvm_ioregion`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct KvmIoregion {
    guest_paddr: u64,
    memory_size: u64,
    user_data: u64,
    fd: RawFd,
    flags: u32,
    pad: [u8; 32],
}

const _: () = assert!(size_of::<KvmIoregion>() == 64, "the size is part of the ioctl's number");

ioctl_iow_nr!(KVM_SET_IOREGION, KVMIO, 0x4f, KvmIoregion);

/// The side that asks device processes on this host.
pub(super) fn asked_by(vm: &Vm, allowed: AllowedPaths) -> AskedBy {
    let has_it = vm.fd().check_extension_raw(KVM_CAP_IOREGIONFD) > 0;
    if has_it && allowed.allow(PathName::Ioregionfd) { AskedBy::Kvm } else { AskedBy::Vmm }
}

/// Whether KVM no longer uses a socket that it was given: the device has hung up, answered wrongly, or too late.
fn given_up(vm: &Vm, fd: &ForeignFd) -> bool {
    // KVM takes no broken socket for a region, so it is asked to, where no guest access goes.
    let region = KvmIoregion {
        guest_paddr: NOWHERE,
        memory_size: 1,
        user_data: 0,
        fd: fd.lend().as_raw_fd(),
        flags: 0,
        pad: [0; 32],
    };
    match set(vm, &region) {
        Ok(()) => {
            // Another vCPU's thread that asks the same may have taken it away already.
            let _ = set(vm, &KvmIoregion { fd: NO_FD, ..region });
            false
        }
        // Other answers (no more regions, no memory) say nothing about the socket.
        Err(error) => matches!(error.raw_os_error(), Some(nix::libc::EPIPE | nix::libc::ENOTCONN)),
    }
}

/// One sub-region at a guest address, taken away again when dropped.
pub(super) struct Ioregionfd {
    vm: Arc<Vm>,
    _fd: Arc<ForeignFd>,
    region: KvmIoregion,
}

/// Where, and what the server wants to be told with each access.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) address: u64,
    /// Bytes.
    pub(super) size: u64,
    pub(super) user_data: u64,
    /// Writes go unanswered.
    pub(super) posted: bool,
    /// The address is an I/O port.
    pub(super) io: bool,
}

impl Ioregionfd {
    pub(super) fn register(vm: &Arc<Vm>, fd: &Arc<ForeignFd>, window: Window) -> io::Result<Self> {
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let region = KvmIoregion {
            guest_paddr: window.address,
            memory_size: window.size,
            user_data: window.user_data,
            fd: fd.lend().as_raw_fd(),
            flags: flag(window.io, KVM_IOREGION_PIO) | flag(window.posted, KVM_IOREGION_POSTED_WRITES),
            pad: [0; 32],
        };
        set(vm, &region)?;
        Ok(Self { vm: vm.clone(), _fd: fd.clone(), region })
    }
}

impl Drop for Ioregionfd {
    fn drop(&mut self) {
        if let Err(error) = set(&self.vm, &KvmIoregion { fd: NO_FD, ..self.region }) {
            log::error!("taking away the ioregionfd at {:#x}: {error}", self.region.guest_paddr);
        }
    }
}

fn set(vm: &Vm, region: &KvmIoregion) -> io::Result<()> {
    // SAFETY: the structure is the one this ioctl takes, lives across the call, and the kernel only reads it.
    match unsafe { ioctl_with_ref(vm.fd(), KVM_SET_IOREGION(), region) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// All ioregionfds of one device.
pub(super) struct Ioregionfds {
    link: Arc<Link>,
    vm: Arc<Vm>,
    asked_by: AskedBy,
    /// By the number of the socket: the server may send one for several regions, each time as another descriptor.
    channels: Vec<((u64, u64), Arc<Channel>)>,
}

/// A socket, shared by the sub-regions that were offered with it.
pub(super) struct Channel {
    link: Arc<Link>,
    fd: Arc<ForeignFd>,
    requester: Arc<Requester>,
    /// KVM asks, and here is which.
    kvm: Option<Arc<Vm>>,
}

/// The outcome of an access.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked<T> {
    /// The device has answered.
    Answered(T),
    /// KVM asks the device, though not this time: the access began before the region was registered, or after it was
    /// taken away. It goes by message.
    PassedOnByKvm,
    /// The device cannot be asked any more.
    Lost,
}

impl Ioregionfds {
    pub(super) fn new(vm: &Arc<Vm>, link: &Arc<Link>, asked_by: AskedBy) -> Self {
        Self { link: link.clone(), vm: vm.clone(), asked_by, channels: Vec::new() }
    }

    /// The channel on a socket of the server's.
    ///
    /// # Errors
    /// It is no socket that the protocol can be spoken on.
    pub(super) fn channel(&mut self, fd: &Arc<ForeignFd>) -> Result<Arc<Channel>, SocketError> {
        // Before anything is asked that a file system could answer.
        SocketType::of(fd.lend())?;
        let stat = fstat(fd.lend()).map_err(|errno| SocketError::Io(errno.into()))?;
        let number = (stat.st_dev, stat.st_ino);
        if let Some((_, channel)) = self.channels.iter().find(|(other, _)| *other == number) {
            return Ok(channel.clone());
        }
        let deadline = self.link.deadline();
        let requester = Arc::new(Requester::new(fd.clone(), deadline)?);
        self.link.add_requester(&requester);
        let kvm = (self.asked_by == AskedBy::Kvm).then(|| self.vm.clone());
        if kvm.is_some() {
            // How long KVM waits. A server that kept a copy can change this, and so hang its own guest's vCPU, but not
            // the VMM, whose signals end the wait.
            let timeout = TimeVal::milliseconds(i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX));
            let io = |errno: nix::errno::Errno| SocketError::Io(errno.into());
            setsockopt(&fd.lend(), sockopt::ReceiveTimeout, &timeout).map_err(io)?;
            setsockopt(&fd.lend(), sockopt::SendTimeout, &timeout).map_err(io)?;
        }
        let channel = Arc::new(Channel { link: self.link.clone(), fd: fd.clone(), requester, kvm });
        self.channels.push((number, channel.clone()));
        Ok(channel)
    }
}

impl Channel {
    /// The socket to give to KVM.
    pub(super) fn fd(&self) -> &Arc<ForeignFd> {
        &self.fd
    }

    /// Whether KVM asks the device.
    pub(super) fn is_asked_by_kvm(&self) -> bool {
        self.kvm.is_some()
    }

    /// Reads a register.
    pub(super) fn read(&self, user_data: u64, offset: u64, size: Size) -> Asked<u64> {
        self.ask(|requester| requester.read(user_data, offset, size))
    }

    /// Writes a register.
    pub(super) fn write(&self, user_data: u64, offset: u64, size: Size, data: u64, posted: bool) -> Asked<()> {
        self.ask(|requester| requester.write(user_data, offset, size, data, posted))
    }

    fn ask<T>(&self, command: impl FnOnce(&Requester) -> Result<T, AccessError>) -> Asked<T> {
        if let Some(vm) = &self.kvm {
            return self.passed_on(vm);
        }
        let Some(_entered) = self.link.enter() else { return Asked::Lost };
        match command(&self.requester) {
            Ok(answer) => Asked::Answered(answer),
            Err(error) => {
                self.link.fail((&error).into());
                Asked::Lost
            }
        }
    }

    /// An access that came here although KVM asks the device.
    fn passed_on<T>(&self, vm: &Vm) -> Asked<T> {
        if self.requester.is_broken() {
            return Asked::Lost;
        }
        if given_up(vm, &self.fd) {
            self.link.fail(Cause::GivenUpByKvm);
            return Asked::Lost;
        }
        Asked::PassedOnByKvm
    }
}
