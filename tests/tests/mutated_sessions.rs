//! Sealed device processes whose clients send anything (`tests/src/mutated.rs`): each process outlives all of its clients, the next honest one is
//! served, and no client brings it to a system call that it may not make. `SEED=N` repeats what a run that failed has printed; `SECONDS=N`
//! is for how long, each.

use std::path::Path;
use std::time::{Duration, Instant};

use outrigger_tests::disk;
use outrigger_tests::driver::Driver;
use outrigger_tests::mutated::session;
use outrigger_tests::qemu::Server;
use outrigger_tests::random::Random;
use outrigger_tests::rude_client::honest;
use tempfile::TempDir;

const SECONDS: u64 = 5;
/// Clients between two honest ones.
const CLIENTS: usize = 20;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[track_caller]
fn outlives(server: Server, honest: fn(&Path) -> std::io::Result<()>) {
    let (mut random, seed) = match from_environment("SEED") {
        Some(seed) => (Random::new(seed), seed),
        None => Random::fresh(),
    };
    println!("SEED={seed}");
    let serving = server.serving();
    let time = Duration::from_secs(from_environment("SECONDS").unwrap_or(SECONDS));
    let (start, mut clients, mut messages) = (Instant::now(), 0, 0);
    let result = loop {
        if start.elapsed() > time {
            break Ok(());
        }
        let sent = (0..CLIENTS).try_for_each(|_| session(server.socket(), &mut random).map(|sent| messages += sent));
        clients += CLIENTS;
        if let Err(error) = sent.and_then(|()| honest(server.socket())) {
            break Err(error);
        }
    };
    let lives = serving.alive();
    let ended = server.stop();
    println!("{clients} clients, {messages} messages");
    assert!(result.is_ok() && lives, "SEED={seed}, after {clients} clients: {result:?}; output:\n{ended}");
    ended.expect_code(0);
    assert!(!ended.stderr.contains("the sandbox"), "SEED={seed}; output:\n{ended}");
    assert!(clients > CLIENTS && messages > 100, "{clients} clients, {messages} messages are few");
}

#[test]
fn a_disk_outlives_clients_that_send_anything() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("disk.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    let options = ["--disk", &format!("path={},queues=2", image.display()), "--sandbox", "require"];
    outlives(Server::start("outrigger-blk", &directory.path().join("blk.sock"), &options), honest);
}

#[test]
fn a_card_outlives_clients_that_send_anything() {
    let directory = TempDir::new().unwrap();
    let options = ["--net", "tap=ormutated0", "--sandbox", "require"];
    let start = |socket: &Path| Driver::connect(socket).and_then(|mut driver| driver.start());
    outlives(Server::start("outrigger-net", &directory.path().join("net.sock"), &options), start);
}
