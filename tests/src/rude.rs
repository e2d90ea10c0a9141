//! Guests whose devices are rude (`tests/src/bin/rude-device`): the run with each of them, and its end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::leftovers::{Seen, children};
use crate::outrigger::with_payload;
use crate::process::{Ended, Process, eventually};
use crate::qemu::Server;
use crate::{binaries, disk};

/// SIGTERM ends a run within this time, whatever its devices do.
pub const END: Duration = Duration::from_secs(1);
/// And the device processes that the VMM has started within this.
pub const DEVICES_END: Duration = Duration::from_secs(2);
/// A request to the honest disk takes this at most.
pub const REQUEST: Duration = Duration::from_secs(1);
/// The same in the test bed, whose processors are slower, and on a machine that is busy with something else.
pub const REQUEST_IN_BED: Duration = Duration::from_secs(3);
/// A run that hangs this long hangs for good.
const HANGS: Duration = Duration::from_secs(100);

/// The end of a run that has the device of one manner, when the guest uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest goes on with the device.
    Unharmed,
    /// The device is cut off: the user is told so once, the guest goes on, and the exit status is 6.
    CutOff,
    /// The same when the time is over that the device has for an answer.
    CutOffAtDeadline,
    /// The device is slow, but in time.
    Slow,
    /// It is not attached: one line when its time is over, exit status 2.
    NotAttached,
    /// It is not attached for an hour, in which each of its answers is in time.
    Attaching,
}

/// A manner of `rude-device`.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Its name.
    pub name: &'static str,
    /// The end of a run.
    pub end: End,
    /// Further options of `--device`.
    pub options: &'static str,
}

const fn manner(name: &'static str, end: End) -> Manner {
    Manner { name, end, options: "" }
}

/// All of them.
pub const MANNERS: [Manner; 35] = [
    manner("honest", End::Unharmed),
    manner("honest-twin", End::Unharmed),
    manner("blocking-eventfds", End::CutOff),
    manner("full-eventfds", End::Unharmed),
    manner("lingering-request", End::Unharmed),
    manner("lingering-reply", End::Unharmed),
    manner("lingering-twin", End::Unharmed),
    manner("lingering-ioregionfd", End::CutOff),
    manner("lingering-unread", End::CutOff),
    manner("lingering-region", End::Unharmed),
    manner("blocking-twin", End::CutOffAtDeadline),
    manner("blocking-ioregionfd", End::CutOffAtDeadline),
    manner("many-descriptors", End::CutOff),
    manner("descriptors-in-flight", End::Unharmed),
    // Where KVM interprets ring-0 code, such an access exits and is answered by message. `mapped_memory` has it where KVM_RUN fails.
    manner("truncating", End::Unharmed),
    manner("plain-file", End::Unharmed),
    manner("huge", End::Unharmed),
    manner("no-memory", End::Unharmed),
    manner("dma-flood", End::Unharmed),
    manner("dma-flood-twin", End::Unharmed),
    manner("dma-unread", End::CutOffAtDeadline),
    manner("dma-unread-twin", End::CutOffAtDeadline),
    Manner { options: ",dma=messages", ..manner("dma-busy", End::Slow) },
    manner("interrupt-storm", End::Unharmed),
    manner("replies-flood", End::CutOff),
    manner("interrupts-after-the-cut", End::CutOff),
    manner("refusing", End::Unharmed),
    manner("slow-unmask", End::Slow),
    manner("slow-reset", End::Unharmed),
    manner("silent", End::NotAttached),
    manner("sluggish", End::Attaching),
    manner("stops", End::CutOffAtDeadline),
    manner("stops-at-once", End::NotAttached),
    manner("half-message", End::CutOffAtDeadline),
    manner("hangs-up", End::CutOff),
];

impl Manner {
    /// The value of `--device` that has the VMM start the device.
    pub fn program(&self) -> String {
        format!("program={},manner={}{}", binaries::of_tests("rude-device").display(), self.name, self.options)
    }
}

/// The manner with this name.
///
/// # Panics
/// If there is none.
pub fn by_name(name: &str) -> Manner {
    let manner = MANNERS.into_iter().find(|manner| manner.name == name);
    manner.unwrap_or_else(|| panic!("there is no manner {name}"))
}

/// The right to have a guest that is busy: one at a time, and before whatever else the machine does, so that what is measured is the VMM
/// and not a want of processors.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    go_first();
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes that this thread starts from now on go before all else on the machine, if this user may decide that: the limits here are those
/// of a VMM, and not of a machine that also compiles.
pub fn go_first() {
    // SAFETY: the call takes numbers only. It fails without the privilege, and then nothing has changed.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, -10) };
}

