//! The function as one that a successor of the process can go on with.
//!
//! The kernel holds almost everything: configuration space, what is mapped, who is interrupted. So a successor asks the kernel,
//! and the journal only says that a predecessor had finished opening the function, and which.
//!
//! | word | content |
//! |---|---|
//! | 0 | 1 once the rest is there, written last |
//! | 1 | the function's address: domain, bus, device and function |
//! | 2 | 1: it is reached by a group and a container |
//! | 3 to 7 | zero |

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use log::warn;
use nix::errno::Errno;
use outrigger_protocol::journal::{JournalFormat, JournalMemory};
use outrigger_protocol::pci::INTX_IRQ;
use outrigger_protocol::server::Journaled;
use outrigger_protocol::wire;

use super::address::Address;
use super::function::PhysicalFunction;

const WORDS: usize = 8;
const WRITTEN: u64 = 1;
const BY_CONTAINER: u64 = 1;

/// The format that this process writes and reads.
pub(super) fn format() -> JournalFormat {
    JournalFormat { format: "vfio-pci/1".to_owned(), size: 8 * WORDS as u64 }
}

/// Writes it; a kill between any two stores leaves nothing, or all of it.
fn write(memory: &JournalMemory, address: Address) {
    let words = memory.words();
    words[1].store(address.number(), Relaxed);
    words[2].store(BY_CONTAINER, Relaxed);
    words[0].store(WRITTEN, Release);
}

/// Whether a predecessor has written it for this function.
fn is_of(memory: &JournalMemory, address: Address) -> bool {
    let words: Vec<u64> = memory.words().iter().map(|word| word.load(Acquire)).collect();
    words.len() >= WORDS
        && words[..3] == [WRITTEN, address.number(), BY_CONTAINER]
        && words[3..].iter().all(|&word| word == 0)
}

impl Journaled for PhysicalFunction {
    fn format(&self) -> JournalFormat {
        format()
    }

    fn begin(&mut self, memory: JournalMemory) -> Result<Vec<OwnedFd>, Errno> {
        let succession = self.succession.as_mut().ok_or(Errno::ENOTSUP)?;
        let kept = std::mem::take(&mut succession.files);
        if kept.is_empty() || succession.is_successor {
            return Err(Errno::ENOTSUP);
        }
        write(&memory, succession.address);
        succession.is_kept = true;
        Ok(kept)
    }

    fn offer(&mut self, memory: &JournalMemory) -> Result<(), Errno> {
        match &self.succession {
            Some(succession) if succession.is_successor && is_of(memory, succession.address) => Ok(()),
            _ => {
                warn!("cannot go on from a predecessor's journal: it is another device's, or was not finished");
                Err(Errno::EPROTO)
            }
        }
    }

    /// The client has mapped its memory and connected its interrupts. All else is taken from the function.
    fn take(&mut self, _memory: JournalMemory) -> Result<(), Errno> {
        let succession = self.succession.as_mut().filter(|succession| succession.is_successor).ok_or(Errno::EINVAL)?;
        succession.is_successor = false;
        succession.is_kept = true;
        self.memory.close_the_rest()?;
        for (index, kind) in (0..).zip(&self.types) {
            kind.leave_nothing_else(&self.file, index);
        }
        // A predecessor may have been told to unmask the pin and not have done it; too much does no harm to a level.
        if self.types[INTX_IRQ as usize].connected().next().is_some() {
            let _ = self.file.act_on_irqs(INTX_IRQ, wire::IRQ_SET_ACTION_UNMASK, 0, 1);
        }
        // A message that came while its vector was being connected again is lost where it cannot be masked, so each is
        // signalled once: its driver finds something to do, or not.
        if let Some(interrupts) = &self.interrupts {
            for (index, kind) in (0..).zip(&self.types) {
                kind.connected().for_each(|vector| interrupts.trigger(index, vector));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_written_whole_or_is_none() {
        let address: Address = "0001:02:03.4".parse().unwrap();
        let whole = JournalMemory::private(8 * WORDS).unwrap();
        write(&whole, address);
        assert!(is_of(&whole, address));
        assert!(!is_of(&whole, "0001:02:03.5".parse().unwrap()), "of another function");
        // Killed before any of the stores, the last of which is that of word 0, whatever order the others took.
        for done in 0..4u64 {
            let cut_off = JournalMemory::private(8 * WORDS).unwrap();
            for word in (1..3).filter(|word| done & (1 << (word - 1)) != 0) {
                cut_off.words()[word].store(whole.words()[word].load(Relaxed), Relaxed);
            }
            assert!(!is_of(&cut_off, address), "{done:b}");
        }
    }

    /// A hijacked predecessor writes what it likes.
    #[test]
    fn any_other_word_makes_it_no_journal() {
        let address: Address = "0000:01:00.0".parse().unwrap();
        for word in 0..8 {
            for bit in 0..64 {
                let memory = JournalMemory::private(8 * WORDS).unwrap();
                write(&memory, address);
                memory.words()[word].fetch_xor(1 << bit, Relaxed);
                assert!(!is_of(&memory, address), "word {word}, bit {bit}");
            }
        }
    }
}
