//! A message now and then, so that a process which does not answer is noticed also while the guest accesses nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_protocol::client::Client;

use super::death::Cause;
use super::link::Link;
use crate::control::processes::DeviceProcess;

/// How often a process is asked something when nothing else tells that it answers.
const EVERY: Duration = Duration::from_secs(2);

/// The watch on one process.
pub(super) struct Ping {
    process: Option<Arc<DeviceProcess>>,
    /// When it is asked next.
    due: Instant,
    /// Since when it is stopped.
    stopped: Option<Instant>,
}

impl Ping {
    /// A process, if this VMM has started one, that has just answered.
    pub(super) fn new(process: Option<Arc<DeviceProcess>>) -> Self {
        Self { process, due: Instant::now() + EVERY, stopped: None }
    }

    /// When [`check`](Self::check) has something to do at the latest.
    pub(super) fn next(&self, link: &Link) -> Instant {
        self.stopped.map_or(self.due, |since| self.due.min(since + link.deadline()))
    }

    /// Fails the link of a process that is stopped for longer than it may take to answer, or that does not answer.
    pub(super) fn check(&mut self, link: &Link) {
        let now = Instant::now();
        match &self.process {
            Some(process) if process.is_stopped() => {
                let since = *self.stopped.get_or_insert(now);
                if now >= since + link.deadline() {
                    link.fail(Cause::Stopped);
                }
            }
            _ => self.stopped = None,
        }
        if now >= self.due {
            self.due = now + EVERY;
            if !link.take_answered() && self.stopped.is_none() {
                // A failure is the link's.
                let _ = link.call(Client::device_info);
            }
        }
    }
}
