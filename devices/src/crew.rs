//! The threads of a device process: all that it will ever have, made once the device is open and before anybody is served.

use std::io;

use outrigger_process::crew::{self, Role};

use crate::sandbox::Clients;

/// One client may still be leaving when the next one comes.
const HANG_UP: usize = 2;
/// One that oversees, and two that close: one that is stuck holds up nothing.
const CLOSING: usize = 3;

/// The needs of a device, beside the thread that serves the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Queues, each served by a thread.
    pub queues: u16,
    /// Sub-regions by ioregionfd, each served by a thread.
    pub ioregionfds: u16,
}

/// Makes the threads: of a process with many clients, one waits for the signal that ends it. Call it once, while the process has no other threads that matter.
///
/// # Errors
/// The system has no more threads.
pub fn enlist(needs: Needs, clients: Clients) -> io::Result<()> {
    let Needs { queues, ioregionfds } = needs;
    for (role, count) in [
        (Role::Queue, usize::from(queues)),
        (Role::Registers, usize::from(ioregionfds)),
        (Role::HangUp, HANG_UP),
        (Role::Closing, CLOSING),
        (Role::Output, 1),
        (Role::Signals, usize::from(clients == Clients::Many)),
    ] {
        crew::enlist(role, count)?;
    }
    Ok(())
}
