//! The faults, and a round of each.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::process::{Ended, Process};
use outrigger_tests::random::Random;

use crate::documented::{Documented, PROMPT};
use crate::guest::{Device, boot, kick};
use crate::options::Options;
use crate::rounds::Turn;

/// The guest has seen some to some thousand answers when the fault comes.
const SOON: Duration = Duration::from_millis(20);
/// `faulty-registers` answers this often at most before it breaks; the guest needs two answers to begin.
const RIGHT: std::ops::Range<u64> = 2..600;
/// How long a pause is that nobody is to notice: mostly, and now and then. A VMM that is stopped may be so for longer than a device
/// has for an answer, if the device has answered.
const SHORT_PAUSE: Duration = Duration::from_millis(10);
const LONG_PAUSE: Duration = Duration::from_secs(9);
const LONG_PAUSE_OF_VMM: Duration = Duration::from_secs(12);
const LONG_ONE_IN: u64 = 20;
const MOST_PAUSES: u64 = 10;

/// An event while a vCPU waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device process dies.
    Killed,
    /// The device process is stopped for good.
    Stopped,
    /// The device process is stopped and goes on before its time is over, again and again.
    Paused,
    /// The device closes the ioregionfd.
    Closes,
    /// The device sends an answer of another size.
    Short,
    /// The device sends an answer that nobody asked for.
    Twice,
    /// The device answers when its time is over.
    Late,
    /// The device sends answers without end.
    Floods,
    /// The vCPU is signalled.
    Signalled,
    /// The whole VMM is stopped and goes on, again and again.
    VmmPaused,
    /// The VM is destroyed by SIGTERM.
    Ended,
    /// The VM is destroyed by SIGKILL.
    VmmKilled,
    /// The region is removed, because the device closes the vfio-user connection. It keeps its ioregionfd and says nothing there.
    Removed,
    /// The region is removed, because another vCPU disables the BAR. The device answers after that.
    Disabled,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Killed,
        Self::Stopped,
        Self::Paused,
        Self::Closes,
        Self::Short,
        Self::Twice,
        Self::Late,
        Self::Floods,
        Self::Signalled,
        Self::VmmPaused,
        Self::Ended,
        Self::VmmKilled,
        Self::Removed,
        Self::Disabled,
    ];

    /// For the command line and the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Closes => "closes",
            Self::Short => "short",
            Self::Twice => "twice",
            Self::Late => "late",
            Self::Floods => "floods",
            Self::Signalled => "signalled",
            Self::VmmPaused => "vmm-paused",
            Self::Ended => "ended",
            Self::VmmKilled => "vmm-killed",
            Self::Removed => "removed",
            Self::Disabled => "disabled",
        }
    }

    /// How a run with it ends.
    pub fn documented(self) -> Documented {
        match self {
            Self::Killed | Self::Closes | Self::Short | Self::Twice | Self::Floods | Self::Removed => {
                Documented::CutOff
            }
            Self::Stopped | Self::Late => Documented::CutOffAtDeadline,
            Self::Paused | Self::Signalled | Self::VmmPaused | Self::Disabled => Documented::Unharmed,
            Self::Ended => Documented::EndedBySignal(128 + Signal::SIGTERM as i32),
            Self::VmmKilled => Documented::EndedBySignal(128 + Signal::SIGKILL as i32),
        }
    }
}

/// One round under way.
pub struct Round<'a> {
    /// The programs.
    pub options: &'a Options,
    /// Where its device listens.
    pub socket: PathBuf,
    /// Of this round alone.
    pub random: Random,
    /// Held while the guest runs.
    pub turn: Turn<'a>,
}