/// A device process that is rude, killed when dropped.
pub struct Rude {
    server: Server,
    /// Where it listens.
    pub socket: PathBuf,
    manner: Manner,
}

impl Rude {
    /// Starts it with its socket in `directory`.
    pub fn start(manner: Manner, directory: &Path) -> Self {
        let socket = directory.join(format!("{}.sock", manner.name));
        let mut command = Command::new(binaries::of_tests("rude-device"));
        command.args(["--manner", manner.name, "--socket"]).arg(&socket);
        Self { server: Server::spawn(&mut command, &socket), socket, manner }
    }

    /// The value of `--device` by which a VMM connects to it.
    pub fn option(&self) -> String {
        format!("socket={}{}", self.socket.display(), self.manner.options)
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        self.server.process()
    }
}

impl Drop for Rude {
    fn drop(&mut self) {
        // Killed, it does not take it away itself.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A VMM whose guest uses rude devices, and beside them a disk, if wanted.
pub struct Run {
    /// The VMM.
    pub vmm: Process,
    /// When it was started.
    pub started: Instant,
}

/// The command that has the payload make `check`, with a disk if wanted, and with these values of `--device`.
pub fn command(check: &str, with_disk: bool, devices: &[String], directory: &Path) -> Command {
    let mut command = with_payload(check);
    command.args(["--cpus", "2"]).current_dir(directory);
    if with_disk {
        let image = directory.join("disk.img");
        disk::empty(&image, disk::PAYLOAD_DISK);
        command.arg("--disk").arg(format!("path={}", image.display()));
    }
    for device in devices {
        command.arg("--device").arg(device);
    }
    command
}

impl Run {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        Self { vmm: Process::start_with_input(&mut command, HANGS), started: Instant::now() }
    }

    /// The processes that it has started.
    pub fn devices(&self) -> Vec<Seen> {
        children(self.vmm.pid())
    }

    /// Tells the guest that it is enough, whereupon it powers off.
    #[track_caller]
    pub fn enough(mut self) -> Ended {
        self.vmm.send("x");
        self.vmm.finish()
    }

    /// Sends SIGTERM. The run has [`END`] to end with status 143, and the processes that it has started have [`DEVICES_END`].
    /// The time that the run took to end.
    ///
    /// # Panics
    /// If one of them takes longer.
    #[track_caller]
    pub fn terminate(mut self) -> (Ended, Duration) {
        let devices = self.devices();
        self.vmm.signal(Signal::SIGTERM);
        let start = Instant::now();
        eventually(HANGS, || self.vmm.has_ended());
        let time = start.elapsed();
        let gone = eventually(DEVICES_END.saturating_sub(time), || !devices.iter().any(Seen::alive));
        let left: Vec<_> = devices.iter().filter(|device| device.alive()).collect();
        let ended = self.vmm.finish();
        ended.expect_code(128 + Signal::SIGTERM as i32);
        assert!(time <= END, "SIGTERM took {time:?}; output:\n{ended}");
        assert!(gone, "device processes live on after {DEVICES_END:?}: {left:?}; output:\n{ended}");
        (ended, time)
    }
}

/// How long the longest request took, as the payload's check `rude` tells it, and how many there were.
///
/// # Panics
/// If it does not tell.
#[track_caller]
pub fn requests(ended: &Ended) -> (u64, Duration) {
    let line = ended.stdout.lines().find(|line| line.starts_with("requests "));
    let words: Vec<&str> = line.unwrap_or_default().split(' ').collect();
    let number = |at: usize| -> u64 {
        let number = words.get(at).and_then(|word| word.parse().ok());
        number.unwrap_or_else(|| panic!("the guest does not say how long its requests took; output:\n{ended}"))
    };
    let ticks = number(3);
    (number(1), Duration::from_micros(ticks.saturating_mul(1000) / ticks_per_millisecond()))
}

/// The guest's time-stamp counter is this processor's own.
fn ticks_per_millisecond() -> u64 {
    static TICKS: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *TICKS.get_or_init(|| {
        // SAFETY: every processor that runs guests has the instruction.
        let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
        let (start, first) = (Instant::now(), ticks());
        sleep(Duration::from_millis(50));
        let (time, ticks) = (start.elapsed(), ticks() - first);
        ticks * 1000 / u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    })
}
