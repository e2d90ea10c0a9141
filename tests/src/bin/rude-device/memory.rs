//! The files behind a page that the guest can be shown.

use std::fs::File;
use std::io;
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::connection::Connection;
use crate::device::{BAR0_SIZE, MESSAGES, Offers, memfd};

/// Memory, as good servers have it.
pub static MEMFD: Offers = Offers { mapped: Some(memfd), ..MESSAGES };
/// A file on a disk, which can keep its readers waiting.
pub static FILE: Offers = Offers { mapped: Some(file), ..MESSAGES };
/// A pipe, which cannot be mapped at all.
pub static PIPE: Offers = Offers { mapped: Some(pipe), ..MESSAGES };
/// A terabyte, of which nothing is there.
pub static HUGE: Offers = Offers { mapped: Some(huge), size: 1 << 40, ..MESSAGES };

/// Takes the memory away while the guest reads it.
pub fn truncating(connection: &mut Connection) -> io::Result<()> {
    if !connection.until_used()? {
        return Ok(());
    }
    let memory = connection.device.memory.as_ref().map(File::try_clone).transpose()?;
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        memory.map(|memory| memory.set_len(0))
    });
    connection.serve()
}

fn file() -> io::Result<File> {
    // Beside this program, since what is in /tmp may be memory.
    let program = std::env::current_exe()?;
    let file = tempfile::tempfile_in(program.parent().unwrap_or(&program))?;
    file.set_len(BAR0_SIZE)?;
    Ok(file)
}

fn pipe() -> io::Result<File> {
    let (end, _) = nix::unistd::pipe()?;
    Ok(end.into())
}

fn huge() -> io::Result<File> {
    let file = File::from(memfd_create("rude", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(1 << 40)?;
    Ok(file)
}
