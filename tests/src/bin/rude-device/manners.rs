//! The manners by name. Each is what one rude device does on a connection, until it returns, which closes the connection.

use std::io;

use crate::connection::Connection;
use crate::device::{MESSAGES, Offers};
use crate::{descriptors, floods, memory, slow};

/// One of them.
pub struct Manner {
    /// For the command line.
    pub name: &'static str,
    /// The device's offers.
    pub offers: &'static Offers,
    /// Its behaviour.
    pub run: fn(&mut Connection) -> io::Result<()>,
}

/// With a second socket.
pub static TWIN: Offers = Offers { twin: true, ..MESSAGES };
/// With a page behind an ioregionfd.
pub static IOREGIONFD: Offers = Offers { ioregionfd: true, ..MESSAGES };
/// Without any of it.
pub static PLAIN: Offers = MESSAGES;

macro_rules! manners {
    ($($name:literal, $offers:expr, $run:path;)*) => {
        &[$(Manner { name: $name, offers: &$offers, run: $run }),*]
    };
}

/// Their consequences for a run: `tests/src/rude.rs`.
pub static ALL: &[Manner] = manners! {
    "honest", PLAIN, Connection::serve;
    "honest-twin", TWIN, Connection::serve;
    // Descriptors, and their state that is shared with the peer.
    "blocking-eventfds", PLAIN, descriptors::blocking_eventfds;
    "full-eventfds", PLAIN, descriptors::full_eventfds;
    "lingering-request", PLAIN, descriptors::lingering_request;
    "lingering-reply", PLAIN, descriptors::lingering_reply;
    "lingering-twin", TWIN, descriptors::lingering_request;
    "lingering-ioregionfd", IOREGIONFD, descriptors::lingering_ioregionfd;
    "lingering-unread", PLAIN, descriptors::lingering_unread;
    "lingering-region", PLAIN, descriptors::lingering_region;
    "blocking-twin", TWIN, descriptors::blocking_twin;
    "blocking-ioregionfd", IOREGIONFD, descriptors::blocking_ioregionfd;
    "many-descriptors", PLAIN, descriptors::many;
    "descriptors-in-flight", PLAIN, descriptors::in_flight;
    // Memory that the guest is shown.
    "truncating", memory::MEMFD, memory::truncating;
    "plain-file", memory::FILE, Connection::serve;
    "huge", memory::HUGE, Connection::serve;
    "no-memory", memory::PIPE, Connection::serve;
    // Work for the client without an end.
    "dma-flood", PLAIN, floods::dma;
    "dma-flood-twin", TWIN, floods::dma;
    "dma-unread", PLAIN, floods::unread;
    "dma-unread-twin", TWIN, floods::unread;
    "dma-busy", PLAIN, floods::busy;
    "interrupt-storm", PLAIN, floods::interrupts;
    "replies-flood", PLAIN, floods::replies;
    "interrupts-after-the-cut", PLAIN, floods::interrupts_after_the_cut;
    "refusing", PLAIN, slow::refusing;
    // Time.
    "slow-unmask", PLAIN, slow::unmask;
    "slow-reset", PLAIN, slow::reset;
    "silent", PLAIN, slow::silent;
    "sluggish", slow::BYTEWISE, slow::sluggish;
    "stops", PLAIN, slow::stops;
    "stops-at-once", PLAIN, slow::stops_at_once;
    "half-message", PLAIN, slow::half_message;
    "hangs-up", PLAIN, hangs_up;
};

fn hangs_up(connection: &mut Connection) -> io::Result<()> {
    connection.until_used().map(|_| ())
}
