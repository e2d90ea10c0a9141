//! The cost of a register access by each path, on a host whose KVM has ioregionfd.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use super::scaling::guest::{Guest, Machine};
use crate::measurement::Measurement;

const SOCKET: &str = "/tmp/paths.sock";
const ALL: &str = "mapped,ioeventfd,ioregionfd,message";
const STAND_IN: &str = "mapped,ioeventfd,stand-in,message";
/// With an ioregionfd in a device, messages to it are never posted.
const MESSAGES: &str = "mapped,ioeventfd,message";

/// One guest: the name of a path, the allowed paths, the place of its accesses in the device of
/// `devices/examples/paths.rs`, and the kinds of accesses.
struct Run(&'static str, &'static str, &'static str, &'static [&'static str]);

const BOTH: &[&str] = &["access-read", "access-write"];
const POSTED: &[&str] = &["access-posted"];

const RUNS: &[Run] = &[
    Run("exit", ALL, "nobody", BOTH),
    Run("message", ALL, "0", BOTH),
    Run("message", MESSAGES, "0", POSTED),
    Run("stand-in-stream", STAND_IN, "1", BOTH),
    Run("stand-in-stream", STAND_IN, "3", POSTED),
    Run("stand-in-seqpacket", STAND_IN, "2", BOTH),
    Run("stand-in-seqpacket", STAND_IN, "4", POSTED),
    Run("ioregionfd-stream", ALL, "1", BOTH),
    Run("ioregionfd-stream", ALL, "3", POSTED),
    Run("ioregionfd-seqpacket", ALL, "2", BOTH),
    Run("ioregionfd-seqpacket", ALL, "4", POSTED),
    Run("ioeventfd", ALL, "5", &["access-doorbell"]),
    Run("mapped", ALL, "6", BOTH),
];

/// The paths, as subjects of the report.
pub fn is_path(subject: &str) -> bool {
    RUNS.iter().any(|run| run.0 == subject)
}

/// Prints what was measured.
pub fn measure() -> io::Result<()> {
    RUNS.iter().try_for_each(run)
}

fn run(Run(path, allowed, target, figures): &Run) -> io::Result<()> {
    let mut device = serve()?;
    let devices = vec![format!("--device socket={SOCKET} --paths {allowed}")];
    let machine = Machine { cpus: 1, devices, cmdline: format!("iomem=relaxed lab.target={target}") };
    let result = Guest::boot(&machine).and_then(|mut guest| {
        for figure in *figures {
            // A doorbell by eventfd is a posted write, too.
            print(path, &figure.replace("doorbell", "posted"), guest.load(figure)?);
        }
        guest.end()
    });
    device.kill()?;
    device.wait()?;
    fs::remove_file(SOCKET)?;
    result
}

fn print(path: &str, figure: &str, value: f64) {
    println!("lab:   {path} {figure} {value:.3}");
    println!("{}", Measurement { subject: path.into(), figure: figure.into(), value }.to_line());
}

fn serve() -> io::Result<Child> {
    let mut device = Command::new("paths").arg(SOCKET).stdin(Stdio::null()).spawn()?;
    for _ in 0..1000 {
        if Path::new(SOCKET).exists() {
            return Ok(device);
        }
        sleep(Duration::from_millis(10));
    }
    device.kill()?;
    device.wait()?;
    Err(io::Error::other("the device does not listen"))
}
