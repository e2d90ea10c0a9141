//! The load of a Linux guest whose devices are killed: `verified-load DIRECTORY HOST:PORT` writes, reads and compares files in DIRECTORY,
//! past the page cache and by it, and exchanges bytes with the test that listens on HOST:PORT, until that ends its direction of the
//! connection. `verified-load guest HOST:PORT PIECES` only exchanges bytes, so many pieces of 16 KiB each way, with
//! `verified-load host HOST:PORT PIECES`, which listens. Prints what was done as `load NAME: …`, and ends with status 1 if anything was
//! wrong.

use std::fmt::Debug;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use outrigger_tests::load::disk::{self, Way};
use outrigger_tests::load::stream::{self, From};

/// Files, the blocks of each, and how they are reached. One after the other is at work as long as all are.
const FILES: [(&str, u64, Way); 3] =
    [("direct-1", 2048, Way::Direct), ("direct-2", 2048, Way::Direct), ("cached", 1024, Way::Cached)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_well = match (&arguments[..], arguments.last().and_then(|pieces| pieces.parse().ok())) {
        ([directory, address], _) => run(Path::new(directory), address),
        (["guest", address, _], Some(pieces)) => exchange(TcpStream::connect(address), From::Guest, pieces),
        (["host", address, _], Some(pieces)) => {
            let accepted = TcpListener::bind(address).and_then(|listener| listener.accept());
            exchange(accepted.map(|(stream, _)| stream), From::Host, pieces)
        }
        _ => {
            eprintln!("usage: verified-load DIRECTORY HOST:PORT | guest HOST:PORT PIECES | host HOST:PORT PIECES");
            return ExitCode::from(2);
        }
    };
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Sends so many pieces while as many are received. Whether all was well. The host ends its direction when it has received everything,
/// and the guest, which may be switched off then, ends after that.
fn exchange(stream: io::Result<TcpStream>, side: From, pieces: u64) -> bool {
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => return tell::<()>("connection", &Err(error)),
    };
    let other = if side == From::Host { From::Guest } else { From::Host };
    let whole = |count| if count == pieces { Ok(count) } else { Err(io::Error::other(format!("only {count} pieces"))) };
    let (all, is_all) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let stream = &stream;
        let is_enough = move |sent| sent == pieces && (side == From::Guest || is_all.recv().is_err());
        let sent = scope.spawn(move || tell("sent", &stream::send(stream, side, is_enough)));
        let received = tell("received", &stream::receive(stream, other).and_then(whole));
        drop(all);
        received & sent.join().unwrap_or(false)
    })
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
        let sent =
            scope.spawn(|| tell("sent", &stream::send(&stream, From::Guest, |_| enough.load(Ordering::Relaxed))));
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
