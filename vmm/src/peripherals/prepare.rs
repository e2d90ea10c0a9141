//! A process gets ready to serve a device in place of another: everything that the guest does not notice.

use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::Signal;
use outrigger_protocol::client::Client;

use super::error::Problem;
use super::journal::Kept;
use super::open::{Opened, Opening};
use super::peripheral::{EXIT_WAIT, KILL_WAIT, Peripheral, socket};
use super::source::{Reached, reach_again, start};
use super::watchdog::{PROBES, Watchdog};
use crate::attach::device::Successor;
use crate::attach::discovery::Description;
use crate::attach::link::Link;
use crate::config::Source;
use crate::control::processes::DeviceProcess;

/// A process that could serve the device at once.
pub(super) struct Ready {
    pub(super) source: Source,
    pub(super) link: Arc<Link>,
    pub(super) process: Option<Arc<DeviceProcess>>,
    pub(super) successor: Successor,
}

impl Peripheral {
    /// Starts or finds a process and gets it ready, until `end`. With a journal it sees what its predecessor has written.
    ///
    /// # Errors
    /// If there is none, or it is not the same device. It is gone then.
    pub(super) fn get_ready(&self, source: Source, end: Instant) -> Result<Ready, Problem> {
        let kept = self.kept.as_ref().map(Kept::descriptors);
        let kept = kept.as_ref().map(|kept| kept.as_slice());
        let reached = match start(self.slot, &source, &self.host, kept, Some(end))? {
            Some(reached) => reached,
            None => reach_again(&source, &self.host, &self.generations, end)?,
        };
        let Reached { stream, process } = reached;
        let stream = socket(stream);
        let opening = Opening::of_successor(&self.host, &self.config, &self.bus_master);
        let agree = |client: &Client, description: &Description| match self.device.difference(description) {
            Some(difference) => Err(Problem::Other(format!("is another device: {difference}"))),
            None => self.kept.iter().try_for_each(|kept| kept.offer(client)),
        };
        let prepare = || {
            let Opened { link, description, .. } = opening.open(&stream, agree)?;
            let successor = self.device.prepare(link.clone(), &description)?;
            Ok((link, successor))
        };
        let watchdog = Watchdog { end, process: process.as_deref(), probe: self.config.deadline / PROBES };
        match watchdog.watch(|| stream.hang_up(), prepare) {
            (Ok((link, successor)), _) => Ok(Ready { source, link, process, successor }),
            (Err(problem), given_up) => {
                let problem: Problem = problem;
                stream.hang_up();
                let problem = match given_up {
                    true => Problem::Other("was not ready in time".to_owned()),
                    false => problem.or_end_of(process.as_ref(), EXIT_WAIT),
                };
                process.iter().for_each(|process| self.end_process(process));
                Err(problem)
            }
        }
    }

    /// Lets go of a process that is not to serve the device after all.
    pub(super) fn discard(&self, ready: &Ready) {
        ready.link.end();
        ready.process.iter().for_each(|process| self.end_process(process));
    }

    fn end_process(&self, process: &Arc<DeviceProcess>) {
        process.signal(Signal::SIGKILL);
        process.wait(KILL_WAIT);
        self.host.control.processes.remove(process);
    }
}
