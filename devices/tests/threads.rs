//! A device process has its threads and its rings from its start, and never others: whatever its driver and its clients do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk_driver;
mod guest_ram;
mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use disk_driver::{BLOCK, BLOCKS, Disk, QUEUES};
use machine::{By, Machine, load};

const LIMIT: Duration = Duration::from_secs(20);

fn entries(machine: &Machine, directory: &str) -> Vec<String> {
    let path = format!("/proc/{}/{directory}", machine.process.serving);
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The threads by number, and their names; not those of the kernel's own, which work for a ring and come and go.
fn threads(machine: &Machine) -> BTreeMap<String, String> {
    let named = |thread: String| {
        let comm = format!("/proc/{}/task/{thread}/comm", machine.process.serving);
        fs::read_to_string(comm).ok().map(|name| (thread, name.trim().to_owned()))
    };
    let all = entries(machine, "task").into_iter().filter_map(named);
    all.filter(|(_, name)| !name.starts_with("iou-wrk-")).collect()
}

/// The descriptors of rings.
fn rings(machine: &Machine) -> Vec<String> {
    let is_ring = |fd: &String| {
        let link = fs::read_link(format!("/proc/{}/fd/{fd}", machine.process.serving));
        link.is_ok_and(|link| link.as_os_str() == "anon_inode:[io_uring]")
    };
    let mut rings: Vec<_> = entries(machine, "fd").into_iter().filter(is_ring).collect();
    rings.sort();
    rings
}

/// Waits for what a thread is about to do.
fn eventually(condition: impl Fn() -> bool, shown: impl Fn() -> String) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "{}", shown());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The names of the threads: of their work, for those that have any.
fn names(machine: &Machine) -> Vec<String> {
    threads(machine).into_values().collect()
}

fn finish(machine: &mut Machine, disk: &mut Disk) {
    while disk.is_busy() {
        if disk.collect() == 0 && disk.wants_interrupts() {
            machine.wait();
        }
    }
}

fn expect_no_others(by: By, directory: &Path) {
    let image = tempfile::Builder::new().suffix(".img").tempfile_in(directory).unwrap();
    image.as_file().set_len(BLOCKS * BLOCK as u64).unwrap();
    let mut machine = Machine::new(by, image.path(), 7);
    machine.is_mortal = false;
    let (before, rings_before) = (threads(&machine), rings(&machine));
    let signals = usize::from(by == By::Hand);
    // The main thread; one for the registers, two for hang-ups, three that close, one for lines.
    assert_eq!(before.len(), 1 + usize::from(QUEUES) + 1 + 2 + 3 + 1 + signals, "{before:?}");
    assert_eq!(rings_before.len(), usize::from(QUEUES));

    let mut disk = Disk::new(&machine.ram, 7);
    for _ in 0..10 {
        // The driver begins again; memory comes and goes under load; another client comes.
        disk.forget();
        machine.bring_up();
        for _ in 0..4 {
            load(&mut machine, &mut disk);
            machine.process.client.dma_map(1 << 40, 0x1000, None).unwrap();
            load(&mut machine, &mut disk);
            machine.process.client.dma_unmap(1 << 40, 0x1000).unwrap();
        }
        finish(&mut machine, &mut disk);
        // A thread that the kernel makes has its parent's name at first.
        eventually(|| threads(&machine).keys().eq(before.keys()), || format!("{:?}", threads(&machine)));
        for queue in 0..QUEUES {
            eventually(|| names(&machine).contains(&format!("blk-q{queue}")), || format!("{:?}", threads(&machine)));
        }
        assert_eq!(rings(&machine), rings_before);
        if by == By::Hand {
            machine.reconnect();
        }
    }
    // A queue's thread has no work after a reset.
    machine.reset();
    let idle = || names(&machine).iter().filter(|name| *name == "queue").count();
    eventually(|| idle() == usize::from(QUEUES), || format!("{:?}", names(&machine)));
    let _ = fs::remove_file(image.path().with_extension("sock"));
}

#[test]
fn a_disk_that_a_vmm_has_started_makes_no_thread_and_no_ring_later() {
    expect_no_others(By::Vmm, Path::new(env!("CARGO_TARGET_TMPDIR")));
}

#[test]
fn a_disk_that_serves_one_client_after_the_other_makes_no_thread_and_no_ring_later() {
    expect_no_others(By::Hand, Path::new(env!("CARGO_TARGET_TMPDIR")));
}
