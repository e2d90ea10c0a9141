//! Much at once for a long time: vCPU-like threads on one connection, whose device reaches the client's memory by messages
//! while it answers, and from a thread of its own, and raises interrupts. Every value is checked, and no thread may
//! stall. Also a server that never replies: it costs its own callers their deadline, and other callers nothing.
//!
//! `OUTRIGGER_STRESS_SECONDS`: how long, half of it with a twin socket. Default: 60.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::device::MESSAGES;
use common::memory::GuestMemory;
use common::raw::Raw;
use common::{PATIENCE, Server, client, watched};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::time::{ClockId, clock_gettime};
use outrigger_protocol::client::{Client, ClientError, Options};
use outrigger_protocol::pci;
use outrigger_protocol::server::{Device, Interrupts, Irq, Memory, Options as ServerOptions, Region, serve};
use outrigger_protocol::wire::IRQ_EVENTFD;

const THREADS: usize = 4;
/// A thread that makes no progress for as long has stalled.
const STALL: Duration = Duration::from_secs(5);
/// Each thread's part of the region and of memory, in bytes; the last one of memory is the device's own thread's.
const LANE: usize = 0x4000;
/// In a lane of the region: takes posted writes, which count up.
const POSTED: u64 = 0;
/// Takes acknowledged writes, before whose reply the device has copied half a lane of memory.
const COPY: u64 = 8;
/// From here on reads have [`fixed`] values.
const FIXED: u64 = 0x100;

/// The measurements must not disturb each other.
static ALONE: Mutex<()> = Mutex::new(());

fn fixed(offset: u64) -> u8 {
    (offset * 7 + (offset >> 8)).to_le_bytes()[0]
}

/// The bytes that a thread puts into memory before it has its device copy them: as many as its number says.
fn pattern(thread: usize, number: u64) -> Vec<u8> {
    let length = 1 + usize::try_from(number * 97).unwrap() % (LANE / 2);
    let first = u8::try_from(thread).unwrap() ^ number.to_le_bytes()[0];
    (0..length).map(|i| first.wrapping_add(i.to_le_bytes()[0])).collect()
}

/// How far a thread got.
type Progress = Arc<AtomicU64>;

struct StressDevice {
    regions: [Region; 1],
    irqs: Vec<Irq>,
    interrupts: Option<Arc<Interrupts>>,
    memory: Arc<Mutex<Memory>>,
    posted: [u64; THREADS],
    copied: [u64; THREADS],
    /// Of the device's own thread.
    progress: Progress,
    worker: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl StressDevice {
    fn new(progress: Progress) -> Self {
        let mut irqs = vec![Irq::default(); pci::NUM_IRQS as usize];
        irqs[pci::MSIX_IRQ as usize] = Irq { count: u32::try_from(THREADS).unwrap(), flags: IRQ_EVENTFD };
        Self {
            regions: [Region::messages((THREADS * LANE) as u64)],
            irqs,
            interrupts: None,
            memory: Arc::default(),
            posted: [0; THREADS],
            copied: [0; THREADS],
            progress,
            worker: None,
            stop: Arc::default(),
        }
    }
}

fn lane(offset: u64) -> (usize, u64) {
    (usize::try_from(offset).unwrap() / LANE, offset % LANE as u64)
}

impl Device for StressDevice {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[Irq] {
        &self.irqs
    }

    fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        self.interrupts = Some(interrupts.clone());
        let (memory, progress, stop) = (self.memory.clone(), self.progress.clone(), self.stop.clone());
        self.worker = Some(std::thread::spawn(move || {
            let address = (THREADS * LANE) as u64;
            while !stop.load(Ordering::SeqCst) {
                // Not locked while it is used: this thread would take the lock again before the other one wakes up.
                let memory = memory.lock().unwrap().clone();
                if !memory.is_writable(address, LANE) {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                let data = pattern(THREADS, progress.load(Ordering::SeqCst));
                let mut back = vec![0; data.len()];
                let done = memory.write(address, &data).and_then(|()| memory.read(address, &mut back));
                if done.is_ok() {
                    assert!(back == data, "the device's own thread reads something else than it wrote");
                    progress.fetch_add(1, Ordering::SeqCst);
                }
            }
        }));
    }

    fn memory_changed(&mut self, memory: &Memory) {
        *self.memory.lock().unwrap() = memory.clone();
    }

