//! A device for the payload's check `gone` whose ioregionfd breaks while the guest reads by it: `faulty-registers SOCKET FAULT [RIGHT]`,
//! after RIGHT answers that are right (200). Messages it answers as ever. It prints `fault` at that moment, and with `answers-late`, which
//! is three seconds after the client's deadline, `late` when it has answered.

use std::error::Error;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use outrigger_protocol::ioregionfd::SocketType;
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION};
use outrigger_protocol::server::{
    ConfigSpace, Device, Interrupts, IoFd, IoFdKind, Irq, Listener, Memory, Options, Region, serve,
};

const BAR_SIZE: u32 = 0x1_0000;
/// The page that the check reads.
const PAGE: u64 = 0x2000;
const PAGE_SIZE: u64 = 0x1000;
const RIGHT: usize = 200;
/// A client waits for 10 s, and takes what is there when it comes to look, which may be a little later.
const LATE: Duration = Duration::from_secs(13);
const MESSAGE: usize = 32;
/// Configuration space: the command register, and the bit that enables memory BARs.
const COMMAND: usize = 4;
const MEMORY: u8 = 1 << 1;

/// A fault in place of the next answer.
#[derive(Clone, Copy, Debug)]
enum Fault {
    HangsUp,
    /// This answer and each one after it.
    AnswersTwice,
    AnswersShort,
    AnswersLate,
    NeverAnswers,
    /// Answers without end.
    Floods,
    /// Answers when the BAR has been disabled, and all that comes later.
    AnswersWhenDisabled,
    /// Ends the vfio-user connection, and never answers on the ioregionfd, which stays open.
    Leaves,
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "hangs-up" => Self::HangsUp,
            "answers-twice" => Self::AnswersTwice,
            "answers-short" => Self::AnswersShort,
            "answers-late" => Self::AnswersLate,
            "never-answers" => Self::NeverAnswers,
            "answers-when-disabled" => Self::AnswersWhenDisabled,
            "floods" => Self::Floods,
            "leaves" => Self::Leaves,
            _ => return None,
        })
    }
}

struct Faulty {
    config: ConfigSpace,
    regions: [Region; 8],
    fault: Fault,
    right: usize,
    /// The client's vfio-user connection.
    connection: Option<UnixStream>,
    /// Told each time that the BAR is disabled.
    disabled: Option<Sender<()>>,
    offered: Option<OwnedFd>,
}

impl Device for Faulty {
    fn regions(&self) -> &[Region] {
        &self.regions
    }
    fn irqs(&self) -> &[Irq] {
        self.config.irqs()
    }
    fn connected(&mut self, _: &Arc<Interrupts>) {
        let Ok((offered, own)) = SocketType::Seqpacket.pair() else { return };
        let (told, disabled) = channel();
        let (fault, right, connection) = (self.fault, self.right, self.connection.take());
        thread::spawn(move || answer(&own, right, fault, connection.as_ref(), &disabled));
        self.disabled = Some(told);
        self.offered = Some(offered);
    }
    fn memory_changed(&mut self, _: &Memory) {}
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.fill(0);
        if region == CONFIG_REGION {
            self.config.read(usize::try_from(offset).unwrap_or(usize::MAX), data);
        }
        Ok(())
    }
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if region == CONFIG_REGION {
            self.config.write(usize::try_from(offset).unwrap_or(usize::MAX), data);
            let mut command = [0];
            self.config.read(COMMAND, &mut command);
            if command[0] & MEMORY == 0 {
                // There may be no receiver.
                self.disabled.iter().for_each(|disabled| _ = disabled.send(()));
            }
        }
        Ok(())
    }
    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        let kind = IoFdKind::Ioregionfd { user_data: 0, posted_writes: false };
        let offered = self.offered.as_ref().filter(|_| region == BAR0_REGION);
        let offered = offered.map(|fd| IoFd { offset: PAGE, size: PAGE_SIZE, kind, pio: false, fd: fd.as_fd() });
        offered.into_iter().collect()
    }
    fn reset(&mut self) {
        self.config.reset();
    }
    fn disconnected(&mut self) {}
}

/// Keeps one register, for a while.
fn answer(socket: &OwnedFd, right: usize, fault: Fault, connection: Option<&UnixStream>, disabled: &Receiver<()>) {
    let mut register = [0; MESSAGE];
    for _ in 0..right {
        if !receive(socket, &mut register) || !reply(socket, &register) {
            return;
        }
    }
    if !receive(socket, &mut register) {
        return;
    }
    // Before there was a driver it was disabled, too.
    while disabled.try_recv().is_ok() {}
    say("fault");
    match fault {
        Fault::HangsUp => return,
        // From here on each answer comes one access early, so which one finds it out is a matter of chance.
        Fault::AnswersTwice => {
            while reply(socket, &register) && reply(socket, &register) && receive(socket, &mut register) {}
        }
        Fault::AnswersShort => _ = reply(socket, &register[..8]),
        Fault::AnswersLate => {
            thread::sleep(LATE);
            reply(socket, &register);
            say("late");
        }
        Fault::AnswersWhenDisabled => {
            if disabled.recv().is_ok() {
                while reply(socket, &register) && receive(socket, &mut register) {}
            }
        }
        Fault::NeverAnswers => {}
        Fault::Floods => while reply(socket, &register) {},
        Fault::Leaves => _ = connection.map(|connection| connection.shutdown(Shutdown::Both)),
    }
    thread::sleep(Duration::from_secs(600));
}

/// Waits for a command and does what it says, so that `register` is the answer; false at the end.
fn receive(socket: &OwnedFd, register: &mut [u8; MESSAGE]) -> bool {
    let mut command = [0; MESSAGE];
    let received = recv(socket.as_raw_fd(), &mut command, MsgFlags::empty()) == Ok(MESSAGE);
    // The least bit of the first byte tells writes from reads; the data are the last eight bytes.
    if received && command[0] & 1 == 1 {
        register[..8].copy_from_slice(&command[24..]);
    }
    received
}

fn reply(socket: &OwnedFd, bytes: &[u8]) -> bool {
    send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).is_ok()
}

/// To the process that started this one; it may have closed standard output.
fn say(word: &str) {
    let _ = writeln!(io::stdout(), "{word}");
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: faulty-registers SOCKET \
        hangs-up|answers-twice|answers-short|answers-late|answers-when-disabled|never-answers|floods|leaves [RIGHT]";
    let (path, fault) = arguments.next().zip(arguments.next()).ok_or(usage)?;
    let fault = Fault::parse(&fault).ok_or(usage)?;
    let right = arguments.next().map_or(Ok(RIGHT), |right| right.parse())?;
    let mut regions: [Region; 8] = Default::default();
    regions[BAR0_REGION as usize] = Region::messages(BAR_SIZE.into());
    regions[CONFIG_REGION as usize] = Region::messages(256);
    let config = ConfigSpace::new(0x1af4, 0x10f1, 0x08_80_00).with_bar(BAR0_REGION, BAR_SIZE);
    let mut device = Faulty { config, regions, fault, right, connection: None, disabled: None, offered: None };
    let listener = Listener::bind(path.as_ref())?;
    loop {
        let stream = listener.accept()?;
        device.connection = Some(stream.try_clone()?);
        serve(&mut device, stream, &Options::default())?;
    }
}
