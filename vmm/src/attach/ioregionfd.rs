//! The path on which KVM itself asks the device process for a register: a guest access becomes a command on a socket of
//! the server's, and no user space of ours runs. Here it is given to KVM; where KVM does not have it, [`stand_in`] asks.
//!
//! Order: an access is over when the device has answered it, so nothing later overtakes it, and it overtakes nothing,
//! since a device with an ioregionfd has its writes by message answered, too. The exception is a sub-region whose server
//! wants its writes unanswered (`KVM_IOREGION_POSTED_WRITES`): as with an ioeventfd, such a write may arrive after later
//! accesses on other paths. On one socket all stays in order.
//!
//! Overlap: KVM takes what no memory slot and no ioeventfd takes before it looks for an ioregionfd, so those may lie
//! within one. The MSI-X table may not, since the VMM answers it after KVM has passed it on ([`super::paths`]).
//!
//! The interface is that of the patches in `protocol/kvm-ioregionfd`, for Linux 6.12; no released kernel has it. Source:
//! "MMIO/PIO dispatch file descriptors (ioregionfd) design discussion", kvm mailing list, 2020-11-25, "KVM_SET_IOREGION".
//!
//! [`stand_in`]: super::stand_in

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use kvm_bindings::KVMIO;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::paths::AskedBy;
use crate::config::{AllowedPaths, PathName};
use crate::vm::Vm;

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

/// Who asks device processes on this host.
pub(super) fn asked_by(vm: &Vm, allowed: AllowedPaths) -> AskedBy {
    let has_it = vm.fd().check_extension_raw(KVM_CAP_IOREGIONFD) > 0;
    if has_it && allowed.allow(PathName::Ioregionfd) { AskedBy::Kvm } else { AskedBy::Vmm }
}

/// Whether KVM no longer uses a socket that it was given: the device has hung up, answered wrongly, or too late.
pub(super) fn given_up(vm: &Vm, fd: &OwnedFd) -> bool {
    // KVM takes no broken socket for a region, so it is asked to, where no guest access goes.
    let region =
        KvmIoregion { guest_paddr: NOWHERE, memory_size: 1, user_data: 0, fd: fd.as_raw_fd(), flags: 0, pad: [0; 32] };
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
    _fd: Arc<OwnedFd>,
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
    pub(super) fn register(vm: &Arc<Vm>, fd: &Arc<OwnedFd>, window: Window) -> io::Result<Self> {
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let region = KvmIoregion {
            guest_paddr: window.address,
            memory_size: window.size,
            user_data: window.user_data,
            fd: fd.as_raw_fd(),
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
