//! Resets, and other ends, of queues whose workers have something to finish that takes long, as I/O does on a stalled disk.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::{scope, sleep};

use outrigger_protocol::ioregionfd::Size;
use outrigger_protocol::pci::CONFIG_REGION;

use super::*;
use crate::testing::{BUFFERS, Driver, RAM_SIZE, RAM_START, Served, Way, every_way};
use crate::transport::registers::{FEATURE_RING_RESET, NO_VECTOR, STATUS_NEEDS_RESET};
use crate::transport::{ActiveQueue, Chain, Identity, Work, WorkerError};

/// Queue 0 still writes there after it was told to stop, and before it has.
const LATE: u64 = BUFFERS + 0x5000;
/// An access that is answered at once takes no longer, however busy the machine is.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Closed or open.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn set(&self, open: bool) {
        *self.0.lock().unwrap() = open;
        self.1.notify_all();
    }

    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// Two queues that use what is available; once told to stop, the first waits for the gate and then still writes memory.
struct Slow {
    name: &'static str,
    gate: Arc<Gate>,
}

impl VirtioDevice for Slow {
    fn identity(&self) -> Identity {
        Identity { device_type: 2, class: 0x01_80_00 }
    }
    fn name(&self) -> &'static str {
        self.name
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> u16 {
        2
    }
    fn config(&self) -> &[u8] {
        &[]
    }
    fn start(&mut self, queue: u16, _features: u64) -> Result<Work, WorkerError> {
        let gate = Arc::clone(&self.gate);
        Ok(Box::new(move |active| {
            // By messages, it ends with an error when the client has left.
            let result = use_what_is_available(active);
            if queue == 0 {
                gate.pass();
                active.queue.memory().write(LATE, &[1])?;
            }
            result
        }))
    }
}

fn use_what_is_available(active: &mut ActiveQueue) -> Result<(), WorkerError> {
    let mut chain = Chain::new();
    while !active.stopping() {
        while let Some(head) = active.queue.pop(&mut chain)? {
            active.queue.push(head, 0);
        }
        active.publish()?;
        if !active.queue.want_doorbell()? {
            active.wait()?;
        }
    }
    Ok(())
}

/// Opens the gate when it is dropped, or the device would never end.
struct Rig {
    driver: Option<Driver>,
    served: Served<Slow>,
    gate: Arc<Gate>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.gate.set(true);
        self.driver = None;
    }
}

impl Rig {
    fn new(way: Way) -> Self {
        let gate = Arc::new(Gate::default());
        let served = Served::new(Slow { name: "slow", gate: Arc::clone(&gate) });
        let mut driver = served.attach_with(way);
        driver.start(FEATURE_RING_RESET, 2, 16);
        let rig = Self { driver: Some(driver), served, gate };
        rig.driver().put(LATE, &[0]);
        rig
    }

    fn driver(&self) -> &Driver {
        self.driver.as_ref().unwrap()
    }

    /// Whether the first queue's worker is over.
    fn wrote(&self) -> bool {
        self.driver().get(LATE, 1) == [1]
    }

    /// The reset that has begun is over once the worker is, and not before.
    fn expect_reset_only_after_the_worker(&self) {
        sleep(Duration::from_millis(50));
        assert_eq!(self.driver().status() & !STATUS_NEEDS_RESET, 0xf);
        assert!(!self.wrote());
        self.gate.set(true);
        self.driver().wait_for_reset();
        assert!(self.wrote(), "the reset was over before the worker");
    }
}

fn at_once<T>(access: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = access();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    result
}

every_way! {
    a_reset_is_answered_at_once_and_over_when_the_worker_is
    nothing_is_written_to_a_device_that_is_being_reset
    a_queue_reset_is_over_when_its_worker_is_and_other_queues_go_on
    a_function_level_reset_shows_in_the_status_until_it_is_over
    a_reset_by_message_succeeds_when_the_worker_is_over_and_fails_before
    memory_that_a_worker_holds_on_to_puts_its_queue_out_of_service_until_a_reset
    the_next_client_sees_a_reset_only_when_the_last_ones_worker_is_over
}

fn a_reset_is_answered_at_once_and_over_when_the_worker_is(way: Way) {
    let rig = Rig::new(way);
    at_once(|| rig.driver().set_status(0));
    rig.expect_reset_only_after_the_worker();
    // The gate is open.
    let mut rig = rig;
    rig.driver.as_mut().unwrap().start(0, 2, 16);
    for queue in [0, 1] {
        let driver = rig.driver.as_mut().unwrap();
        let head = driver.add(queue, &[(BUFFERS, 1, false)]);
        driver.notify(queue);
        assert_eq!(driver.used(queue), (head, 0));
    }
}

fn nothing_is_written_to_a_device_that_is_being_reset(way: Way) {
    let rig = Rig::new(way);
    let driver = rig.driver();
    driver.set_status(0);
    for status in [0, 1, 3, 0x80, 0] {
        at_once(|| driver.set_status(status));
        assert_eq!(driver.status(), 0xf);
    }
    for queue in [0u16, 1] {
        driver.write(0x16, &queue.to_le_bytes());
        at_once(|| driver.write(0x1c, &[1, 0]));
        at_once(|| driver.notify(queue.into()));
    }
    rig.expect_reset_only_after_the_worker();
    assert_eq!(driver.read::<2>(0x1c), [0, 0]);
}