    fn read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match lane(offset) {
            (thread, POSTED) => data.copy_from_slice(&self.posted[thread].to_le_bytes()),
            (thread, COPY) => data.copy_from_slice(&self.copied[thread].to_le_bytes()),
            (_, start) => (start..).zip(data).for_each(|(at, byte)| *byte = fixed(at)),
        }
        Ok(())
    }

    fn write(&mut self, _region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let number = u64::from_le_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
        match lane(offset) {
            (thread, POSTED) => {
                assert_eq!(number, self.posted[thread] + 1, "thread {thread}: a posted write is lost or out of order");
                self.posted[thread] = number;
            }
            (thread, COPY) => {
                let memory = self.memory.lock().unwrap().clone();
                let source = (thread * LANE) as u64;
                let expected = pattern(thread, number);
                let mut found = vec![0; expected.len()];
                memory.read(source, &mut found).map_err(|_| Errno::EFAULT)?;
                assert!(found == expected, "thread {thread}: the device reads something else from memory");
                memory.write(source + LANE as u64 / 2, &found).map_err(|_| Errno::EFAULT)?;
                self.copied[thread] = number;
                self.interrupts.as_ref().unwrap().trigger(pci::MSIX_IRQ, u32::try_from(thread).unwrap());
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn disconnected(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let joined = self.worker.take().map(JoinHandle::join);
        assert!(joined.is_none_or(|joined| joined.is_ok()), "the device's own thread failed");
    }
}

/// One vCPU: posts, reads back, has memory copied, and takes the interrupt, until it is told to stop.
fn vcpu(client: &Client, ram: &GuestMemory, thread: usize, eventfd: &EventFd, progress: &AtomicU64, stop: &AtomicBool) {
    let base = (thread * LANE) as u64;
    let (mut posted, mut interrupts) = (0u64, 0);
    let word = |at| {
        let mut word = [0; 8];
        client.region_read(0, base + at, &mut word).unwrap();
        u64::from_le_bytes(word)
    };
    for number in 1u64.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        for _ in 0..1 + number % 5 {
            posted += 1;
            client.region_write_posted(0, base + POSTED, &posted.to_le_bytes()).unwrap();
        }
        assert_eq!(word(POSTED), posted, "thread {thread}: a posted write is not there yet");

        let (data, source) = (pattern(thread, number), thread * LANE);
        ram.0.lock().unwrap()[source..source + data.len()].copy_from_slice(&data);
        client.region_write(0, base + COPY, &number.to_le_bytes()).unwrap();
        let copy = ram.0.lock().unwrap()[source + LANE / 2..][..data.len()].to_vec();
        assert!(copy == data, "thread {thread}: the device's copy is wrong");
        assert_eq!(word(COPY), number);
        // It was raised before the reply.
        interrupts += eventfd.read().expect("an interrupt");
        assert_eq!(interrupts, number, "thread {thread}: interrupts");

        let mut values = vec![0; 1 + data.len() % 0x1000];
        client.region_read(0, base + FIXED, &mut values).unwrap();
        assert!((FIXED..).zip(&values).all(|(at, &value)| value == fixed(at)), "thread {thread}: a read is wrong");
        progress.store(number, Ordering::SeqCst);
    }
}

/// Watches until the time is over; panics if a thread stalls or has failed.
fn watch(progress: &[Progress], time: Duration) {
    let start = Instant::now();
    let mut last: Vec<_> = progress.iter().map(|_| (0, start)).collect();
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_millis(100));
        for (i, (progress, last)) in progress.iter().zip(&mut last).enumerate() {
            let now = progress.load(Ordering::SeqCst);
            if now != last.0 {
                *last = (now, Instant::now());
            }
            assert!(last.1.elapsed() < STALL, "thread {i} of {THREADS} and the device's stands still at {now}");
        }
    }
}

