//! An ioregionfd as the VMM sees it. Where KVM cannot ask the device process, this does, from the vCPU's exit: the same
//! commands on the same socket, so that the process does not know the difference. Where KVM can, an access comes here
//! only if KVM has passed it on.
//!
//! An ioregionfd that breaks (the device has hung up, answered wrongly, or not in time) is the device's death:
//! the [`Link`] fails.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::fstat;
use nix::sys::time::{TimeVal, TimeValLike};
use outrigger_protocol::client::Options;
use outrigger_protocol::ioregionfd::{AccessError, Requester, Size, SocketError};

use super::ioregionfd::given_up;
use super::link::{Cause, Link};
use super::paths::AskedBy;
use crate::vm::Vm;

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
    fd: Arc<OwnedFd>,
    requester: Arc<Requester>,
    /// KVM asks, and here is which.
    kvm: Option<Arc<Vm>>,
}

/// The device cannot be asked any more.
#[derive(Debug)]
pub(super) struct Gone;

impl Ioregionfds {
    pub(super) fn new(vm: &Arc<Vm>, link: &Arc<Link>, asked_by: AskedBy) -> Self {
        Self { link: link.clone(), vm: vm.clone(), asked_by, channels: Vec::new() }
    }

    /// The channel on a socket of the server's.
    ///
    /// # Errors
    /// It is no socket that the protocol can be spoken on.
    pub(super) fn channel(&mut self, fd: &Arc<OwnedFd>) -> Result<Arc<Channel>, SocketError> {
        let stat = fstat(fd.as_fd()).map_err(|errno| SocketError::Io(errno.into()))?;
        let number = (stat.st_dev, stat.st_ino);
        if let Some((_, channel)) = self.channels.iter().find(|(other, _)| *other == number) {
            return Ok(channel.clone());
        }
        let deadline = Options::default().deadline;
        let requester = Arc::new(Requester::new(fd.clone(), deadline)?);
        self.link.add_requester(&requester);
        let kvm = (self.asked_by == AskedBy::Kvm).then(|| self.vm.clone());
        if kvm.is_some() {
            // How long KVM waits. A server that kept a copy can change this, and so hang its own guest's vCPU, but not
            // the VMM, whose signals end the wait.
            let timeout = TimeVal::milliseconds(i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX));
            let io = |errno: nix::errno::Errno| SocketError::Io(errno.into());
            setsockopt(fd, sockopt::ReceiveTimeout, &timeout).map_err(io)?;
            setsockopt(fd, sockopt::SendTimeout, &timeout).map_err(io)?;
        }
        let channel = Arc::new(Channel { link: self.link.clone(), fd: fd.clone(), requester, kvm });
        self.channels.push((number, channel.clone()));
        Ok(channel)
    }
}

impl Channel {
    /// What to give to KVM.
    pub(super) fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Whether KVM asks the device.
    pub(super) fn is_in_kvm(&self) -> bool {
        self.kvm.is_some()
    }

    /// Reads a register; `None`: this access is not for this path.
    pub(super) fn read(&self, user_data: u64, offset: u64, size: Size) -> Result<Option<u64>, Gone> {
        if self.passed_on_by_kvm()? {
            return Ok(None);
        }
        let answer = self.requester.read(user_data, offset, size);
        answer.map(Some).map_err(|error| self.broken(&error))
    }

    /// Writes a register; false: this access is not for this path.
    pub(super) fn write(&self, user_data: u64, offset: u64, size: Size, data: u64, posted: bool) -> Result<bool, Gone> {
        if self.passed_on_by_kvm()? {
            return Ok(false);
        }
        let answer = self.requester.write(user_data, offset, size, data, posted);
        answer.map(|()| true).map_err(|error| self.broken(&error))
    }

    /// Whether KVM asks the device, though not this time: the access began before the region was registered, or after it
    /// was taken away.
    fn passed_on_by_kvm(&self) -> Result<bool, Gone> {
        let Some(vm) = &self.kvm else { return Ok(false) };
        if self.requester.is_broken() {
            return Err(Gone);
        }
        if given_up(vm, &self.fd) {
            self.link.fail(Cause::GivenUpByKvm);
            return Err(Gone);
        }
        Ok(true)
    }

    fn broken(&self, error: &AccessError) -> Gone {
        self.link.fail(error.into());
        Gone
    }
}
