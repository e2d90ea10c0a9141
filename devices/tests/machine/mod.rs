//! A virtual machine with a disk, as its device process sees it: no guest, but its driver's accesses and requests.

#![allow(dead_code, reason = "each test uses some of it")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outrigger_protocol::client::{Client, IoFdKind, Journal, Options};
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::pci::{BAR0_REGION, MSIX_IRQ};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::disk_driver::{self, Disk, QUEUES, RAM_SIZE, Random};
use crate::guest_ram::Ram;

const BAR_SIZE: u64 = 0x4000;

/// A device process and the connection to it.
pub struct Process {
    /// The process that was started.
    pub child: Child,
    /// The number of the one that serves: by hand, a child of that one.
    pub serving: u32,
    /// Where it listens, by hand.
    socket: Option<PathBuf>,
    pub client: Client,
    doorbells: Vec<File>,
}

/// How processes are started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// By a VMM, with a socket.
    Vmm,
    /// By hand: they listen beside the image.
    Hand,
}

impl Process {
    pub fn start(by: By, image: &Path, ram: &GuestMemoryMmap, succeeds: bool) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger-blk"));
        command.args(["--options", &format!("path={},queues={QUEUES}", image.display())]);
        command.env_remove("OUTRIGGER_SUCCESSOR");
        let (child, ours) = if by == By::Vmm {
            let (ours, theirs) = UnixStream::pair().unwrap();
            command.args(["--fd", "0"]).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
            if succeeds {
                command.env("OUTRIGGER_SUCCESSOR", "1");
            }
            (command.spawn().unwrap(), ours)
        } else {
            let child = command.arg("--socket").arg(image.with_extension("sock")).spawn().unwrap();
            (child, Self::knock(image))
        };
        let client = Self::client(ours, ram);
        let (serving, socket) = match by {
            By::Vmm => (child.id(), None),
            By::Hand => (Self::child_of(child.id()), Some(image.with_extension("sock"))),
        };
        Self { child, serving, socket, client, doorbells: Vec::new() }
    }

    fn child_of(id: u32) -> u32 {
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    /// Connects to a process that listens beside the image, or is about to.
    fn knock(image: &Path) -> UnixStream {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(image.with_extension("sock")) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn client(stream: UnixStream, ram: &GuestMemoryMmap) -> Client {
        let options = Options { journal: true, ..Options::default() };
        Client::new(stream, Arc::new(Ram(ram.clone())), &options).unwrap()
    }

    /// Connects as a client does before the guest may use the device.
    pub fn connect(&mut self, ram: &File, interrupts: &[EventFd]) {
        self.client.dma_map(0, RAM_SIZE, Some((ram.as_fd(), 0))).unwrap();
        // SAFETY: the eventfds live until after the call.
        let fds: Vec<_> = interrupts.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }).collect();
        self.client.set_irq_eventfds(MSIX_IRQ, 0, &fds).unwrap();
        let io_fds = self.client.region_io_fds(BAR0_REGION, BAR_SIZE).unwrap();
        let io_fds = io_fds.into_iter().filter(|io_fd| matches!(io_fd.kind, IoFdKind::Ioeventfd { .. }));
        self.doorbells = io_fds.map(|io_fd| io_fd.fd.lend().try_clone_to_owned().unwrap().into()).collect();
        assert_eq!(self.doorbells.len(), usize::from(QUEUES));
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        // By hand, the one that serves dies with it, a moment later. Until then a client would still reach it.
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.socket.as_ref().is_some_and(|socket| UnixStream::connect(socket).is_ok()) {
            assert!(Instant::now() < deadline, "the process lives on that serves");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The device as the guest has it, whatever process serves it now.
pub struct Machine {
    by: By,
    image: PathBuf,
    pub ram: GuestMemoryMmap,
    pub file: File,
    pub interrupts: Vec<EventFd>,
    journal: Journal,
    pub process: Process,
    pub random: Random,
    /// Whether an access may find the process killed.
    pub is_mortal: bool,
    pub kills: usize,
    pub migrations: usize,
}

impl Machine {
    pub fn new(by: By, image: &Path, seed: u64) -> Self {
        let fd = nix::sys::memfd::memfd_create(c"ram", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let file = File::from(fd);
        file.set_len(RAM_SIZE).unwrap();
        let offset = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), usize::try_from(RAM_SIZE).unwrap(), Some(offset));
        let ram = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let interrupts: Vec<_> = (0..=QUEUES).map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap()).collect();
        let mut process = Process::start(by, image, &ram, false);
        let journal = Journal::create(process.client.journal_format().unwrap()).unwrap();
        assert!(process.client.begin_journal(&journal).unwrap().is_empty());
        process.connect(&file, &interrupts);
        Self {
            by,
            image: image.into(),
            ram,
            file,
            interrupts,
            journal,
            process,
            random: Random(seed),
            is_mortal: true,
            kills: 0,
            migrations: 0,
        }
    }

    /// Kills the process. Its successor may have been started before, and may be killed as well before it is the device.
    pub fn kill(&mut self) {
        loop {
            let early = self.by == By::Vmm && self.random.below(2) == 0;
            if !early {
                self.process.kill();
            }
            let mut successor = Process::start(self.by, &self.image, &self.ram, true);
            successor.client.offer_journal(&self.journal).unwrap();
            if early {
                self.process.kill();
            }
            successor.connect(&self.file, &self.interrupts);
            self.kills += 1;
            if self.random.below(8) == 0 {
                let pid = nix::unistd::Pid::from_raw(successor.child.id().cast_signed());
                let pause = Duration::from_micros(self.random.below(1500));
                let killer = std::thread::spawn(move || {
                    std::thread::sleep(pause);
                    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
                });
                // Told or not.
                let _ = successor.client.take_journal();
                killer.join().unwrap();
                self.process = successor;
                continue;
            }
            successor.client.take_journal().unwrap();
            self.process = successor;
            return;
        }
    }

    /// Has another process go on by the protocol's migration alone: the first one is stopped, not killed. The journal is
    /// another one from then on.
    pub fn migrate(&mut self) {
        let mut data = vec![0; 1 << 20];
        self.process.client.set_device_state(DeviceState::StopCopy).unwrap();
        let length = self.process.client.read_migration_data(&mut data).unwrap();
        let mut target = Process::start(self.by, &self.image, &self.ram, true);
        self.journal = Journal::create(target.client.journal_format().unwrap()).unwrap();
        target.client.begin_journal(&self.journal).unwrap();
        target.client.set_device_state(DeviceState::Resuming).unwrap();
        target.client.write_migration_data(&data[..length]).unwrap();
        target.client.set_device_state(DeviceState::Stop).unwrap();
        target.connect(&self.file, &self.interrupts);
        self.process.client.close();
        assert!(self.process.child.wait().unwrap().success());
        target.client.set_device_state(DeviceState::Running).unwrap();
        self.process = target;
        self.migrations += 1;
    }

    /// An access of the guest's, during which the process may be killed; it is done again by a successor then.
    fn access<T>(&mut self, access: impl Fn(&Client) -> Result<T, outrigger_protocol::client::ClientError>) -> T {
        let (before, after) = (self.random.below(4) == 0, self.random.below(4) == 0);
        let (before, after) = (before && self.is_mortal, after && self.is_mortal);
        if before {
            self.kill();
        }
        let result = access(&self.process.client).unwrap();
        if !after {
            return result;
        }
        // It was done, and nobody has heard the answer.
        self.kill();
        access(&self.process.client).unwrap()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.access(|client| client.region_write(BAR0_REGION, offset, data));
    }

    pub fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        self.access(|client| {
            let mut data = [0; N];
            client.region_read(BAR0_REGION, offset, &mut data).map(|()| data)
        })
    }

    pub fn reset(&mut self) {
        self.write(0x14, &[0]);
        while self.read::<1>(0x14) != [0] {}
    }

    /// The client leaves, and another one of the same machine comes.
    pub fn reconnect(&mut self) {
        self.process.client.close();
        self.process.client = Process::client(Process::knock(&self.image), &self.ram);
        self.journal = Journal::create(self.process.client.journal_format().unwrap()).unwrap();
        assert!(self.process.client.begin_journal(&self.journal).unwrap().is_empty());
        self.process.connect(&self.file, &self.interrupts);
    }

    /// Resets the device, and brings it into service, while it is killed.
    pub fn bring_up(&mut self) {
        self.reset();
        let end = disk_driver::parts(QUEUES)[0];
        self.ram.write_slice(&vec![0; usize::try_from(end).unwrap()], GuestAddress(0)).unwrap();
        for status in [1, 3] {
            self.write(0x14, &[status]);
        }
        // Indirect descriptors are not used; the event index is.
        let features: u64 = 1 << 32 | 1 << 29 | 1 << 9;
        for (select, half) in (0u32..).zip(features.to_le_bytes().chunks(4)) {
            self.write(0x08, &select.to_le_bytes());
            self.write(0x0c, half);
        }
        self.write(0x14, &[0xb]);
        assert_eq!(self.read::<1>(0x14), [0xb]);
        self.write(0x10, &0u16.to_le_bytes());
        for queue in 0..QUEUES {
            self.write(0x16, &queue.to_le_bytes());
            self.write(0x18, &disk_driver::SIZE.to_le_bytes());
            self.write(0x1a, &(queue + 1).to_le_bytes());
            for (offset, address) in [0x20, 0x28, 0x30].into_iter().zip(disk_driver::parts(queue)) {
                self.write(offset, &address.to_le_bytes());
            }
            self.write(0x1c, &[1, 0]);
            assert_eq!(self.read::<2>(0x1a), (queue + 1).to_le_bytes());
        }
        self.write(0x14, &[0xf]);
        assert_eq!(self.read::<1>(0x14), [0xf]);
    }

    fn ring(&self, queue: u16) {
        // The process may be dead; then the next one looks at the queue by itself.
        use std::io::Write;
        (&self.process.doorbells[usize::from(queue)]).write_all(&1u64.to_ne_bytes()).unwrap();
    }

    /// Sleeps until a queue has interrupted.
    pub fn wait(&self) {
        // SAFETY: the eventfds are borrowed.
        let fds = self.interrupts[1..].iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) });
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let ready = poll(&mut fds, PollTimeout::from(10_000u16)).unwrap();
        assert!(ready > 0, "an interrupt was lost");
        self.interrupts[1..].iter().for_each(|fd| drop(fd.read()));
    }
}

/// Some requests, and a random part of what one of them takes; returns how many were completed.
pub fn load(machine: &mut Machine, disk: &mut Disk) -> u64 {
    let until = machine.random.below(150);
    let mut done = 0;
    loop {
        for queue in 0..QUEUES {
            if disk.submit(queue) {
                machine.ring(queue);
            }
        }
        if done >= until {
            break;
        }
        let completed = disk.collect();
        done += completed;
        if completed == 0 && disk.wants_interrupts() {
            machine.wait();
        }
    }
    let pause = Duration::from_nanos(machine.random.below(100_000));
    let now = Instant::now();
    while now.elapsed() < pause {
        std::hint::spin_loop();
    }
    done
}
