//! Which of the client's eventfds VFIO has, by interrupt type.
//!
//! VFIO takes eventfds for vectors as they come, but the number of vectors that are enabled is fixed when the first is: for
//! MSI always, for MSI-X on kernels before 6.5 (and later where the interrupt controller is old), which say so by
//! VFIO_IRQ_INFO_NORESIZE. To have more, all are disabled and enabled again. A message that the device sends in between is
//! lost, so every vector that was connected before is signalled once afterwards: its driver finds something to do, or not.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use log::error;
use nix::errno::Errno;
use outrigger_protocol::server::{Interrupts, Irq};
use outrigger_protocol::wire;

use super::device_file::DeviceFile;

/// VFIO's state of one interrupt type.
#[derive(Debug, Default)]
pub(super) struct IrqType {
    eventfds: Vec<Option<OwnedFd>>,
    /// How many vectors are enabled, from the first.
    enabled: u32,
    resizable: bool,
}

/// A change that VFIO is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Disable,
    /// The first ones so many, from none.
    Enable(u32),
    /// These, of those that are enabled, or as VFIO can have more.
    Set(Range<u32>),
    /// More than are enabled: all over again, with the first ones so many.
    EnableAgain(u32),
}

impl IrqType {
    pub(super) fn new(irq: &Irq) -> Self {
        let eventfds = (0..irq.count).map(|_| None).collect();
        Self { eventfds, enabled: 0, resizable: irq.flags & wire::IRQ_NORESIZE == 0 }
    }

    /// Connects and disconnects vectors from `start` on. After an error they are as they were.
    pub(super) fn connect(
        &mut self,
        file: &DeviceFile,
        index: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
        interrupts: Option<&Interrupts>,
    ) -> Result<(), Errno> {
        let places = start as usize..start as usize + eventfds.len();
        let mut own = Vec::with_capacity(eventfds.len());
        for eventfd in eventfds {
            let owned = eventfd.map(|fd| fd.try_clone_to_owned()).transpose();
            own.push(owned.map_err(|_| Errno::EMFILE)?);
        }
        let Some(now) = self.eventfds.get_mut(places.clone()) else { return Err(Errno::EINVAL) };
        let before: Vec<_> = now.iter_mut().zip(own).map(|(place, new)| std::mem::replace(place, new)).collect();
        let step = self.step(start, u32::try_from(eventfds.len()).map_err(|_| Errno::EINVAL)?);
        let done = self.take(file, index, &step);
        if let Err(errno) = done {
            self.eventfds.splice(places, before);
            if matches!(step, Step::EnableAgain(_)) && self.enabled == 0 {
                // The earlier connections are lost, unless this succeeds.
                let step = self.last_connected().map_or(Step::Nothing, Step::Enable);
                if let Err(errno) = self.take(file, index, &step) {
                    error!("interrupts of type {index} are lost: {}", errno.desc());
                }
            }
            return Err(errno);
        }
        if let (Step::EnableAgain(_), Some(interrupts)) = (&step, interrupts) {
            let changed = start..start.saturating_add(u32::try_from(eventfds.len()).unwrap_or(u32::MAX));
            let stay =
                (0..).zip(&self.eventfds).filter(|(vector, eventfd)| eventfd.is_some() && !changed.contains(vector));
            stay.for_each(|(vector, _)| interrupts.trigger(index, vector));
        }
        Ok(())
    }

