//! One VMM from start to end.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::memory;
use super::profile::Profile;
use super::resources::{make_disk, make_tap, remove_tap};
use super::subject::{DISK, RAM, SOCKET, Subject, TAP};
use crate::figure::{Figure, Unit};
use crate::guest::Line;
use crate::measurement::Measurement;
use crate::network::HOST;

/// How long one VMM may take, in the test bed's time.
const LIMIT: Duration = Duration::from_secs(120);
/// How much of the console is shown when something went wrong.
const TAIL: usize = 20;

/// Boots the guest, prints what it measures, and leaves nothing behind.
pub fn run(subject: &Subject, loads: &str, profile: bool) -> io::Result<()> {
    make_disk(DISK, RAM)?;
    make_tap(TAP, Some(HOST), 1)?;
    let server = subject.server.map(start_server).transpose()?;
    let mut profile = profile.then(Profile::start).transpose()?;
    let result = boot(subject, loads, server.as_ref(), &mut profile);
    let profiled = profile.map_or(Ok(()), Profile::finish);
    if let Some(mut server) = server {
        end(&mut server)?;
        let _ = fs::remove_file(SOCKET);
    }
    remove_tap(TAP)?;
    result.and(profiled)
}

fn start_server(command: fn() -> Command) -> io::Result<Child> {
    let mut server = command().stdin(Stdio::null()).spawn()?;
    for _ in 0..1000 {
        if Path::new(SOCKET).exists() {
            return Ok(server);
        }
        sleep(Duration::from_millis(10));
    }
    end(&mut server)?;
    Err(io::Error::other("the storage daemon does not listen"))
}

fn end(child: &mut Child) -> io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}

fn boot(subject: &Subject, loads: &str, server: Option<&Child>, profile: &mut Option<Profile>) -> io::Result<()> {
    let cmdline =
        format!("console=ttyS0 quiet panic=-1 iomem=relaxed ipv6.disable=1 lab.part={} lab={loads}", subject.part);
    let mut command = (subject.vmm)(&cmdline);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    profile.iter_mut().for_each(Profile::begin);
    let start = Instant::now();
    let mut vmm = command.spawn()?;
    let result = follow(subject, &mut vmm, start, server, profile);
    if result.is_err() {
        end(&mut vmm)?;
    }
    result
}

/// Reads the guest's console until the guest is gone.
fn follow(
    subject: &Subject,
    vmm: &mut Child,
    start: Instant,
    server: Option<&Child>,
    profile: &mut Option<Profile>,
) -> io::Result<()> {
    let console = BufReader::new(vmm.stdout.take().ok_or_else(|| io::Error::other("no console"))?);
    let (sender, lines) = mpsc::sync_channel(64);
    thread::spawn(move || {
        for line in console.lines() {
            if sender.send((line, Instant::now())).is_err() {
                break;
            }
        }
    });
    let mut others = Vec::new();
    let mut problem = Some("the guest's work did not end".to_owned());
    loop {
        let (line, when) = match lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok((line, when)) => (line?, when),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(io::Error::other(format!("no end after {} s{}", LIMIT.as_secs(), tail(&others))));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        };
        match Line::parse(&line) {
            Some(Line::Init) => {
                let nanoseconds = u64::try_from((when - start).as_nanos()).unwrap_or(u64::MAX);
                let value = Unit::Milliseconds.per(nanoseconds, 1);
                profile.iter_mut().zip(Figure::named("boot")).for_each(|(profile, figure)| profile.end(figure, value));
                print(subject, "boot", value);
            }
            Some(Line::Begin(_)) => profile.iter_mut().for_each(Profile::begin),
            Some(Line::Figure(figure, value)) => {
                profile.iter_mut().for_each(|profile| profile.end(figure, value));
                print(subject, figure.name, value);
            }
            Some(Line::Idle) => {
                print_memory(subject, vmm.id(), server)?;
                problem = None;
            }
            Some(Line::Problem(what)) => problem = Some(what),
            None => others.push(line),
        }
    }
    let status = vmm.wait()?;
    if !status.success() {
        problem = Some(format!("the VMM's {status}"));
    }
    problem.map_or(Ok(()), |problem| Err(io::Error::other(format!("{problem}{}", tail(&others)))))
}

fn print_memory(subject: &Subject, vmm: u32, server: Option<&Child>) -> io::Result<()> {
    print(subject, "memory-vmm", mebibytes(vmm)?);
    if let Some(server) = server {
        print(subject, "memory-blk", mebibytes(server.id())?);
    }
    for (pid, name) in memory::children(vmm)? {
        match name.as_str() {
            "outrigger-blk" => print(subject, "memory-blk", mebibytes(pid)?),
            "outrigger-net" => print(subject, "memory-net", mebibytes(pid)?),
            _ => {}
        }
    }
    Ok(())
}

fn mebibytes(pid: u32) -> io::Result<f64> {
    memory::private(pid).map(|bytes| Unit::Mebibytes.per(bytes, 1))
}

fn print(subject: &Subject, figure: &str, value: f64) {
    let measurement = Measurement { subject: subject.name.to_owned(), figure: figure.to_owned(), value };
    println!("lab:   {figure} {value:.2}");
    println!("{}", measurement.to_line());
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(TAIL)..].iter().map(|line| format!("\n    {}", line.trim_end())).collect()
}