fn a_queue_reset_is_over_when_its_worker_is_and_other_queues_go_on(way: Way) {
    let mut rig = Rig::new(way);
    let driver = rig.driver.as_mut().unwrap();
    let [reset, enable, vector] = [0x3a, 0x1c, 0x1a];
    driver.write(0x16, &[0, 0]);
    at_once(|| driver.write(reset, &[1, 0]));
    for _ in 0..2 {
        assert_eq!((driver.read(reset), driver.read(enable)), ([1, 0], [1, 0]));
        driver.write(enable, &[1, 0]);
        driver.write(reset, &[1, 0]);
        let head = driver.add(1, &[(BUFFERS, 1, false)]);
        at_once(|| driver.notify(1));
        assert_eq!(driver.used(1), (head, 0));
    }
    assert_eq!(driver.get(LATE, 1), [0]);
    rig.gate.set(true);
    while driver.read(reset) != [1, 0].map(|_| 0) {}
    assert_eq!(driver.get(LATE, 1), [1], "the reset was over before the worker");
    assert_eq!((driver.read(enable), driver.read(vector)), ([0, 0], NO_VECTOR.to_le_bytes()));
    assert_eq!(driver.read::<8>(0x20), [0; 8]);
    assert_eq!(driver.status(), 0xf);
    driver.reset();
}

fn a_function_level_reset_shows_in_the_status_until_it_is_over(way: Way) {
    let rig = Rig::new(way);
    let reset = || rig.driver().client.region_write(CONFIG_REGION, 0x48, &0x8000u16.to_le_bytes()).unwrap();
    at_once(reset);
    rig.expect_reset_only_after_the_worker();
}

fn a_reset_by_message_succeeds_when_the_worker_is_over_and_fails_before(way: Way) {
    let rig = Rig::new(way);
    let driver = rig.driver();
    let requester = (way == Way::Ioregionfd).then(|| driver.requester());
    scope(|threads| {
        let reset = threads.spawn(|| driver.client.reset());
        sleep(Duration::from_millis(50));
        // The register lock is free meanwhile.
        if let Some(requester) = &requester {
            at_once(|| assert_eq!(requester.read(0, 0x14, Size::One).unwrap(), 0xf));
        }
        assert!(reset.join().unwrap().is_err());
        assert!(!rig.wrote());
        let reset = threads.spawn(|| driver.client.reset());
        sleep(Duration::from_millis(50));
        rig.gate.set(true);
        reset.join().unwrap().unwrap();
        assert!(rig.wrote());
        assert_eq!(driver.status(), 0);
    });
}

fn memory_that_a_worker_holds_on_to_puts_its_queue_out_of_service_until_a_reset(way: Way) {
    let rig = Rig::new(way);
    let driver = rig.driver();
    let requester = (way == Way::Ioregionfd).then(|| driver.requester());
    scope(|threads| {
        let change = threads.spawn(|| driver.map(1 << 32, 0x1000));
        sleep(Duration::from_millis(50));
        if let Some(requester) = &requester {
            at_once(|| assert_eq!(requester.read(0, 0x14, Size::One).unwrap(), 0xf));
        }
        change.join().unwrap();
    });
    assert_eq!(driver.status(), 0xf | STATUS_NEEDS_RESET);
    driver.interrupted(0);
    // It has been waited for once.
    at_once(|| driver.map(2 << 32, 0x1000));
    at_once(|| driver.set_status(0));
    rig.expect_reset_only_after_the_worker();
}

fn the_next_client_sees_a_reset_only_when_the_last_ones_worker_is_over(way: Way) {
    let mut rig = Rig::new(way);
    let ram = rig.driver().ram.clone();
    let begun = Instant::now();
    rig.driver = None;
    let left = begun.elapsed();
    assert!(left < STOP_DEADLINE + AT_ONCE, "{left:?}");
    let mut driver = rig.served.attach_with(way);
    at_once(|| driver.set_status(0));
    sleep(Duration::from_millis(50));
    assert_eq!(driver.status(), 0xf | STATUS_NEEDS_RESET);
    rig.gate.set(true);
    driver.wait_for_reset();
    driver.start(0, 2, 16);
    let head = driver.add(0, &[(BUFFERS, 1, false)]);
    driver.notify(0);
    assert_eq!(driver.used(0), (head, 0));
    assert_eq!(driver.get(LATE, 1), [0], "a worker writes the memory of the next client");
    drop(ram);
    drop(driver);
}

#[test]
fn a_queue_enabled_out_of_reach_while_the_driver_is_ready_needs_a_reset() {
    let served = Served::new(Slow { name: "slow", gate: Arc::default() });
    let mut driver = served.attach();
    driver.negotiate(0);
    driver.use_msix(2);
    driver.driver_ok();
    driver.write(0x16, &[1, 0]);
    for (offset, address) in [(0x20, RAM_START + RAM_SIZE), (0x28, RAM_START), (0x30, RAM_START + 0x1000)] {
        driver.write(offset, &address.to_le_bytes());
    }
    driver.write(0x1c, &[1, 0]);
    assert_eq!(driver.status(), 0xf | STATUS_NEEDS_RESET);
    assert_eq!(driver.interrupted(0), 1);
    driver.reset();
}

/// Lines of the device named for this test.
static LINES: AtomicUsize = AtomicUsize::new(0);

struct Counter;

impl log::Log for Counter {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        LINES.fetch_add(usize::from(record.args().to_string().starts_with("flood")), Ordering::Relaxed);
    }
    fn flush(&self) {}
}

#[test]
fn no_reset_and_no_other_client_renews_the_limit_of_log_lines() {
    log::set_logger(&Counter).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let served = Served::new(Slow { name: "flood", gate: Arc::default() });
    for _ in 0..3 {
        let driver = served.attach();
        for _ in 0..100 {
            driver.reset();
            // A queue of size 3.
            driver.write(0x18, &[3, 0]);
            driver.write(0x1c, &[1, 0]);
            assert_ne!(driver.status() & STATUS_NEEDS_RESET, 0);
        }
    }
    let lines = LINES.load(Ordering::Relaxed);
    assert!((1..20).contains(&lines), "{lines} lines");
}
