//! The path from KVM straight to the device process: a guest write signals the server's eventfd, and no user space of
//! ours runs. What it overtakes: earlier posted writes to the same device that are still on the socket. A doorbell only
//! says "look at the ring"; a server that looks at its queues whenever it starts them loses none.
//!
//! kvm-ioctls derives an ioeventfd's length from the type of its datamatch; here length and datamatch are the server's,
//! independent of each other, so the ioctl is made directly (Linux `Documentation/virt/kvm/api.rst`, 4.59
//! "KVM_IOEVENTFD").

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::kvm_ioeventfd_flag_nr_pio;
use kvm_bindings::{KVMIO, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign};
use outrigger_protocol::foreign::ForeignFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::plan::Doorbell;
use crate::machine::vm::Vm;

ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// One doorbell at a guest address, taken away again when dropped.
pub(super) struct Ioeventfd {
    vm: Arc<Vm>,
    fd: Arc<ForeignFd>,
    registration: kvm_ioeventfd,
}

/// A place in one of the guest's two address spaces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) address: u64,
    /// The address is an I/O port.
    pub(super) io: bool,
}

impl Ioeventfd {
    pub(super) fn register(vm: &Arc<Vm>, doorbell: &Doorbell, at: Address) -> io::Result<Self> {
        let flag = |set: bool, number: u32| u32::from(set) << number;
        let registration = kvm_ioeventfd {
            datamatch: doorbell.datamatch.unwrap_or(0),
            addr: at.address,
            len: u32::try_from(doorbell.size).map_err(io::Error::other)?,
            fd: doorbell.fd.lend().as_raw_fd(),
            flags: flag(doorbell.datamatch.is_some(), kvm_ioeventfd_flag_nr_datamatch)
                | flag(at.io, kvm_ioeventfd_flag_nr_pio),
            ..Default::default()
        };
        set(vm, &registration)?;
        Ok(Self { vm: vm.clone(), fd: doorbell.fd.clone(), registration })
    }
}

impl Drop for Ioeventfd {
    fn drop(&mut self) {
        let flags = self.registration.flags | 1 << kvm_ioeventfd_flag_nr_deassign;
        let registration = kvm_ioeventfd { flags, fd: self.fd.lend().as_raw_fd(), ..self.registration };
        if let Err(error) = set(&self.vm, &registration) {
            log::error!("taking away the ioeventfd at {:#x}: {error}", registration.addr);
        }
    }
}

fn set(vm: &Vm, registration: &kvm_ioeventfd) -> io::Result<()> {
    // SAFETY: the structure is the one this ioctl takes, lives across the call, and the kernel only reads it.
    match unsafe { ioctl_with_ref(vm.fd(), KVM_IOEVENTFD(), registration) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn a_doorbell_can_be_put_again_where_one_was_dropped() {
        let vm = Vm::new(1).unwrap();
        let raw = EventFd::new(0).unwrap().into_raw_fd();
        // SAFETY: ownership moves from the EventFd.
        let fd = Arc::new(ForeignFd::from(unsafe { OwnedFd::from_raw_fd(raw) }));
        let doorbell =
            |size, datamatch| Doorbell { offset: 0, size, datamatch, fd: fd.clone(), refusal: Default::default() };
        let at = Address { address: 0xc000_0000, io: false };
        for size in [0, 2, 4] {
            let first = Ioeventfd::register(&vm, &doorbell(size, None), at).unwrap();
            assert!(Ioeventfd::register(&vm, &doorbell(size, None), at).is_err(), "the place is taken");
            drop(first);
            Ioeventfd::register(&vm, &doorbell(size, None), at).unwrap();
        }
        Ioeventfd::register(&vm, &doorbell(2, Some(7)), Address { address: 0x1000, io: true }).unwrap();
    }
}
