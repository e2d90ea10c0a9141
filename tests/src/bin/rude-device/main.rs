//! A PCI device that does to its client what no device should: `rude-device --manner NAME --socket PATH`; or `--options manner=NAME
//! --fd N` when a VMM starts it. What each manner must come to is in `tests/src/rude.rs`. It serves one client after the other; `rude-device` alone lists
//! the manners.

mod connection;
mod descriptors;
mod device;
mod floods;
mod manners;
mod memory;
mod slow;

use std::error::Error;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use connection::Connection;
use manners::Manner;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let options = value("--options").and_then(|options| options.strip_prefix("manner="));
    let Some(name) = value("--manner").map(String::as_str).or(options) else {
        manners::ALL.iter().for_each(|manner| println!("{}", manner.name));
        return Ok(());
    };
    let manner = manners::ALL.iter().find(|manner| manner.name == name).ok_or("there is no such manner")?;
    if let Some(fd) = value("--fd") {
        let fd: RawFd = fd.parse()?;
        // SAFETY: whoever has started this says that the descriptor is for it, and nothing else here uses it.
        let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
        return serve(manner, stream);
    }
    let listener = UnixListener::bind(value("--socket").ok_or("--socket PATH or --fd N is missing")?)?;
    loop {
        let (stream, _) = listener.accept()?;
        // A client that leaves is nothing to end for.
        if let Err(error) = serve(manner, stream) {
            eprintln!("rude-device: {error}");
        }
    }
}

fn serve(manner: &Manner, stream: UnixStream) -> Result<(), Box<dyn Error>> {
    Ok((manner.run)(&mut Connection::new(stream, manner.offers)?)?)
}
