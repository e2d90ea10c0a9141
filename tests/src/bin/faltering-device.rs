//! A device program that is a real one but for one message: `faltering-device SCRIPT PROGRAM ARGUMENTS…` becomes PROGRAM and stands between it and
//! the client, whose socket is standard input.
//!
//! SCRIPT is a file with `COUNT [MESSAGE MOMENT FAULT]`: that many processes of this program behave like that, at the client's MESSAGE-th
//! message, and later ones as PROGRAM alone. Messages are counted from 0; MOMENT is `before` PROGRAM has seen it, or `after` it has answered,
//! which the client does not learn. The commands that came are written to SCRIPT.seen, a line each, before they are passed on; the moment is
//! told by a file SCRIPT.faltered.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::Pid;
use outrigger_protocol::wire::{FLAG_ERROR, HEADER_SIZE, Header, TYPE_REPLY};
use outrigger_tests::raw::{self, Message};
use zerocopy::IntoBytes;

/// No message has this number: it has 16 bits.
const NONE: u32 = u32::MAX;
/// How a process of this program is told to be the one in the middle: the environment has PROGRAM's number, the path of the script, and its
/// plan.
const BETWEEN: &str = "FALTERING_DEVICE";
const EIO: u32 = 5;

/// The client gets this in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// PROGRAM dies.
    Killed,
    /// The connection is closed.
    Closes,
    /// It is closed, and PROGRAM lives on.
    HangsUp,
    /// Bytes that are no answer.
    Nonsense,
    /// An answer with nothing in it.
    Empty,
    /// An answer as long as the right one, with other bytes in it; in place of no answer, an empty one.
    Garbled,
    /// A refusal.
    Refuses,
    /// Nothing.
    Silent,
    /// Nothing, since PROGRAM is stopped.
    Stops,
}

/// The fault of one process, and its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    message: usize,
    is_before: bool,
    fault: Fault,
}

impl Plan {
    fn parse(words: &[&str]) -> Option<Self> {
        let [message, moment, fault] = words else { return None };
        let fault = match *fault {
            "killed" => Fault::Killed,
            "closes" => Fault::Closes,
            "hangs-up" => Fault::HangsUp,
            "nonsense" => Fault::Nonsense,
            "empty" => Fault::Empty,
            "garbled" => Fault::Garbled,
            "refuses" => Fault::Refuses,
            "silent" => Fault::Silent,
            "stops" => Fault::Stops,
            _ => return None,
        };
        let is_before = *moment == "before";
        (is_before || *moment == "after").then_some(Self { message: message.parse().ok()?, is_before, fault })
    }
}

/// Takes this process's turn from the script.
fn take_turn(script: &str) -> Result<Option<String>, Box<dyn Error>> {
    let text = fs::read_to_string(script)?;
    let (count, plan) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let Some(rest) = count.parse::<u32>()?.checked_sub(1) else { return Ok(None) };
    fs::write(script, format!("{rest} {plan}"))?;
    Ok(Some(plan.to_owned()))
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(plan) = std::env::var(BETWEEN) {
        return between(&plan);
    }
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: faltering-device SCRIPT PROGRAM ARGUMENTS…";
    let (script, program) = arguments.next().zip(arguments.next()).ok_or(usage)?;
    let script = script.into_string().map_err(|_| usage)?;
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(plan) = take_turn(&script)? {
        let (theirs, ours) = UnixStream::pair()?;
        let mut middle = Command::new(std::env::current_exe()?);
        middle
            .env(BETWEEN, format!("{} {script} {plan}", std::process::id()))
            .stdin(Stdio::inherit())
            .stdout(OwnedFd::from(ours));
        middle.spawn()?;
        command.stdin(OwnedFd::from(theirs));
    }
    Err(command.exec().into())
}

/// The two sockets, and the message that is waited for.
struct Between {
    client: UnixStream,
    device: UnixStream,
    program: Pid,
    script: String,
    fault: Option<Plan>,
    /// The number of the client's message whose answer is the moment.
    awaited: AtomicU32,
    /// Nothing is passed on to the client any more.
    is_mute: AtomicBool,
}

