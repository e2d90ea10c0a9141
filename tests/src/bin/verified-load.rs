//! The load of a Linux guest whose devices are killed: `verified-load DIRECTORY HOST:PORT` writes, reads and compares files in DIRECTORY,
//! past the page cache and by it, and exchanges bytes with the test that listens on HOST:PORT, until that ends its direction of the
//! connection. Prints what was done as `load NAME: …`, and ends with status 1 if anything was wrong.

use std::fmt::Debug;
use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use outrigger_tests::load::disk::{self, Way};
use outrigger_tests::load::stream::{self, From};

/// Files, the blocks of each, and how they are reached. One after the other is at work as long as all are.
const FILES: [(&str, u64, Way); 3] =
    [("direct-1", 2048, Way::Direct), ("direct-2", 2048, Way::Direct), ("cached", 1024, Way::Cached)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, address] = &arguments[..] else {
        eprintln!("usage: verified-load DIRECTORY HOST:PORT");
        return ExitCode::from(2);
    };
    match run(Path::new(directory), address) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Whether all was well.
fn run(directory: &Path, address: &str) -> bool {
    let enough = AtomicBool::new(false);
    let stream = match TcpStream::connect(address) {
        Ok(stream) => stream,
        Err(error) => return tell::<()>("connection", &Err(error)),
    };
    thread::scope(|scope| {
        let files = FILES.map(|(name, blocks, way)| {
            let enough = &enough;
            scope.spawn(move || tell(name, &disk::run(&directory.join(name), blocks, way, enough)))
        });
        let sent = scope.spawn(|| tell("sent", &stream::send(&stream, From::Guest, &enough)));
        let received = tell("received", &stream::receive(&stream, From::Host));
        // Also when that has failed.
        enough.store(true, Ordering::Relaxed);
        let all = files.into_iter().chain([sent]).map(|thread| thread.join().unwrap_or(false));
        all.fold(received, |well, this| well & this)
    })
}

fn tell<T: Debug>(name: &str, result: &io::Result<T>) -> bool {
    match result {
        Ok(done) => println!("load {name}: {done:?}"),
        Err(error) => println!("load {name}: FAILED: {error}"),
    }
    result.is_ok()
}
