//! Several short writes in one message.

use zerocopy::IntoBytes;

use super::{Client, ClientError};
use crate::command::Command;
use crate::wire;

/// A write of at most 8 bytes.
#[derive(Clone, Copy, Debug)]
pub struct RegionWrite<'a> {
    /// Which region.
    pub region: u32,
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// The bytes to write.
    pub data: &'a [u8],
}

impl Client {
    /// Writes to regions in order and waits until the device has taken them: with `VFIO_USER_REGION_WRITE_MULTI` in as
    /// few messages as the server's limit allows, or one by one if the server does not understand it.
    ///
    /// Returns how many were completed: fewer than all when the server refused one, after which nothing more is written.
    /// If none was completed, that refusal is the error; `EINVAL` is for all writes of a message, since all are checked
    /// before any is done. [`ClientError::Local`]: one is longer than 8 bytes; nothing was sent.
    pub fn region_write_multi(&self, writes: &[RegionWrite<'_>]) -> Result<usize, ClientError> {
        let command = Command::RegionWriteMulti;
        let entries = writes.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let at_once = match self.server.write_multiple {
            true => (self.max_transfer() / size_of::<wire::RegionShortWrite>()).max(1),
            false => 1,
        };
        let mut completed = 0;
        for (entries, writes) in entries.chunks(at_once).zip(writes.chunks(at_once)) {
            let done = if self.server.write_multiple {
                let request = wire::RegionWriteMulti { count: entries.len() as u64 };
                self.request(command, [request.as_bytes(), entries.as_bytes()], &[], |message| {
                    let (reply, _) =
                        message.parse::<wire::RegionWriteMulti>().ok_or("a multiple write is too short")?;
                    let count = usize::try_from(reply.count).ok().filter(|&count| count <= entries.len());
                    count.ok_or("a multiple write counts more writes than there were")
                })
            } else {
                writes
                    .iter()
                    .try_for_each(|write| self.region_write(write.region, write.offset, write.data))
                    .map(|()| 1)
            };
            let done = match done {
                Ok(count) => count,
                Err(ClientError::Refused { .. }) if completed > 0 => break,
                Err(error) => return Err(error),
            };
            completed += done;
            if done < entries.len() {
                break;
            }
        }
        Ok(completed)
    }
}

fn entry(write: &RegionWrite<'_>) -> Result<wire::RegionShortWrite, ClientError> {
    let mut data = [0; 8];
    let Some(start) = data.get_mut(..write.data.len()) else {
        let (command, value) = (Command::RegionWriteMulti, write.data.len() as u64);
        return Err(ClientError::Local { command, problem: "bytes in one of several writes", value, limit: 8 });
    };
    start.copy_from_slice(write.data);
    let count = u32::try_from(write.data.len()).expect("at most 8");
    Ok(wire::RegionShortWrite { offset: write.offset, region: write.region, count, data })
}
