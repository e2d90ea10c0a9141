//! The part of the test device that keeps a journal, of one word that counts.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use outrigger_protocol::journal::{JournalFormat, JournalMemory};
use outrigger_protocol::server::Journaled;

use super::device::State;

pub const SIZE: u64 = 4096;
/// A journal whose first word is this is not one that the device can go on from.
pub const FOREIGN: u64 = u64::MAX;

pub fn format() -> JournalFormat {
    JournalFormat { format: "test/1".into(), size: SIZE }
}

pub struct TestJournal {
    shared: Arc<Mutex<State>>,
}

impl TestJournal {
    pub fn new(shared: Arc<Mutex<State>>) -> Self {
        Self { shared }
    }

    fn note(&self, step: &'static str, memory: &JournalMemory) {
        let word = memory.words()[0].load(Ordering::Relaxed);
        self.shared.lock().unwrap().journal.push((step, word));
    }
}

impl Journaled for TestJournal {
    fn format(&self) -> JournalFormat {
        format()
    }

    fn begin(&mut self, memory: JournalMemory) -> Result<Vec<OwnedFd>, Errno> {
        self.note("begin", &memory);
        memory.words()[0].store(7, Ordering::Release);
        Ok(vec![super::memfd(1), super::memfd(2)])
    }

    fn offer(&mut self, memory: &JournalMemory) -> Result<(), Errno> {
        self.note("offer", memory);
        if memory.words()[0].load(Ordering::Relaxed) == FOREIGN { Err(Errno::EPROTO) } else { Ok(()) }
    }

    fn take(&mut self, memory: JournalMemory) -> Result<(), Errno> {
        self.note("take", &memory);
        memory.words()[0].fetch_add(1, Ordering::Release);
        Ok(())
    }
}
