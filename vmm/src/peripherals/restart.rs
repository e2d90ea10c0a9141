//! A device whose process has failed goes on with another one: when, how often, and until when accesses wait for it.
//!
//! This is the one place that decides whether a successor comes. It runs on the device's own thread. With a journal the
//! successor gets ready while its predecessor is still ending, and takes over once that is gone for good. Without one
//! it begins after that, and the device is reset.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_protocol::client::Client;
use outrigger_protocol::migration::DeviceState;

use super::error::Problem;
use super::peripheral::{EXIT_WAIT, Peripheral};
use super::prepare::Ready;
use super::status::ServiceState;
use super::watchdog::{PROBES, Watchdog};
use crate::attach::death::Cause;
use crate::attach::device::Knows;
use crate::config::Budget;
use crate::control::processes::ending;

/// Pause after a successor that failed, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(80);

/// A budget and the restarts taken from it.
pub(super) struct Restarts {
    budget: Budget,
    /// Those of the last window.
    begun: VecDeque<Instant>,
}

impl Restarts {
    pub(super) fn new(budget: Budget) -> Self {
        Self { budget, begun: VecDeque::new() }
    }

    /// Begins a restart, if one is left.
    fn take(&mut self, now: Instant) -> bool {
        while self.begun.front().is_some_and(|first| now.saturating_duration_since(*first) >= self.budget.window) {
            self.begun.pop_front();
        }
        let is_left = self.begun.len() < usize::from(self.budget.restarts);
        if is_left {
            self.begun.push_back(now);
        }
        is_left
    }
}

/// From what a successor knows the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takeover {
    /// Its predecessor has written it down.
    Journal,
    /// It has been copied, and the device is stopped.
    Migration,
    /// From nothing: the device begins anew.
    Reset,
}

/// A time in which nothing serves a device.
pub(super) struct Outage<'a> {
    pub(super) cause: &'a Cause,
    pub(super) since: Instant,
    /// When the device is withdrawn.
    pub(super) end: Instant,
}

impl Peripheral {
    /// The link is lost. Gets a successor, as often as the budget permits and until the deadline; false: the device is
    /// withdrawn, or the run has ended.
    pub(super) fn restart(&self, restarts: &mut Option<Restarts>, cause: &Cause) -> bool {
        let Some(restarts) = restarts else {
            self.lose(cause, None);
            return false;
        };
        let since = self.now().link.lost_at().unwrap_or_else(Instant::now);
        let outage = Outage { cause, since, end: Instant::now() + self.config.restart_deadline() };
        self.now().state = ServiceState::Restarting;
        let mut pause = FIRST_PAUSE;
        loop {
            let budget = restarts.budget;
            let why = match restarts.take(Instant::now()) {
                false => format!("{budget} are used up"),
                true => match self.try_successor(&outage) {
                    Ok(()) => return true,
                    Err(_) if self.generations.has_ended() => return false,
                    Err(problem) if problem.is_final() => problem.to_string(),
                    Err(problem) => {
                        if !problem.is_told() {
                            let (slot, label) = (self.slot, &self.config.label);
                            self.failures.warn(format_args!("{slot} ({label}): no successor: {problem}"));
                        }
                        let remaining = outage.end.saturating_duration_since(Instant::now());
                        if !remaining.is_zero() {
                            thread::sleep(pause.min(remaining));
                            pause = (pause * 2).min(LONGEST_PAUSE);
                            continue;
                        }
                        format!("nothing took its place within {:?}", self.config.restart_deadline())
                    }
                },
            };
            self.lose(cause, Some(&why));
            return false;
        }
    }

    fn try_successor(&self, outage: &Outage<'_>) -> Result<(), Problem> {
        let source = self.now().source.clone();
        let program = self.program_name();
        if *outage.cause != Cause::HungUp
            && let Some(process) = &self.now().process
        {
            process.signal(Signal::SIGKILL);
        }
        let (ready, what, takeover) = match &self.kept {
            Some(_) => {
                let ready = self.get_ready(source, outage.end)?;
                match self.see_the_end(outage) {
                    Ok(what) => (ready, what, Takeover::Journal),
                    Err(problem) => {
                        self.discard(&ready);
                        return Err(problem);
                    }
                }
            }
            None => {
                let what = self.see_the_end(outage)?;
                (self.get_ready(source, outage.end)?, what, Takeover::Reset)
            }
        };
        self.hand_over(ready, takeover, outage.end)?;
        let waited = self.note_outage(outage.since);
        self.now().restarts += 1;
        let (slot, label) = (self.slot, &self.config.label);
        self.lines.warn(format_args!("{slot} ({label}): {program} {what}; another one took its place in {waited:.1?}"));
        Ok(())
    }

    /// Waits until the process that served the device is gone for good: nothing that it had begun can come later. Says
    /// how it went.
    fn see_the_end(&self, outage: &Outage<'_>) -> Result<String, Problem> {
        let Some(process) = self.now().process.clone() else { return Ok(outage.cause.to_string()) };
        let remaining = || outage.end.saturating_duration_since(Instant::now());
        let status = process.wait(if *outage.cause == Cause::HungUp { EXIT_WAIT } else { Duration::ZERO });
        let own = status.filter(|_| *outage.cause == Cause::HungUp);
        if status.is_none() {
            process.signal(Signal::SIGKILL);
            if process.wait(remaining()).is_none() {
                let id = process.id();
                return Err(Problem::Predecessor(id));
            }
        }
        self.host.control.processes.remove(&process);
        Ok(own.map_or_else(|| outage.cause.to_string(), ending))
    }

    /// Lets a successor serve the device. Its predecessor is gone.
    pub(super) fn hand_over(&self, ready: Ready, takeover: Takeover, end: Instant) -> Result<(), Problem> {
        let Ready { source, link, process, successor } = ready;
        let take = |client: &Client| match takeover {
            Takeover::Journal => client.take_journal(),
            Takeover::Migration => client.set_device_state(DeviceState::Running),
            Takeover::Reset => Ok(()),
        };
        let knows = if takeover == Takeover::Reset { Knows::Nothing } else { Knows::Everything };
        let watchdog = Watchdog { end, process: process.as_deref(), probe: self.config.deadline / PROBES };
        if self.now().process.is_none() {
            self.device.renew_interrupts();
        }
        let (result, _) = watchdog.watch(|| link.fail(Cause::Silent), || self.device.succeed(successor, knows, take));
        // From the first message on it may have been at work: whatever comes after it waits for its end.
        let state = if result.is_ok() { ServiceState::Serving } else { ServiceState::Restarting };
        self.is_served_by(source, &link, process.clone(), state);
        if result.is_ok() {
            link.client().set_deadline(self.config.deadline);
        }
        result.map_err(|error| {
            link.fail((&error).into());
            let problem = Problem::from(crate::attach::AttachError::from(error));
            problem.or_end_of(process.as_ref(), EXIT_WAIT)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_that_of_any_window() {
        let window = Duration::from_secs(60);
        let mut restarts = Restarts::new(Budget { restarts: 2, window });
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let taken: Vec<_> = [0, 1, 2, 59, 60, 60, 61, 119, 120].map(|second| restarts.take(at(second))).into();
        assert_eq!(taken, [true, true, false, false, true, false, true, false, true]);
        assert!(restarts.begun.len() <= 2);
    }
}
