//! More than anybody asked for.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use outrigger_protocol::command::Command;
use outrigger_protocol::wire;
use outrigger_tests::raw;
use zerocopy::IntoBytes;

use crate::connection::{Connection, used};

/// Bytes of a request in a flood, and of a busy one.
const PAGE: u64 = 4096;
const LARGE: u64 = 64 << 10;
/// Requests of a busy device under way.
const THREADS: u16 = 16;

/// Between two requests, for an answer to be sent.
const BREATH: Duration = Duration::from_micros(20);

/// Asks for memory without an end.
pub fn dma(connection: &mut Connection) -> io::Result<()> {
    if !connection.until_used()? {
        return Ok(());
    }
    let (main, sending) = (connection.stream.try_clone()?, Arc::clone(&connection.sending));
    let twin = connection.device.twin.as_ref().map(|(_, ours)| ours.try_clone()).transpose()?;
    if let Some(twin) = &twin {
        let twin = twin.try_clone()?;
        thread::spawn(move || while let Ok(Some(_)) = raw::receive(&twin) {});
    }
    thread::spawn(move || -> io::Result<()> {
        loop {
            let access = wire::DmaAccess { address: 0, count: PAGE };
            let is_sending = twin.is_none().then(|| sending.lock().unwrap_or_else(PoisonError::into_inner));
            raw::command(twin.as_ref().unwrap_or(&main), 0, Command::DmaRead, access.as_bytes(), &[])?;
            drop(is_sending);
            // The lock is not fair, and this device answers what it is asked.
            thread::sleep(BREATH);
        }
    });
    connection.serve()
}

/// The same, and takes none of the answers.
pub fn unread(connection: &mut Connection) -> io::Result<()> {
    if connection.until_used()? {
        while connection.dma_read(PAGE, &[]).is_ok() {}
        // The client has ended it, which is seen in no other way here.
    }
    Ok(())
}

/// Always has requests under way, as a device with as many threads has: this is honest.
pub fn busy(connection: &mut Connection) -> io::Result<()> {
    if !connection.until_used()? {
        return Ok(());
    }
    for _ in 0..THREADS {
        connection.dma_read(LARGE, &[])?;
    }
    while let Some(message) = raw::receive(&connection.stream)? {
        match message.header.is_reply() {
            true => connection.dma_read(LARGE, &[])?,
            false => connection.answer(&message)?,
        }
    }
    Ok(())
}

/// Fires its interrupts without an end.
pub fn interrupts(connection: &mut Connection) -> io::Result<()> {
    while let Some(request) = connection.request()? {
        if used(&request) {
            fire_for_ever(&connection.device.eventfds)?;
            connection.answer(&request)?;
            return connection.serve();
        }
        connection.answer(&request)?;
    }
    Ok(())
}

/// Leaves, and goes on firing the interrupts that it was given.
pub fn interrupts_after_the_cut(connection: &mut Connection) -> io::Result<()> {
    if connection.until_used()? {
        fire_for_ever(&connection.device.eventfds)?;
    }
    Ok(())
}

/// Answers what nobody asked, without an end.
pub fn replies(connection: &mut Connection) -> io::Result<()> {
    if let Some(request) = connection.until(used)? {
        while raw::send(&connection.stream, &raw::reply_bytes(&request, &[0; 20]), &[]).is_ok() {}
    }
    Ok(())
}

fn fire_for_ever(eventfds: &[Vec<File>]) -> io::Result<()> {
    let eventfds: Vec<File> = eventfds.iter().flatten().map(File::try_clone).collect::<Result<_, _>>()?;
    thread::spawn(move || {
        loop {
            for mut eventfd in &eventfds {
                // The only failure is a counter at its maximum.
                let _ = eventfd.write(&1u64.to_ne_bytes());
            }
            thread::sleep(Duration::from_micros(500));
        }
    });
    Ok(())
}
