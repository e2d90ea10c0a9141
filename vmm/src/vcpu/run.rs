//! The threads that run vCPUs, and how they are stopped: a flag that each looks at between two entries of the guest, and a signal
//! that brings it out of the guest. The signal is sent again until the thread has ended, so that it doesn't matter if one arrives
//! just before KVM_RUN, where it changes nothing.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::Vcpu;
use super::exit::serve_one;
use super::foreign_memory::{ForeignMemory, VainLooks};
use crate::control::outcome::{Outcome, Stop};
use crate::machine::bus::Bus;

/// Pause between two signals to a thread that has not ended yet, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// The devices and memory that a vCPU thread works on.
#[derive(Clone)]
pub struct VcpuContext {
    /// Devices in memory.
    pub mmio: Arc<Bus>,
    /// Devices at I/O ports.
    pub io: Arc<Bus>,
    /// The part of the guest's memory that other processes can take away.
    pub memory: Arc<dyn ForeignMemory>,
    /// Says when to stop, and takes the news of how the guest ended.
    pub stop: Stop,
}

/// A vCPU that runs, or ran.
#[derive(Debug)]
pub struct VcpuThread {
    id: u8,
    thread: JoinHandle<()>,
}

/// All vCPUs that run.
#[derive(Debug, Default)]
pub struct VcpuThreads(Vec<VcpuThread>);

impl Vcpu {
    /// Run this vCPU in a thread of its own until `context.stop` is requested.
    ///
    /// # Errors
    /// If the system has no room for another thread or does not take the signal handler.
    pub fn spawn(mut self, context: VcpuContext) -> io::Result<VcpuThread> {
        register_signal_handler(SIGRTMIN(), leave_guest)?;
        let id = self.id;
        let thread = thread::Builder::new().name(format!("vcpu{id}")).spawn(move || self.run(&context))?;
        Ok(VcpuThread { id, thread })
    }

    fn run(&mut self, context: &VcpuContext) {
        let stop = &context.stop;
        let mut looks = VainLooks::default();
        while !stop.requested() {
            if let Some(outcome) = serve_one(&mut self.fd, context, &self.exit_counts, &mut looks) {
                stop.request(match outcome {
                    Outcome::Crash { report } => Outcome::Crash { report: format!("vCPU {}: {report}", self.id) },
                    outcome => outcome,
                });
            }
        }
    }
}

/// The signal's only effect is to interrupt KVM_RUN, or a wait in a device.
extern "C" fn leave_guest(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

impl VcpuThreads {
    /// Take charge of one more.
    pub fn push(&mut self, thread: VcpuThread) {
        self.0.push(thread);
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bring all vCPUs out of the guest and wait for their threads' end, at most `limit`. [`Stop`] must have been requested.
    /// Returns the ids of those that did not end, which can be waited for again.
    pub fn join(&mut self, limit: Duration) -> Vec<u8> {
        let deadline = Instant::now() + limit;
        let mut pause = FIRST_PAUSE;
        loop {
            let (ended, running): (Vec<_>, Vec<_>) = self.0.drain(..).partition(|vcpu| vcpu.thread.is_finished());
            for vcpu in ended {
                if vcpu.thread.join().is_err() {
                    log::error!("the thread of vCPU {} panicked", vcpu.id);
                }
            }
            if running.is_empty() || Instant::now() >= deadline {
                self.0 = running;
                return self.0.iter().map(|vcpu| vcpu.id).collect();
            }
            for vcpu in &running {
                // Fails only for a thread that has just ended.
                let _ = vcpu.thread.kill(SIGRTMIN());
            }
            self.0 = running;
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