fn stress(twin_socket: bool, time: Duration) {
    let progress: Vec<Progress> = (0..=THREADS).map(|_| Progress::default()).collect();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut device = StressDevice::new(progress[THREADS].clone());
    let server = std::thread::spawn(move || {
        serve(&mut device, theirs, &ServerOptions { deadline: PATIENCE, ..ServerOptions::default() })
    });
    let ram = GuestMemory::new((THREADS + 1) * LANE);
    let client = Arc::new(
        Client::new(ours, ram.clone(), &Options { deadline: PATIENCE, twin_socket, ..Options::default() }).unwrap(),
    );
    client.dma_map(0, ((THREADS + 1) * LANE) as u64, None).unwrap();
    let flags = EfdFlags::EFD_NONBLOCK;
    let eventfds: Arc<Vec<_>> = Arc::new((0..THREADS).map(|_| EventFd::from_flags(flags).unwrap()).collect());
    let vectors: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
    client.set_irq_eventfds(pci::MSIX_IRQ, 0, &vectors).unwrap();

    // Not scoped, so that a thread that has stalled is not waited for.
    let stop = Arc::new(AtomicBool::new(false));
    let vcpus: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (client, ram, eventfds) = (client.clone(), ram.clone(), eventfds.clone());
            let (progress, stop) = (progress[thread].clone(), stop.clone());
            std::thread::spawn(move || vcpu(&client, &ram, thread, &eventfds[thread], &progress, &stop))
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let events = std::thread::spawn({
        let (client, done) = (client.clone(), done.clone());
        move || {
            watched(&client, || {
                while !done.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
    });
    watch(&progress, time);
    stop.store(true, Ordering::SeqCst);
    for vcpu in vcpus {
        vcpu.join().unwrap();
    }
    // Until then the device may ask for memory.
    done.store(true, Ordering::SeqCst);
    events.join().unwrap();
    drop(client);
    server.join().unwrap().unwrap();
    let rounds: Vec<_> = progress.iter().map(|progress| progress.load(Ordering::SeqCst)).collect();
    eprintln!("twin socket: {twin_socket}; rounds of each thread, and the device's, in {time:?}: {rounds:?}");
}

#[test]
fn threads_that_do_everything_at_once_never_stall_and_every_value_is_right() {
    let _alone = ALONE.lock().unwrap();
    let seconds = std::env::var("OUTRIGGER_STRESS_SECONDS").map_or(60, |s| s.parse().expect("a number of seconds"));
    for twin_socket in [false, true] {
        stress(twin_socket, Duration::from_secs(seconds) / 2);
    }
}

#[test]
fn a_server_that_never_replies_costs_its_caller_the_deadline_and_the_others_nothing() {
    const DEADLINE: Duration = Duration::from_secs(4);
    const DEVICES: usize = 3;
    let _alone = ALONE.lock().unwrap();
    let (stop, calls, slowest) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Duration::ZERO));
    std::thread::scope(|scope| {
        for _ in 0..DEVICES {
            scope.spawn(|| {
                let server = Server::start();
                let client = client(server.connect());
                let mut number = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    number += 1;
                    let start = Instant::now();
                    client.region_write(MESSAGES, 8, &number.to_le_bytes()).unwrap();
                    let mut back = [0; 8];
                    client.region_read(MESSAGES, 8, &mut back).unwrap();
                    assert_eq!(u64::from_le_bytes(back), number);
                    calls.fetch_add(2, Ordering::SeqCst);
                    let mut slowest = slowest.lock().unwrap();
                    *slowest = slowest.max(start.elapsed());
                    server.state.lock().unwrap().writes.clear();
                }
            });
        }
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            [false, true].map(|twin_socket| {
                let before = calls.load(Ordering::SeqCst);
                silence(DEADLINE, twin_socket);
                calls.load(Ordering::SeqCst) - before
            })
        }));
        stop.store(true, Ordering::SeqCst);
        let beside = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let slowest = *slowest.lock().unwrap();
        eprintln!("{DEVICES} devices: {beside:?} calls beside a silent one; slowest pair {slowest:?}");
        assert!(beside.iter().all(|&calls| calls > 1000), "the devices did only {beside:?} calls");
        assert!(slowest < DEADLINE / 2, "a call to another device took {slowest:?}");
    });
}

/// The processor time of the calling thread. How much others get done beside it depends on what else a machine does.
fn own_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// A call to a server that has negotiated and then says nothing.
fn silence(deadline: Duration, twin_socket: bool) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || Raw::server(theirs, "{}"));
    let client =
        Client::new(ours, GuestMemory::new(0), &Options { deadline, twin_socket, ..Options::default() }).unwrap();
    let _silent = server.join().unwrap();
    let (begun, cpu) = (Instant::now(), own_cpu_time());
    let error = client.region_read(0, 0, &mut [0; 4]).unwrap_err();
    let (elapsed, cpu) = (begun.elapsed(), own_cpu_time() - cpu);
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert!(elapsed >= deadline && elapsed < 2 * deadline, "timed out after {elapsed:?}");
    assert!(cpu < deadline / 20, "it waits busily, for {cpu:?} of {elapsed:?}");
    // The next one does not wait again.
    let begun = Instant::now();
    assert!(matches!(client.reset(), Err(ClientError::Disconnected(_))));
    assert!(begun.elapsed() < deadline / 2);
}
