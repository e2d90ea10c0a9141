//! The processes that serve a device, one after another: an access that has met a lost link waits here.
//!
//! A device is served by one process after another. Each is a *generation*. An access belongs to the generation that it
//! found on the bus; if its link is lost before the answer, it waits here for a later generation and is done there, or
//! for the news that there will be none. Whether a successor comes is decided elsewhere, on the device's own thread.
//!
//! The lock here is the innermost of a device: nothing is asked and no other lock taken while it is held.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::dispatch::Dispatch;

/// The current generation of a device.
#[derive(Default)]
pub struct Generations {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    generation: u64,
    /// By region.
    serving: Vec<Arc<Dispatch>>,
    /// Nobody will serve it any more.
    ended: bool,
}

impl Generations {
    /// From now on `serving` answers; its generation is the next one.
    pub(super) fn publish(&self, serving: Vec<Arc<Dispatch>>) {
        let mut now = self.lock();
        now.generation += 1;
        if !now.ended {
            now.serving = serving;
        }
        self.changed.notify_all();
    }

    /// The generation that the next [`publish`](Self::publish) makes.
    pub(super) fn next_generation(&self) -> u64 {
        self.lock().generation + 1
    }

    /// There will be no other generation: the device is withdrawn, or the run ends. All waits are over.
    pub fn end(&self) {
        let mut now = self.lock();
        now.ended = true;
        // They refer to this.
        let serving = std::mem::take(&mut now.serving);
        drop(now);
        self.changed.notify_all();
        drop(serving);
    }

    /// The path that each part of each region takes now, as [`Plan::lines`](super::plan::Plan::lines) says it, by region.
    pub fn paths(&self) -> Vec<Vec<(Range<u64>, String)>> {
        let serving = self.lock().serving.clone();
        serving.iter().map(|dispatch| dispatch.plan.lines()).collect()
    }

    /// Whether there will be no other generation.
    pub fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Waits until a later generation than `generation` serves; false: none will.
    pub(super) fn wait_after(&self, generation: u64) -> bool {
        !self.after(generation).ended
    }

    /// The dispatch of `region` after `generation`, as soon as it is known; none: there will be none.
    pub(super) fn dispatch_after(&self, generation: u64, region: u32) -> Option<Arc<Dispatch>> {
        let now = self.after(generation);
        if now.ended { None } else { now.serving.get(region as usize).cloned() }
    }

    fn after(&self, generation: u64) -> MutexGuard<'_, Now> {
        let is_undecided = |now: &mut Now| !now.ended && now.generation <= generation;
        self.changed.wait_while(self.lock(), is_undecided).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_access_waits_for_a_later_generation_or_the_end() {
        let generations = Arc::<Generations>::default();
        generations.publish(Vec::new());
        assert!(generations.wait_after(0));
        for end in [false, true] {
            let generation = generations.next_generation() - 1;
            let waiting = {
                let generations = generations.clone();
                thread::spawn(move || generations.wait_after(generation))
            };
            thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            if end {
                generations.end()
            } else {
                generations.publish(Vec::new())
            }
            assert_eq!(waiting.join().unwrap(), !end);
        }
        generations.publish(Vec::new());
        assert!(!generations.wait_after(0), "the end is for good");
    }
}
