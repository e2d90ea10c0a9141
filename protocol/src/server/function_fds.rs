//! The ioregionfd of a [`super::Function`]: all of its BARs on one descriptor, so that accesses stay in order.

use std::cell::OnceCell;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::device::{IoFd, IoFdKind};
use super::function::{Registers, Shared};
use crate::ioregionfd::{Endpoint, Handler, Requester, Size, SocketType};
use crate::pci::BAR5_REGION;

/// How long accesses that are under way may take to be done when the function stops. Less than a client waits for an answer.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// The ioregionfd offered to a client.
#[derive(Debug, Default)]
pub(super) struct Offered {
    /// Where writes are posted: BAR and range, sorted.
    doorbells: Vec<(u32, Range<u64>)>,
    /// This client's, once it has asked. None: the system refused one, and accesses come by message.
    endpoint: OnceCell<Option<Endpoint>>,
}

impl Offered {
    pub fn add_doorbell(&mut self, bar: u32, range: Range<u64>) {
        let overlap = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        assert!(!self.doorbells.iter().any(|(other, at)| *other == bar && overlap(at)), "doorbells overlap");
        self.doorbells.push((bar, range));
        self.doorbells.sort_by_key(|(bar, range)| (*bar, range.start));
    }

    /// The sub-regions of a BAR, where the BARs are of these sizes: doorbells, and what is between them.
    pub fn io_fds<R: Registers>(&self, bar: u32, sizes: Sizes, shared: &Arc<Mutex<Shared<R>>>) -> Vec<IoFd<'_>> {
        let endpoint = self.endpoint.get_or_init(|| {
            let handler = Bars { sizes, shared: Arc::clone(shared) };
            let started = Endpoint::start("registers", SocketType::Seqpacket, handler);
            started.inspect_err(|error| log::warn!("no ioregionfd for registers: {error}")).ok()
        });
        let (Some(endpoint), Some(&size)) = (endpoint, sizes.get(bar as usize)) else { return Vec::new() };
        self.parts(bar, size)
            .map(|(range, posted_writes)| IoFd {
                offset: range.start,
                size: range.end - range.start,
                kind: IoFdKind::Ioregionfd { user_data: u64::from(bar) << BAR_SHIFT | range.start, posted_writes },
                pio: false,
                fd: endpoint.as_fd(),
            })
            .collect()
    }

    /// The parts of a BAR of `size`, in order, and whether writes to them are posted.
    fn parts(&self, bar: u32, size: u64) -> impl Iterator<Item = (Range<u64>, bool)> {
        let here = self.doorbells.iter().filter(move |doorbell| doorbell.0 == bar).map(|(_, range)| range.clone());
        let mut at = 0;
        here.chain(std::iter::once(size..size)).flat_map(move |doorbell| {
            let before = at..doorbell.start;
            at = doorbell.end;
            [(before, false), (doorbell, true)].into_iter().filter(|(range, _)| !range.is_empty())
        })
    }

    /// Waits until all that the client has sent on them is done. It sends nothing meanwhile.
    ///
    /// # Errors
    /// The client takes the answers of others, or the thread has ended.
    pub fn settle(&self) -> Result<(), Errno> {
        let Some(Some(endpoint)) = self.endpoint.get() else { return Ok(()) };
        let fd = endpoint.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        let requester = Requester::new(Arc::new(fd.into()), SETTLE_TIME).map_err(|_| Errno::EIO)?;
        // There is no such BAR. The answer comes after all that was asked before.
        requester.read(u64::MAX, 0, Size::One).map(drop).map_err(|_| Errno::EIO)
    }

    /// Ends what the client has been given. No access is under way after that.
    pub fn withdraw(&mut self) {
        self.endpoint.take();
    }
}

/// The sizes of the BARs in bytes, less than 4 GiB.
pub(super) type Sizes = [u64; BAR5_REGION as usize + 1];

/// `user_data`: the BAR, and below it where in the BAR the sub-region starts.
const BAR_SHIFT: u32 = 32;

/// Accesses to the registers from the thread of the ioregionfd.
struct Bars<R> {
    sizes: Sizes,
    shared: Arc<Mutex<Shared<R>>>,
}

impl<R: Registers> Bars<R> {
    /// Does `access` at an offset of a BAR, if it is within it.
    fn access(&self, user_data: u64, offset: u64, size: Size, access: impl FnOnce(&mut Shared<R>, u32, usize)) {
        let (bar, start) = (user_data >> BAR_SHIFT, user_data & u64::from(u32::MAX));
        let bar_size = usize::try_from(bar).ok().and_then(|bar| self.sizes.get(bar)).copied().unwrap_or(0);
        let Some(at) = start.checked_add(offset) else { return };
        if at.checked_add(size.bytes() as u64).is_none_or(|end| end > bar_size) {
            return;
        }
        if let (Ok(bar), Ok(at)) = (bar.try_into(), at.try_into()) {
            access(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner), bar, at);
        }
    }
}

impl<R: Registers> Handler for Bars<R> {
    fn read(&mut self, user_data: u64, offset: u64, size: Size) -> u64 {
        let mut data = [0; 8];
        self.access(user_data, offset, size, |Shared { registers, .. }, bar, at| {
            registers.read(bar, at, &mut data[..size.bytes()]);
        });
        u64::from_le_bytes(data)
    }

    fn write(&mut self, user_data: u64, offset: u64, size: Size, data: u64) {
        self.access(user_data, offset, size, |Shared { registers, bus }, bar, at| {
            registers.write(bar, at, &data.to_le_bytes()[..size.bytes()], bus);
        });
    }
}
