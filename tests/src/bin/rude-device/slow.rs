//! Answers that come late, in part, as refusals, or never.

use std::io;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use outrigger_protocol::command::Command;
use outrigger_protocol::pci::INTX_IRQ;
use outrigger_protocol::wire;
use outrigger_tests::raw;

use crate::connection::{Connection, used};
use crate::device::{MESSAGES, Offers};

/// A byte a message.
pub static BYTEWISE: Offers = Offers { transfer: 1, ..MESSAGES };

/// A client waits for ten seconds.
const ALMOST: Duration = Duration::from_millis(9_500);
const EIO: u32 = 5;

/// Takes almost all of its time to unmask the pin.
pub fn unmask(connection: &mut Connection) -> io::Result<()> {
    while let Some(request) = connection.request()? {
        let unmasks = request.is(Command::DeviceSetIrqs)
            && request.u32_at(4) & wire::IRQ_SET_ACTION_UNMASK != 0
            && request.u32_at(8) == INTX_IRQ;
        if unmasks {
            thread::sleep(ALMOST);
        }
        connection.answer(&request)?;
    }
    Ok(())
}

/// Takes its time to reset.
pub fn reset(connection: &mut Connection) -> io::Result<()> {
    while let Some(request) = connection.request()? {
        if request.is(Command::DeviceReset) {
            thread::sleep(Duration::from_secs(8));
        }
        connection.answer(&request)?;
    }
    Ok(())
}

/// Never says a word.
pub fn silent(connection: &mut Connection) -> io::Result<()> {
    while connection.request()?.is_some() {}
    Ok(())
}

/// Takes nine seconds for each message, and asks for one byte a message.
pub fn sluggish(connection: &mut Connection) -> io::Result<()> {
    while let Some(request) = connection.request()? {
        thread::sleep(Duration::from_secs(9));
        connection.answer(&request)?;
    }
    Ok(())
}

/// Stops when a driver uses it.
pub fn stops(connection: &mut Connection) -> io::Result<()> {
    if connection.until_used()? {
        raise(Signal::SIGSTOP)?;
    }
    connection.serve()
}

/// Stops before it says a word.
pub fn stops_at_once(connection: &mut Connection) -> io::Result<()> {
    raise(Signal::SIGSTOP)?;
    connection.serve()
}

/// Sends the first half of an answer's header, and no more.
pub fn half_message(connection: &mut Connection) -> io::Result<()> {
    if let Some(request) = connection.until(used)? {
        raw::send(&connection.stream, &raw::reply_bytes(&request, &[])[..8], &[])?;
    }
    silent(connection)
}

/// Refuses each access to its registers.
pub fn refusing(connection: &mut Connection) -> io::Result<()> {
    while let Some(request) = connection.until(used)? {
        raw::refuse(&connection.stream, &request, EIO)?;
    }
    Ok(())
}
