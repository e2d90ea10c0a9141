//! A guest that stays, and works when it is told to.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::figure::{Figure, Unit};
use crate::guest::{END, Line};
use crate::host::memory;
use crate::host::subject::outrigger;

/// How long a guest may be silent, in the test bed's time.
const LIMIT: Duration = Duration::from_secs(60);

/// A guest's configuration.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Processors, which is also how many threads a load has.
    pub cpus: usize,
    /// `--disk` and `--net` with their values, in the order of the slots.
    pub devices: Vec<String>,
    /// More for the kernel command line.
    pub cmdline: String,
}

/// A running guest. Dropped, it is gone at once.
#[derive(Debug)]
pub struct Guest {
    vmm: Child,
    input: ChildStdin,
    console: Receiver<(io::Result<String>, Instant)>,
    /// From the VMM's fork to /init, in milliseconds.
    pub boot: f64,
    /// From the VMM's fork until the guest has nothing left to do, in milliseconds.
    pub ready: f64,
}

/// One of a guest's processes.
#[derive(Debug)]
pub struct Process {
    /// `outrigger`, `outrigger-blk` or `outrigger-net`.
    pub name: String,
    /// Bytes of private memory.
    pub private: u64,
    /// How many.
    pub threads: usize,
    /// How many.
    pub descriptors: usize,
    /// How often one of its threads has begun to run.
    pub runs: usize,
}

impl Guest {
    /// Boots one and waits until it has nothing left to do.
    pub fn boot(machine: &Machine) -> io::Result<Self> {
        let Machine { cpus, cmdline, .. } = machine;
        let cmdline = format!("console=ttyS0 quiet panic=-1 ipv6.disable=1 lab.serve lab.threads={cpus} {cmdline}");
        let mut command: Command = outrigger(machine.cpus, &machine.devices.join(" "), &cmdline);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let start = Instant::now();
        let mut vmm = command.spawn()?;
        let none = || io::Error::other("no console");
        let (input, output) = (vmm.stdin.take().ok_or_else(none)?, vmm.stdout.take().ok_or_else(none)?);
        let (sender, console) = sync_channel(64);
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if sender.send((line, Instant::now())).is_err() {
                    break;
                }
            }
        });
        let mut guest = Self { vmm, input, console, boot: 0.0, ready: 0.0 };
        let since_start = |when: Instant| {
            let nanoseconds = u64::try_from((when - start).as_nanos()).unwrap_or(u64::MAX);
            Unit::Milliseconds.per(nanoseconds, 1)
        };
        guest.boot = since_start(guest.wait(|line| matches!(line, Line::Init))?.1);
        guest.ready = since_start(guest.wait(|line| matches!(line, Line::Idle))?.1);
        Ok(guest)
    }

    /// Has the guest put a load on its devices, and says what that came to, in the figure's unit.
    pub fn load(&mut self, figure: &str) -> io::Result<f64> {
        writeln!(self.input, "{figure}")?;
        match self.wait(|line| matches!(line, Line::Figure(..)))?.0 {
            Line::Figure(Figure { name, .. }, value) if *name == figure => Ok(value),
            other => Err(io::Error::other(format!("{figure} was asked for, and {other:?} came"))),
        }
    }

    /// The same while `disturb` is called again and again, every `interval`.
    pub fn load_disturbed(
        &mut self,
        figure: &str,
        interval: Duration,
        mut disturb: impl FnMut(u32) -> io::Result<()>,
    ) -> io::Result<f64> {
        writeln!(self.input, "{figure}")?;
        self.wait(|line| matches!(line, Line::Begin(_)))?;
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            match self.console.recv_timeout(interval) {
                Err(RecvTimeoutError::Timeout) => disturb(self.vmm.id())?,
                Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the guest is gone")),
                Ok((line, _)) => match Line::parse(&line?) {
                    Some(Line::Problem(what)) => return Err(io::Error::other(what)),
                    Some(Line::Figure(Figure { name, .. }, value)) if *name == figure => return Ok(value),
                    _ => {}
                },
            }
        }
        Err(io::Error::other(format!("no {figure} after {} s", LIMIT.as_secs())))
    }

    /// The same of a load that is not the first on its part of the disk: then the host's kernel has that in its lists already.
    pub fn load_again(&mut self, figure: &str) -> io::Result<f64> {
        self.load(figure)?;
        self.load(figure)
    }

    /// The VMM, and the device processes in the order of their start.
    pub fn processes(&self) -> io::Result<Vec<Process>> {
        let mut all = vec![(self.vmm.id(), "outrigger".to_owned())];
        let mut children = memory::children(self.vmm.id())?;
        children.sort();
        all.extend(children);
        let count = |pid, what| fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count);
        let process = |(pid, name)| -> io::Result<Process> {
            let (threads, descriptors) = (count(pid, "task")?, count(pid, "fd")?);
            Ok(Process { name, private: memory::private(pid)?, threads, descriptors, runs: runs(pid)? })
        };
        all.into_iter().map(process).collect()
    }

    /// Has the guest power off.
    pub fn end(mut self) -> io::Result<()> {
        writeln!(self.input, "{END}")?;
        while self.console.recv_timeout(LIMIT).is_ok() {}
        let status = self.vmm.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("the VMM's {status}"))) }
    }

    /// The first line of the wanted kind from now on, and when it came.
    fn wait(&mut self, wanted: impl Fn(&Line) -> bool) -> io::Result<(Line, Instant)> {
        loop {
            let (line, when) = self.console.recv_timeout(LIMIT).map_err(|error| match error {
                RecvTimeoutError::Timeout => {
                    io::Error::other(format!("the guest says nothing for {} s", LIMIT.as_secs()))
                }
                RecvTimeoutError::Disconnected => io::Error::other("the guest is gone"),
            })?;
            match Line::parse(&line?) {
                Some(Line::Problem(what)) => return Err(io::Error::other(what)),
                Some(line) if wanted(&line) => return Ok((line, when)),
                _ => {}
            }
        }
    }
}

/// The third number of each thread's schedstat (Linux, Documentation/scheduler/sched-stats.rst).
fn runs(pid: u32) -> io::Result<usize> {
    let mut runs = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let number = text.split_whitespace().nth(2).and_then(|number| number.parse::<usize>().ok());
        runs += number.ok_or_else(|| io::Error::other(format!("schedstat says {text}")))?;
    }
    Ok(runs)
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Already gone after `end`.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}