    /// The vectors that are connected.
    pub(super) fn connected(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.eventfds).filter(|(_, eventfd)| eventfd.is_some()).map(|(vector, _)| vector)
    }

    /// Takes away what a predecessor has connected and this process has not. VFIO refuses what does not apply.
    pub(super) fn leave_nothing_else(&self, file: &DeviceFile, index: u32) {
        match self.last_connected() {
            None => _ = file.act_on_irqs(index, wire::IRQ_SET_ACTION_TRIGGER, 0, 0),
            Some(first) => {
                let none = vec![None; self.eventfds.len() - first as usize];
                if !none.is_empty() {
                    let _ = file.connect_irqs(index, wire::IRQ_SET_ACTION_TRIGGER, first, &none);
                }
            }
        }
    }

    /// Disconnects everything.
    pub(super) fn disconnect(&mut self, file: &DeviceFile, index: u32) {
        self.eventfds.fill_with(|| None);
        if self.enabled > 0
            && let Err(errno) = self.take(file, index, &Step::Disable)
        {
            error!("interrupts of type {index} cannot be disabled: {}", errno.desc());
        }
    }

    /// How many vectors must be enabled, if any.
    fn last_connected(&self) -> Option<u32> {
        let last = self.eventfds.iter().rposition(Option::is_some)?;
        u32::try_from(last + 1).ok()
    }

    /// The change that follows from `count` vectors from `start`, which are new.
    fn step(&self, start: u32, count: u32) -> Step {
        let changed = start..start + count;
        match self.last_connected() {
            None if self.enabled == 0 => Step::Nothing,
            None => Step::Disable,
            Some(needed) if self.enabled == 0 => Step::Enable(needed),
            Some(needed) if needed > self.enabled && !self.resizable => Step::EnableAgain(needed),
            // Beyond what is enabled nothing is connected, so nothing has changed.
            Some(_) if !self.resizable && changed.end > self.enabled => match changed.start < self.enabled {
                true => Step::Set(changed.start..self.enabled),
                false => Step::Nothing,
            },
            Some(_) => Step::Set(changed),
        }
    }

    fn take(&mut self, file: &DeviceFile, index: u32, step: &Step) -> Result<(), Errno> {
        let (first, end) = match step {
            Step::Nothing => return Ok(()),
            Step::Disable => {
                file.act_on_irqs(index, wire::IRQ_SET_ACTION_TRIGGER, 0, 0)?;
                self.enabled = 0;
                return Ok(());
            }
            Step::Enable(count) => (0, *count),
            Step::Set(range) => (range.start, range.end),
            Step::EnableAgain(count) => {
                self.take(file, index, &Step::Disable)?;
                (0, *count)
            }
        };
        let vectors = self.eventfds.get(first as usize..end as usize).ok_or(Errno::EINVAL)?;
        let vectors: Vec<_> = vectors.iter().map(|eventfd| eventfd.as_ref().map(AsFd::as_fd)).collect();
        file.connect_irqs(index, wire::IRQ_SET_ACTION_TRIGGER, first, &vectors)?;
        self.enabled = self.enabled.max(end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `connected` says which vectors have eventfds now.
    fn irq_type(connected: &[u8], enabled: u32, resizable: bool) -> IrqType {
        let eventfd = |&there: &u8| (there != 0).then(|| nix::sys::eventfd::EventFd::new().unwrap().into());
        IrqType { eventfds: connected.iter().map(eventfd).collect(), enabled, resizable }
    }

    #[test]
    fn the_first_vector_enables_as_many_as_are_needed() {
        assert_eq!(irq_type(&[0, 1, 0, 0], 0, false).step(1, 1), Step::Enable(2));
        assert_eq!(irq_type(&[1, 1, 1, 1], 0, true).step(0, 4), Step::Enable(4));
        assert_eq!(irq_type(&[0; 4], 0, false).step(0, 4), Step::Nothing);
        assert_eq!(irq_type(&[], 0, false).step(0, 0), Step::Nothing);
    }

    #[test]
    fn the_last_one_disables_the_type() {
        assert_eq!(irq_type(&[0; 4], 2, false).step(1, 1), Step::Disable);
        assert_eq!(irq_type(&[0; 4], 4, true).step(0, 4), Step::Disable);
    }

    #[test]
    fn more_than_are_enabled_are_enabled_all_over_again_where_vfio_cannot_add_any() {
        assert_eq!(irq_type(&[1, 0, 1, 0], 1, false).step(2, 1), Step::EnableAgain(3));
        assert_eq!(irq_type(&[1, 0, 1, 0], 1, true).step(2, 1), Step::Set(2..3));
        assert_eq!(irq_type(&[1, 0, 1, 0], 3, false).step(2, 1), Step::Set(2..3));
    }

    #[test]
    fn what_is_disconnected_beyond_the_enabled_ones_does_not_get_there() {
        assert_eq!(irq_type(&[1, 0, 0, 0], 2, false).step(1, 3), Step::Set(1..2));
        assert_eq!(irq_type(&[1, 0, 0, 0], 2, false).step(2, 2), Step::Nothing);
        assert_eq!(irq_type(&[1, 0, 0, 0], 2, false).step(1, 1), Step::Set(1..2));
        assert_eq!(irq_type(&[1, 0, 0, 0], 2, true).step(1, 3), Step::Set(1..4));
    }
}
