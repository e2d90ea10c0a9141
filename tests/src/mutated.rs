//! Clients that send what a client may send, in any order, with mistakes in it: fields, lengths, headers and descriptors that are not what
//! they should be, and memory that holds anything. Each leaves after a while, with requests under way.

#![allow(clippy::cast_possible_truncation, reason = "random numbers are cut to size")]

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_protocol::command::Command;
use outrigger_protocol::wire::{FLAG_NO_REPLY, HEADER_SIZE, TYPE_COMMAND, TYPE_REPLY};

use crate::driver::{Driver, MEMORY};
use crate::random::Random;
use crate::raw;

/// Most messages of a client.
const MOST: u64 = 60;
/// How long the device may take no message before the client leaves.
const PATIENCE: Duration = Duration::from_millis(100);

const COMMANDS: [Command; 18] = [
    Command::Version,
    Command::DmaMap,
    Command::DmaUnmap,
    Command::DeviceGetInfo,
    Command::DeviceGetRegionInfo,
    Command::DeviceGetRegionIoFds,
    Command::DeviceGetIrqInfo,
    Command::DeviceSetIrqs,
    Command::RegionRead,
    Command::RegionWrite,
    Command::DmaRead,
    Command::DeviceReset,
    Command::RegionWriteMulti,
    Command::DeviceFeature,
    Command::MigDataRead,
    Command::MigDataWrite,
    Command::JournalOffer,
    Command::JournalTake,
];