impl Round<'_> {
    /// Goes through it. The time from the fault to the documented result.
    ///
    /// # Panics
    /// If it does not end as documented.
    pub fn run(self, fault: Fault) -> Duration {
        match fault {
            Fault::Killed | Fault::Stopped => self.device_signalled(fault),
            Fault::Closes => self.breaks(fault, "hangs-up"),
            Fault::Short => self.breaks(fault, "answers-short"),
            Fault::Twice => self.breaks(fault, "answers-twice"),
            Fault::Floods => self.breaks(fault, "floods"),
            Fault::Removed => self.breaks(fault, "leaves"),
            Fault::Late => self.late(),
            Fault::Disabled => self.disabled(),
            Fault::Paused | Fault::Signalled | Fault::VmmPaused => self.disturbed(fault),
            Fault::Ended | Fault::VmmKilled => self.destroyed(fault),
        }
    }

    fn device_signalled(mut self, fault: Fault) -> Duration {
        let (device, vmm) = self.paths("gone");
        sleep(self.random.time(SOON));
        let stops = fault == Fault::Stopped;
        device.signal(if stops { Signal::SIGSTOP } else { Signal::SIGKILL });
        let start = Instant::now();
        if stops {
            self.turn.end();
        }
        finish(vmm, &device, fault, start)
    }

    fn breaks(mut self, fault: Fault, how: &str) -> Duration {
        let (device, vmm) = self.faulty("gone", how);
        device.wait_for("fault\n");
        finish(vmm, &device, fault, Instant::now())
    }

    /// The answer finds a guest that still runs, and changes nothing.
    fn late(mut self) -> Duration {
        let (device, mut vmm) = self.faulty("gone-for-good", "answers-late");
        device.wait_for("fault\n");
        let start = Instant::now();
        self.turn.end();
        vmm.wait_for("gone\n");
        let time = start.elapsed();
        device.wait_for("late\n");
        sleep(self.random.time(SOON));
        vmm.send("go");
        let ended = vmm.finish();
        ended.expect_stdout("ok gone-for-good\n");
        Fault::Late.documented().check(&ended, device.socket(), time);
        time
    }

    /// The vCPU that disables the BAR does not wait for the one that waits for the device, which gets the answer that came later.
    fn disabled(mut self) -> Duration {
        let (device, mut vmm) = self.faulty("disabled", "answers-when-disabled");
        device.wait_for("fault\n");
        sleep(self.random.time(SOON));
        let start = Instant::now();
        vmm.send("d");
        vmm.wait_for("disabled\n");
        let time = start.elapsed();
        assert!(time < PROMPT, "disabling the BAR took {time:?}");
        sleep(self.random.time(SOON));
        vmm.send("e");
        let ended = vmm.finish();
        ended.expect_stdout("ok disabled-answers-after\n");
        Fault::Disabled.documented().check(&ended, device.socket(), time);
        time
    }

    /// Neither the guest nor the user notices.
    fn disturbed(mut self, fault: Fault) -> Duration {
        let (device, mut vmm) = self.paths("steady");
        let start = Instant::now();
        if self.random.below(LONG_ONE_IN) == 0 {
            self.turn.end();
            let stopped = |signal| if fault == Fault::VmmPaused { vmm.signal(signal) } else { device.signal(signal) };
            stopped(Signal::SIGSTOP);
            let pause = if fault == Fault::VmmPaused { LONG_PAUSE_OF_VMM } else { self.random.time(LONG_PAUSE) };
            sleep(pause / 2);
            if fault == Fault::Signalled {
                kick(&vmm, true);
            }
            sleep(pause / 2);
            stopped(Signal::SIGCONT);
        }
        for _ in 0..=self.random.below(MOST_PAUSES) {
            sleep(self.random.time(SHORT_PAUSE));
            // So that the vCPU mostly waits.
            let waits = fault == Fault::Paused || self.random.below(4) > 0;
            if waits {
                device.signal(Signal::SIGSTOP);
            }
            self.disturb(fault, &vmm);
            if waits {
                device.signal(Signal::SIGCONT);
            }
        }
        sleep(self.random.time(SHORT_PAUSE));
        vmm.send("go");
        let ended = vmm.finish();
        let time = start.elapsed();
        ended.expect_stdout("ok steady\n");
        fault.documented().check(&ended, device.socket(), time);
        time
    }

    fn disturb(&mut self, fault: Fault, vmm: &Process) {
        match fault {
            Fault::Signalled => {
                for _ in 0..=self.random.below(5) {
                    sleep(self.random.time(SHORT_PAUSE / 5));
                    kick(vmm, self.random.below(4) > 0);
                }
            }
            Fault::VmmPaused => {
                sleep(self.random.time(SHORT_PAUSE / 5));
                vmm.signal(Signal::SIGSTOP);
                sleep(self.random.time(SHORT_PAUSE));
                vmm.signal(Signal::SIGCONT);
            }
            _ => sleep(self.random.time(SHORT_PAUSE)),
        }
    }

    /// The device is not to blame and serves the next VMM.
    fn destroyed(mut self, fault: Fault) -> Duration {
        let (device, vmm) = self.paths("gone");
        sleep(self.random.time(SOON));
        // Otherwise it comes at any moment of an exchange.
        let waits = self.random.below(4) > 0;
        if waits {
            device.signal(Signal::SIGSTOP);
            sleep(self.random.time(SOON));
        }
        vmm.signal(if fault == Fault::Ended { Signal::SIGTERM } else { Signal::SIGKILL });
        let time = finish(vmm, &device, fault, Instant::now());
        if waits {
            device.signal(Signal::SIGCONT);
        }
        let next: Ended = boot(self.options, &device, "paths").finish();
        Documented::Unharmed.check(&next, device.socket(), Duration::ZERO);
        time
    }

    /// A guest that reads from, or uses, the device with all paths.
    fn paths(&mut self, checks: &str) -> (Device, Process) {
        let device = Device::paths(self.options, &self.socket);
        let mut vmm = boot(self.options, &device, checks);
        vmm.wait_for("ready\n");
        (device, vmm)
    }

    /// A guest that reads from a device which breaks after some right answers.
    fn faulty(&mut self, checks: &str, fault: &str) -> (Device, Process) {
        let right = RIGHT.start + self.random.below(RIGHT.end - RIGHT.start);
        let device = Device::faulty(self.options, &self.socket, fault, right);
        let vmm = boot(self.options, &device, checks);
        (device, vmm)
    }
}

fn finish(vmm: Process, device: &Device, fault: Fault, start: Instant) -> Duration {
    let ended = vmm.finish();
    let time = start.elapsed();
    fault.documented().check(&ended, device.socket(), time);
    time
}
