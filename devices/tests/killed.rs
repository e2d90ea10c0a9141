//! `outrigger-blk`, killed with SIGKILL at random moments under verified load, and succeeded by another process each time; now
//! and then it migrates to one.
//!
//! The driver here knows nothing of it: it makes requests, sleeps until an interrupt comes, and compares what it reads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk_driver;
mod guest_ram;
mod machine;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use disk_driver::{BLOCK, BLOCKS, Disk};
use machine::{By, Machine, load};

fn kill_under_load(by: By, directory: &Path, kills: usize, seed: u64) {
    let image = tempfile::Builder::new().suffix(".img").tempfile_in(directory).unwrap();
    image.as_file().set_len(BLOCKS * BLOCK as u64).unwrap();
    let mut machine = Machine::new(by, image.path(), seed);
    let mut disk = Disk::new(&machine.ram, seed);
    let begun = Instant::now();
    let mut requests = 0;
    for round in 1..=3 {
        // The guest boots again, in the middle of requests that it has forgotten.
        disk.forget();
        machine.bring_up();
        while machine.kills < round * kills / 3 {
            requests += load(&mut machine, &mut disk);
            if by == By::Vmm && machine.random.below(5) == 0 {
                machine.migrate();
            } else {
                machine.kill();
            }
        }
        if round == 2 {
            load(&mut machine, &mut disk);
            continue;
        }
        while disk.is_busy() {
            if disk.collect() == 0 && disk.wants_interrupts() {
                machine.wait();
            }
        }
    }
    let Machine { kills, migrations, .. } = machine;
    println!("{kills} kills, {migrations} migrations, {requests} requests in {:?}", begun.elapsed());
    assert_eq!(machine.read::<1>(0x14), [0xf]);
    let mut block = vec![0; BLOCK];
    for index in 0..BLOCKS {
        image.as_file().read_exact_at(&mut block, index * BLOCK as u64).unwrap();
        disk.verify(index, &block);
    }
    let _ = std::fs::remove_file(image.path().with_extension("sock"));
}

/// So many in each test; `KILLS` in the environment asks for more.
fn kills() -> usize {
    std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(150)
}

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("SEED={seed}");
    seed
}

/// Requests by io_uring.
#[test]
fn a_disk_in_a_file_system_is_killed_under_load() {
    kill_under_load(By::Vmm, Path::new(env!("CARGO_TARGET_TMPDIR")), kills(), seed());
}

/// Requests by plain system calls.
#[test]
fn a_disk_in_memory_is_killed_under_load() {
    kill_under_load(By::Vmm, Path::new("/dev/shm"), kills(), seed());
}

/// By somebody who starts it again each time.
#[test]
fn a_disk_that_listens_on_a_path_is_killed_under_load() {
    kill_under_load(By::Hand, Path::new(env!("CARGO_TARGET_TMPDIR")), kills() / 2, seed());
}