/// One client, from its connection to its end; returns how many messages it sent.
///
/// # Errors
/// It is not let in. Whatever happens later is the device's right.
pub fn session(socket: &Path, random: &mut Random) -> io::Result<u64> {
    let driver = match random.below(4) {
        // Not even a version.
        0 => None,
        1 => Some(Driver::connect(socket)?),
        _ => Some(in_service(socket, random)?),
    };
    let stream = match &driver {
        Some(driver) => driver.stream.try_clone()?,
        None => UnixStream::connect(socket)?,
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut count = 0;
    while count < random.below(MOST) + 1 {
        if let Some(driver) = &driver
            && random.below(4) == 0
        {
            scribble(&driver.memory, random)?;
        }
        if send(&stream, random).is_err() || !listen(&stream, random)? {
            break;
        }
        count += 1;
    }
    Ok(count)
}

/// A driver that has the device in service, and requests under way.
fn in_service(socket: &Path, random: &mut Random) -> io::Result<Driver> {
    let mut driver = Driver::connect(socket)?;
    let eventfd = driver.eventfd.as_raw_fd();
    driver.map(random.below(3) > 0)?;
    driver.connect_interrupt(eventfd)?;
    driver.start()?;
    // A device that reaches memory by messages has asked for its rings, and is not answered.
    driver.submit()?;
    Ok(driver)
}

/// Writes anything where the rings are.
fn scribble(memory: &File, random: &mut Random) -> io::Result<()> {
    let at = random.below(0x7000);
    memory.write_all_at(&random.any().to_le_bytes(), at)
}

/// Sends a message that may be wrong.
fn send(stream: &UnixStream, random: &mut Random) -> io::Result<()> {
    let command = random.one_of(&COMMANDS);
    let mut payload = payload(command, random);
    if random.below(3) == 0 {
        spoil(&mut payload, random);
    }
    let flags = random.one_of(&[TYPE_COMMAND; 8]) | if random.below(8) == 0 { FLAG_NO_REPLY } else { 0 };
    let mut bytes = raw::message(random.below(8) as u16, command, flags, &payload);
    match random.below(40) {
        // The header as well.
        0 => spoil(&mut bytes[..HEADER_SIZE], random),
        1 => bytes = raw::message(random.below(8) as u16, command, TYPE_REPLY, &payload),
        _ => {}
    }
    let wants = matches!(
        command,
        Command::DmaMap | Command::DeviceSetIrqs | Command::JournalOffer | Command::DeviceFeature | Command::Version
    );
    let fds = if wants && random.below(4) > 0 || random.below(20) == 0 { descriptors(random)? } else { Vec::new() };
    let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    raw::send(stream, &bytes, &numbers)
}

/// Changes some bytes.
fn spoil(bytes: &mut [u8], random: &mut Random) {
    for _ in 0..random.below(4) {
        if !bytes.is_empty() {
            let at = random.below(bytes.len() as u64) as usize;
            let any = random.any() as u8;
            bytes[at] = random.one_of(&[0, 1, 0x7f, 0x80, 0xff, any]);
        }
    }
}

/// The bytes after the header, as the command has them, but for numbers that may be anything.
fn payload(command: Command, random: &mut Random) -> Vec<u8> {
    let words = |words: &[u64]| words.iter().flat_map(|&word| (word as u32).to_le_bytes()).collect::<Vec<u8>>();
    let longs = |longs: &[u64]| longs.iter().flat_map(|long| long.to_le_bytes()).collect::<Vec<u8>>();
    let address = random.one_of(&[0, 0x1000, MEMORY, 1 << 40, u64::MAX - 0xfff]);
    let size = random.one_of(&[0, 0x1000, MEMORY, 1 << 33, u64::MAX]);
    let offset = random.one_of(&[0, 0x14, 0x16, 0x1c, 0x20, 0x1000, 0x2000, 0x3000, 0x3ffc, 1 << 40]);
    let region = random.one_of(&[0, 0, 0, 1, 2, 7, 8, 9, 255]);
    let length = random.one_of(&[0, 1, 2, 4, 8, 256, 4096]);
    let index = random.below(6);
    match command {
        Command::Version => {
            [&[0, 0, 1, 0], &br#"{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true}}}"#[..], &[0]]
                .concat()
        }
        Command::DmaMap => [words(&[32, 3]), longs(&[0, address, size])].concat(),
        Command::DmaUnmap => [words(&[24, random.below(3)]), longs(&[address, size])].concat(),
        Command::DeviceGetInfo => words(&[16, 0, 0, 0]),
        Command::DeviceGetRegionInfo => words(&[32, 0, region, 0, 0, 0, 0, 0]),
        Command::DeviceGetRegionIoFds => words(&[1 << 12, 0, region, 0]),
        Command::DeviceGetIrqInfo => words(&[16, 0, index, 0]),
        Command::DeviceSetIrqs => {
            let flags = 1 << random.below(3) | 8 << random.below(3);
            [words(&[20, flags, index, random.below(3), random.below(4)]), vec![1; random.below(5) as usize]].concat()
        }
        Command::RegionRead => [longs(&[offset]), words(&[region, length])].concat(),
        Command::RegionWrite => {
            let data = (0..length).map(|_| random.any() as u8).collect();
            [longs(&[offset]), words(&[region, length]), data].concat()
        }
        Command::DmaRead | Command::MigDataRead => words(&[16, length, 0, 0]),
        Command::RegionWriteMulti => [longs(&[1, offset]), words(&[region, 4]), longs(&[random.any()])].concat(),
        Command::DeviceFeature => {
            let feature = random.below(11) | 1 << (16 + random.below(3));
            [words(&[64, feature]), longs(&[random.below(8), address, size, 0x1000])].concat()
        }
        Command::MigDataWrite => [words(&[16, length]), vec![random.any() as u8; length as usize]].concat(),
        _ => longs(&[random.below(3), size]),
    }
}

/// Some descriptors, of which the device may have asked for one.
fn descriptors(random: &mut Random) -> io::Result<Vec<OwnedFd>> {
    (0..=random.below(3))
        .map(|_| match random.below(6) {
            0 | 1 => {
                let memory = File::from(memfd_create("mutated", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
                memory.set_len(random.one_of(&[0, 0x1000, MEMORY]))?;
                Ok(memory.into())
            }
            2 | 3 => Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?.into()),
            4 => Ok(UnixStream::pair()?.0.into()),
            _ => Ok(File::open("/dev/null")?.into()),
        })
        .collect()
}

/// Reads whatever has come, and now and then answers with something; whether the connection lasts.
fn listen(mut stream: &UnixStream, random: &mut Random) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let mut bytes = [0; 4096];
    let lasts = match stream.read(&mut bytes) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false)?;
    if random.below(8) == 0 {
        std::thread::sleep(random.time(Duration::from_millis(2)));
    }
    Ok(lasts)
}
