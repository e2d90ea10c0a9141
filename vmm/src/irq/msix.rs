//! MSI-X: the vector table and the pending bit array, and the only place where masks and pending bits live.
//! (PCI Local Bus 3.0, section 6.8.2, "MSI-X Capability and Table Structure".)

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::vector::Vector;
use super::{IrqError, Message, Routes};
use crate::machine::vm::Vm;

/// Bytes of a table entry.
pub const ENTRY_SIZE: u64 = 16;
/// Vector control, bit 0: masked.
const MASKED: u32 = 1;

/// A function's MSI-X vectors. They start masked, the function disabled.
#[derive(Debug)]
pub struct Msix {
    routes: Arc<Routes>,
    vectors: Vec<Vector>,
    /// The table as the guest wrote it.
    entries: Vec<[u32; 4]>,
    enabled: bool,
    function_masked: bool,
}

impl Msix {
    /// `count` vectors.
    ///
    /// # Errors
    /// If the system has no eventfds left.
    pub fn new(vm: &Arc<Vm>, routes: Arc<Routes>, count: u16) -> Result<Self, IrqError> {
        let vectors = (0..count).map(|_| Vector::new(vm.clone())).collect::<Result<Vec<_>, _>>()?;
        let entries = vec![[0, 0, 0, MASKED]; count.into()];
        Ok(Self { routes, vectors, entries, enabled: false, function_masked: false })
    }

    /// Disconnects every vector from KVM, whatever the guest set up. Signals stay in the eventfds.
    ///
    /// # Errors
    /// If KVM refuses one; the others are disconnected all the same.
    pub fn disconnect(&mut self) -> Result<(), IrqError> {
        self.vectors.iter_mut().map(Vector::disconnect).fold(Ok(()), Result::and)
    }

    /// Puts new eventfds in place of all: what has the old ones interrupts nobody any more.
    ///
    /// # Errors
    /// If there are none left, or KVM refuses.
    pub fn renew(&mut self) -> Result<(), IrqError> {
        self.vectors.iter_mut().try_for_each(Vector::renew)
    }

    /// The eventfds that the device process signals, by vector.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.vectors.iter().map(Vector::fd)
    }

    /// Enable and function mask of the capability's message control register.
    ///
    /// # Errors
    /// If KVM refuses; the vector concerned then stays as it was.
    pub fn set_control(&mut self, enabled: bool, function_masked: bool) -> Result<(), IrqError> {
        let disabled_now = self.enabled && !enabled;
        self.enabled = enabled;
        self.function_masked = function_masked;
        if disabled_now {
            return self.vectors.iter_mut().try_for_each(Vector::release);
        }
        (0..self.vectors.len()).try_for_each(|index| self.update(index))
    }

    /// Back to the state after power-on.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn reset(&mut self) -> Result<(), IrqError> {
        self.entries.fill([0, 0, 0, MASKED]);
        self.set_control(false, false)
    }

    /// Reads the table; `offset` is from its start. Beyond its end there are zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| {
            let (index, byte) = (usize::try_from(at / ENTRY_SIZE).ok()?, (at % ENTRY_SIZE) as usize);
            let word = self.entries.get(index)?[byte / 4];
            Some(word.to_le_bytes()[byte % 4])
        });
    }

    /// Writes the table: whole aligned double words, as the specification asks of software. Anything else vanishes.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Result<(), IrqError> {
        if !offset.is_multiple_of(4) || !data.len().is_multiple_of(4) {
            return Ok(());
        }
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let word = u32::from_le_bytes(word.try_into().expect("chunks of four bytes"));
            let (index, field) = ((at / ENTRY_SIZE) as usize, (at % ENTRY_SIZE / 4) as usize);
            let Some(entry) = self.entries.get_mut(index) else { return Ok(()) };
            entry[field] = if field == 3 { word & MASKED } else { word };
            self.update(index)?;
        }
        Ok(())
    }

    /// Reads the pending bit array; `offset` is from its start. It cannot be written.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| {
            let first = usize::try_from(at).ok()?.checked_mul(8)?;
            let vectors = self.vectors.get(first..)?.iter().take(8);
            Some(vectors.enumerate().fold(0, |byte, (bit, vector)| byte | u8::from(vector.is_pending()) << bit))
        });
    }

    fn update(&mut self, index: usize) -> Result<(), IrqError> {
        let [low, high, data, control] = self.entries[index];
        let vector = &mut self.vectors[index];
        if !self.enabled || self.function_masked || control & MASKED != 0 {
            return vector.disconnect();
        }
        let address = u64::from(low) | u64::from(high) << 32;
        vector.connect(&self.routes, Message { address, data })
    }
}

fn read_bytes(offset: u64, data: &mut [u8], byte: impl Fn(u64) -> Option<u8>) {
    for (at, place) in (offset..).zip(data) {
        *place = byte(at).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn msix(count: u16) -> Msix {
        let vm = Vm::new(1).unwrap();
        let routes = Routes::new(vm.clone()).unwrap();
        Msix::new(&vm, routes, count).unwrap()
    }

    fn program(msix: &mut Msix, vector: u64, masked: u32) {
        for (field, value) in [0xfee0_0000, 0, 0x41, masked].into_iter().enumerate() {
            let offset = vector * ENTRY_SIZE + 4 * field as u64;
            msix.write_table(offset, &u32::to_le_bytes(value)).unwrap();
        }
    }

    fn signal(msix: &Msix, vector: usize) {
        let fd = msix.fds().nth(vector).unwrap().try_clone_to_owned().unwrap();
        std::fs::File::from(fd).write_all(&1u64.to_ne_bytes()).unwrap();
    }

    fn pending(msix: &Msix) -> u64 {
        let mut bytes = [0; 8];
        msix.read_pba(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn vectors_start_masked_and_the_table_reads_back() {
        let mut msix = msix(2);
        let mut entry = [0; 16];
        msix.read_table(16, &mut entry);
        assert_eq!(entry[12], 1);
        program(&mut msix, 1, 0);
        msix.read_table(16, &mut entry);
        assert_eq!(entry, [0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_signal_on_a_masked_vector_is_pending_until_it_is_unmasked() {
        let mut msix = msix(3);
        msix.set_control(true, false).unwrap();
        program(&mut msix, 2, 1);
        signal(&msix, 2);
        assert_eq!(pending(&msix), 1 << 2);
        program(&mut msix, 2, 0);
        assert_eq!(pending(&msix), 0);
        program(&mut msix, 2, 1);
        assert_eq!(pending(&msix), 0, "what fired is no longer pending");
    }

    #[test]
    fn the_function_mask_holds_back_every_vector() {
        let mut msix = msix(2);
        program(&mut msix, 0, 0);
        msix.set_control(true, true).unwrap();
        signal(&msix, 0);
        assert_eq!(pending(&msix), 1);
        msix.set_control(true, false).unwrap();
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn disabling_forgets_what_is_pending() {
        let mut msix = msix(1);
        msix.set_control(true, true).unwrap();
        signal(&msix, 0);
        msix.set_control(false, false).unwrap();
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn accesses_beyond_the_table_or_misaligned_are_harmless() {
        let mut msix = msix(1);
        for (offset, length) in [(2, 4), (0, 2), (16, 4), (1 << 40, 4), (12, 8)] {
            msix.write_table(offset, &vec![0xff; length]).unwrap();
            msix.read_table(offset, &mut vec![0; length]);
            msix.read_pba(offset, &mut vec![0; length]);
        }
    }
}
