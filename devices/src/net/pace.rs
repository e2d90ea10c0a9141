//! Whether a worker may preempt the thread that makes its work.
//!
//! A worker may share a processor with the guest, or with a thread that sends to it. If it runs as soon as it is woken,
//! it preempts the sender in the middle of its sending. This is best for a request that waits for its answer. A stream,
//! however, is cut into small packets, each with an exit of the guest, a wake-up and an interrupt of its own. A worker
//! that is scheduled as a batch (sched(7), `SCHED_BATCH`) still runs at once if a processor is free, but does not
//! preempt, so each wake-up brings more. A worker asks for this while its wake-ups bring much, and now and then tries
//! whether they would.

use std::io;

/// A wake-up brings much if it brings at least this many bytes, or a second packet.
const BULK: usize = 4096;
/// Of this many wake-ups as a batch, half must bring much.
const TRIAL: u8 = 8;
/// After this many wake-ups that bring little, the worker tries being a batch.
const PATIENCE: u8 = 128;

/// One worker's way of being scheduled.
#[derive(Debug, Default)]
pub struct Pace {
    batch: bool,
    wakes: u8,
    bulky: u8,
    packets: usize,
    bytes: usize,
}

impl Pace {
    /// A packet was moved.
    pub fn moved(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes;
    }

    /// To be called before sleeping: takes stock of what the last wake-up brought.
    pub fn settle(&mut self) {
        if let Some(batch) = self.decide() {
            schedule(batch);
        }
    }

    /// How to be scheduled from now on, if otherwise than before.
    fn decide(&mut self) -> Option<bool> {
        let (packets, bytes) = (std::mem::take(&mut self.packets), std::mem::take(&mut self.bytes));
        if packets == 0 {
            return None;
        }
        self.wakes += 1;
        self.bulky += u8::from(packets > 1 || bytes >= BULK);
        let batch = match self.batch {
            true if self.wakes < TRIAL => return None,
            true => self.bulky >= TRIAL / 2,
            false if self.bulky < TRIAL / 2 && self.wakes < PATIENCE => return None,
            false => true,
        };
        (self.wakes, self.bulky) = (0, 0);
        (std::mem::replace(&mut self.batch, batch) != batch).then_some(batch)
    }
}

/// The thread does other work after this, which does not inherit it.
impl Drop for Pace {
    fn drop(&mut self) {
        if self.batch {
            schedule(false);
        }
    }
}

/// For the calling thread. Takes no privilege.
fn schedule(batch: bool) {
    let parameters = libc::sched_param { sched_priority: 0 };
    let policy = if batch { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    // SAFETY: reads the structure, and changes how this thread is scheduled.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } != 0 {
        log::debug!("net: cannot change how a queue's thread is scheduled: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decisions at wake-ups that each bring this many packets of this many bytes.
    fn wakes(pace: &mut Pace, count: usize, packets: usize, bytes: usize) -> Vec<bool> {
        let wake = |_| {
            (0..packets).for_each(|_| pace.moved(bytes));
            pace.decide()
        };
        (0..count).filter_map(wake).collect()
    }

    #[test]
    fn a_stream_soon_makes_a_batch_and_leaves_it_so() {
        assert_eq!(wakes(&mut Pace::default(), 4, 1, 65_000), [true]);
        assert_eq!(wakes(&mut Pace::default(), 200, 1, 65_000), [true]);
        assert_eq!(wakes(&mut Pace::default(), 200, 2, 64), [true]);
    }

    #[test]
    fn single_small_packets_are_a_batch_for_one_trial_in_a_while() {
        let decided = wakes(&mut Pace::default(), usize::from(PATIENCE + TRIAL), 1, 64);
        assert_eq!(decided, [true, false]);
        assert_eq!(wakes(&mut Pace::default(), usize::from(PATIENCE) - 1, 1, 64), [false; 0]);
    }

    #[test]
    fn a_batch_ends_when_the_stream_does() {
        let mut pace = Pace::default();
        wakes(&mut pace, 100, 1, 65_000);
        assert_eq!(wakes(&mut pace, 2 * usize::from(TRIAL), 1, 64), [false]);
    }

    #[test]
    fn a_wake_up_for_nothing_tells_nothing() {
        assert_eq!(wakes(&mut Pace::default(), 1000, 0, 0), [false; 0]);
    }

    fn policy() -> i32 {
        // SAFETY: asks for a number.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn the_kernel_takes_both() {
        std::thread::spawn(|| {
            schedule(true);
            assert_eq!(policy(), libc::SCHED_BATCH);
            schedule(false);
            assert_eq!(policy(), libc::SCHED_OTHER);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_threads_next_work_does_not_inherit_it() {
        std::thread::spawn(|| {
            let mut pace = Pace::default();
            for _ in 0..4 {
                pace.moved(65_000);
                pace.settle();
            }
            assert_eq!(policy(), libc::SCHED_BATCH);
            drop(pace);
            assert_eq!(policy(), libc::SCHED_OTHER);
        })
        .join()
        .unwrap();
    }
}