fn between(settings: &str) -> Result<(), Box<dyn Error>> {
    let words: Vec<&str> = settings.split_whitespace().collect();
    let [program, script, plan @ ..] = words.as_slice() else { return Err("no script".into()) };
    let (program, script) = (Pid::from_raw(program.parse()?), (*script).to_owned());
    let fault = Plan::parse(plan);
    if fault.is_none() && !plan.is_empty() {
        return Err("usage: COUNT [MESSAGE before|after FAULT]".into());
    }
    let client = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let device = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let (awaited, is_mute) = (AtomicU32::new(NONE), AtomicBool::new(false));
    let mut seen = File::create(format!("{script}.seen"))?;
    let between = Arc::new(Between { client, device, program, script, fault, awaited, is_mute });
    let answering = Arc::clone(&between);
    thread::spawn(move || {
        while let Ok(Some(message)) = raw::receive(&answering.device) {
            answering.to_client(&message);
        }
        // The program has ended, which the client sees as it would have seen it without this one.
        exit(0);
    });
    let mut count = 0;
    while let Ok(Some(message)) = raw::receive(&between.client) {
        if message.header.is_command() {
            writeln!(seen, "{}", message.header.command)?;
            count += 1;
            if !between.is_to_be_passed(count - 1, &message) {
                continue;
            }
        }
        pass(&between.device, &message);
    }
    // The client has left. Whether the program notices is its own affair, where this is no hang-up of its own making.
    if !between.is_mute.load(Ordering::SeqCst) {
        let _ = shutdown(between.device.as_raw_fd(), Shutdown::Write);
    }
    loop {
        thread::park();
    }
}

impl Between {
    /// Whether the program is to see the client's command with this number.
    fn is_to_be_passed(&self, count: usize, message: &Message) -> bool {
        if self.is_mute.load(Ordering::SeqCst) {
            return false;
        }
        let Some(plan) = self.fault.filter(|plan| plan.message == count) else { return true };
        if plan.is_before {
            self.falter(plan.fault, message);
            return false;
        }
        self.awaited.store(message.header.message_id.into(), Ordering::SeqCst);
        true
    }

    fn to_client(&self, message: &Message) {
        let is_awaited =
            message.header.is_reply() && u32::from(message.header.message_id) == self.awaited.load(Ordering::SeqCst);
        if let (true, Some(plan)) = (is_awaited, self.fault) {
            self.awaited.store(NONE, Ordering::SeqCst);
            self.falter(plan.fault, message);
        } else if !self.is_mute.load(Ordering::SeqCst) {
            pass(&self.client, message);
        }
    }

    /// Does what is planned in place of the answer to a message, or in place of this answer.
    fn falter(&self, fault: Fault, message: &Message) {
        let header = Header { flags: TYPE_REPLY, message_size: size(0), error: 0, ..message.header };
        self.is_mute.store(fault != Fault::Refuses, Ordering::SeqCst);
        // The test waits for it, and says so if it does not come.
        let _ = fs::write(format!("{}.faltered", self.script), "");
        match fault {
            Fault::Killed => {
                // An error says that it has ended already.
                let _ = kill(self.program, Signal::SIGKILL);
            }
            Fault::Stops => _ = kill(self.program, Signal::SIGSTOP),
            Fault::Closes => exit(0),
            Fault::HangsUp => _ = shutdown(self.client.as_raw_fd(), Shutdown::Both),
            Fault::Nonsense => _ = raw::send(&self.client, &[0x5a; 64], &[]),
            Fault::Empty => _ = raw::send(&self.client, header.as_bytes(), &[]),
            Fault::Garbled => {
                let payload = if message.header.is_reply() { vec![0x5a; message.payload.len()] } else { Vec::new() };
                let header = Header { message_size: size(payload.len()), ..header };
                let _ = raw::send(&self.client, &[header.as_bytes(), &payload].concat(), &[]);
            }
            Fault::Refuses => {
                let header = Header { flags: TYPE_REPLY | FLAG_ERROR, error: EIO, ..header };
                let _ = raw::send(&self.client, header.as_bytes(), &[]);
            }
            Fault::Silent => {}
        }
    }
}

fn size(payload: usize) -> u32 {
    u32::try_from(HEADER_SIZE + payload).unwrap_or(u32::MAX)
}

/// Passes on a message as it came. The peer may be gone, which the other side is told when it looks.
fn pass(stream: &UnixStream, message: &Message) {
    let fds: Vec<RawFd> = message.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let _ = raw::send(stream, &[message.header.as_bytes(), &message.payload].concat(), &fds);
}
